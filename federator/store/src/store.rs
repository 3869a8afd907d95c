//! The trait that programs are generic over.

use std::future::Future;
use std::time::Duration;

use futures_util::stream::BoxStream;

use crate::{Committed, Entry, Incarnation, LeaseId, Revision, StoreError, Transaction, WatchBatch, WatchError};

/// How many entries [`Store::snapshot`] asks for at a time.
const SNAPSHOT_PAGE: usize = 500;
/// How often [`Store::snapshot`] starts over because the revision it reads at was compacted away.
const SNAPSHOT_ATTEMPTS: usize = 5;

/// A watch's batches. It ends after its first error.
pub type WatchStream = BoxStream<'static, Result<WatchBatch, WatchError>>;

/// A revisioned key-value store; a clone is another handle to the same one.
///
/// Dropping a future before it is ready gives up the answer, not the request: a commit may still be applied.
pub trait Store: Clone + Send + Sync + 'static {
    /// The newest entry of a key.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Storage`] or [`StoreError::Closed`].
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Entries whose keys start with `prefix`, in key order, one page at a time. A page may hold fewer entries than its
    /// limit although more follow.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`] or [`StoreError::FutureRevision`] when [`Page::at`] names a revision that is not kept
    /// any more or not reached yet, besides those of [`Store::get`].
    fn range(&self, prefix: &str, page: Page) -> impl Future<Output = Result<RangePage, StoreError>> + Send;

    /// Applies the operations as one revision if every expectation holds.
    ///
    /// # Errors
    ///
    /// A broken limit (see [`Transaction::check`]), [`StoreError::LeaseNotFound`] when a put names a lease that is gone,
    /// [`StoreError::Unavailable`] and [`StoreError::NoSpace`]: nothing was applied. After [`StoreError::OutcomeUnknown`],
    /// [`StoreError::Storage`] and [`StoreError::Closed`], and after `NoSpace` to a transaction of all the operations or
    /// bytes that are possible, it may have been.
    fn commit(&self, transaction: Transaction) -> impl Future<Output = Result<Committed, StoreError>> + Send;

    /// Reports every revision later than `after` that changes a key starting with `prefix`, once, in order, whole. A
    /// batch without changes only says how far the watch has come. Watching after a revision that is not reached yet
    /// waits for it.
    fn watch(&self, prefix: &str, after: Revision) -> WatchStream;

    /// A new lease. Backends may grant more time than asked (etcd counts whole seconds and has a minimum), never less.
    ///
    /// # Errors
    ///
    /// Those of [`Store::get`].
    fn grant_lease(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, StoreError>> + Send;

    /// Gives the lease its whole time again. A third of the time between calls leaves room for two that fail.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseNotFound`], after which the keys are gone or about to be, besides those of [`Store::get`].
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the lease and deletes its keys.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseNotFound`], besides those of [`Store::get`].
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets the history before revision `at`. Reads at `at` and watches after `at` go on working; reads before it,
    /// and watches after an earlier revision than the one before it, report `Compacted`. Compacting less than is compacted
    /// already does nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::FutureRevision`] when `at` is not reached yet, besides those of [`Store::get`].
    fn compact(&self, at: Revision) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Which history the revisions belong to.
    ///
    /// # Errors
    ///
    /// Those of [`Store::get`].
    fn incarnation(&self) -> impl Future<Output = Result<Incarnation, StoreError>> + Send;

    /// Every entry whose key starts with `prefix`, at one revision: where a watch starts.
    ///
    /// # Errors
    ///
    /// Those of [`Store::range`].
    fn snapshot(&self, prefix: &str) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        async move {
            let mut attempt = 1;
            loop {
                match read_all(self, prefix).await {
                    Err(StoreError::Compacted { .. }) if attempt < SNAPSHOT_ATTEMPTS => attempt += 1,
                    read => return read,
                }
            }
        }
    }
}

async fn read_all<S: Store>(store: &S, prefix: &str) -> Result<Snapshot, StoreError> {
    let mut page = Page::first(SNAPSHOT_PAGE);
    let mut entries = Vec::new();
    loop {
        let read = store.range(prefix, page).await?;
        let (next, revision) = (read.next(SNAPSHOT_PAGE), read.revision);
        entries.extend(read.entries);
        match next {
            Some(next) => page = next,
            None => return Ok(Snapshot { entries, revision }),
        }
    }
}

/// Which part of a range to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Only keys greater than this one.
    pub after: Option<String>,
    /// At most so many entries; 0 counts as 1.
    pub limit: usize,
    /// The state of this revision; `None` for the newest.
    pub at: Option<Revision>,
}

impl Page {
    /// The first `limit` entries of the newest revision.
    pub fn first(limit: usize) -> Self {
        Self { after: None, limit, at: None }
    }
}

/// One page of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePage {
    /// The entries, in key order.
    pub entries: Vec<Entry>,
    /// The revision whose state they are.
    pub revision: Revision,
    /// Whether entries follow after the last of these.
    pub more: bool,
}

impl RangePage {
    /// The page that follows, at the same revision.
    pub fn next(&self, limit: usize) -> Option<Page> {
        let last = self.entries.last().filter(|_| self.more)?;
        Some(Page { after: Some(last.key.clone()), limit, at: Some(self.revision) })
    }
}

/// Every entry below a prefix at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The entries, in key order.
    pub entries: Vec<Entry>,
    /// The revision: watch after it.
    pub revision: Revision,
}
