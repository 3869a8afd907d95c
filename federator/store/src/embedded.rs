//! The store in one file, for a federation without etcd: a laptop, a test, a small site.
//!
//! ```text
//!  commit, leases ──► bounded queue ──► writer ──► redb, one fsync a batch
//!                                         │              ▲        ▲
//!                                         ▼              │        │ behind the ring
//!                       ring of new revisions ──► watchers┼────────┘
//!                                                        │
//!  get, range ───────────────────────────────────────────┘  (each its own snapshot)
//! ```
//!
//! - One process at a time has the file open; a second one is told [`OpenError::InUse`].
//! - The writer task is the only one that changes anything. It ends when [`EmbeddedStore::close`] is called or the last
//!   handle is dropped. When the disk fails it stops, every later call reports [`StoreError::Storage`], and the
//!   process has to open the file again: what was acknowledged is there.
//! - Waiting transactions, reads and the ring are bounded in bytes or number; a slow watcher holds one piece of the log.
//! - The history has a bounded length ([`EmbeddedOptions::history`]) and compacts itself.
//! - A lease that was alive when the store stopped has its whole time again when it opens.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    Committed, Entry, Incarnation, LeaseId, Page, RangePage, Revision, Store, StoreError, Transaction, WatchStream,
};

mod clock;
mod engine;
mod file;
mod read;
mod recent;
mod shared;
mod tables;
mod watcher;
mod writer;

#[cfg(test)]
mod failing_disk;

pub use file::OpenError;

use engine::{Command, Engine, Reply};
use file::Opened;
use recent::Recent;
use shared::Shared;
use watcher::Watcher;
use writer::Writer;

/// How many revisions are kept by default, for watches to resume in.
const HISTORY: Revision = 10_000;
/// The bytes of transactions that wait for the writer; further ones wait outside the queue.
const QUEUED_BYTES: usize = 16 * 1024 * 1024;
/// The shortest lease.
const MIN_TTL: Duration = Duration::from_millis(1);
/// The longest lease.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How to open an [`EmbeddedStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// How many of the newest revisions can be watched and read; older ones are compacted as new ones come.
    pub history: Revision,
    /// The file was put in place from a backup: start a new [`Incarnation`]. A file that was copied into place is
    /// noticed without this, by its inode; one whose content was overwritten, or a restored disk, is not.
    pub restored: bool,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { history: HISTORY, restored: false }
    }
}

/// What the store has done since it was opened, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Commands that were answered after a batch: transactions, conflicts, grants, revocations, compactions.
    pub answered: u64,
    /// Batches made durable, one fsync each.
    pub flushes: u64,
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// Running leases.
    pub leases: u64,
}

/// A handle to a store in a file.
#[derive(Clone)]
pub struct EmbeddedStore {
    commands: mpsc::Sender<Command>,
    queued: Arc<Semaphore>,
    head: watch::Receiver<Revision>,
    shared: Arc<Shared>,
    incarnation: Incarnation,
}

impl EmbeddedStore {
    /// Opens the file, and creates it if there is none; its directory must exist.
    ///
    /// # Errors
    ///
    /// [`OpenError::InUse`] when it is open already, or what is wrong with the file.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, EmbeddedOptions::default()).await
    }

    /// Opens the file with other than the default options.
    ///
    /// # Errors
    ///
    /// Those of [`EmbeddedStore::open`].
    pub async fn open_with(path: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let history = options.history;
        let opening = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || file::open(&path, &options))
        };
        let opened = opening.await.map_err(|error| OpenError::Unreadable { path, source: error.into() })??;
        Ok(Self::start(opened, history))
    }

    /// Starts the writer of an opened file.
    fn start(opened: Opened, history: Revision) -> Self {
        let database = Arc::new(opened.database);
        let (head_sender, head) = watch::channel(opened.position.revision);
        let shared = Arc::new(Shared::new(Arc::clone(&database), Recent::new(opened.position.revision)));
        let (commands, queue) = mpsc::channel(writer::BATCH);
        let engine = Engine::new(database, opened.position, history);
        tokio::spawn(Writer::new(engine, opened.leases, queue, head_sender, Arc::clone(&shared)).run());
        let queued = Arc::new(Semaphore::new(QUEUED_BYTES));
        Self { commands, queued, head, shared, incarnation: opened.incarnation }
    }

    /// Serves what is queued, then stops the writer and lets go of the file. Every handle is closed by it, and watches
    /// end.
    pub async fn close(&self) {
        // An error says that the writer has stopped already.
        let _ = self.commands.send(Command::Close).await;
        self.writer_ended().await;
        self.shared.end_reads().await;
    }

    async fn writer_ended(&self) {
        let mut head = self.head.clone();
        while head.changed().await.is_ok() {}
    }

    /// What the store has done so far.
    pub fn activity(&self) -> Activity {
        let counters = &self.shared.counters;
        Activity {
            answered: counters.answered.load(Ordering::Relaxed),
            flushes: counters.flushes.load(Ordering::Relaxed),
            revision: *self.head.borrow(),
            compacted: counters.compacted.load(Ordering::Relaxed),
            leases: counters.leases.load(Ordering::Relaxed),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() {
            return Err(self.shared.stopped());
        }
        match answer.await {
            Ok(result) => result,
            Err(_) => {
                // A failing batch drops its replies before the reason is known; it is known once the writer ended.
                self.writer_ended().await;
                Err(self.shared.stopped())
            }
        }
    }
}

impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.shared.read(move |database| read::get(database, &key)).await
    }

    async fn range(&self, prefix: &str, page: Page) -> Result<RangePage, StoreError> {
        let prefix = prefix.to_owned();
        self.shared.read(move |database| read::range(database, &prefix, &page)).await?
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        transaction.check()?;
        let size = u32::try_from(transaction.size()).unwrap_or(u32::MAX);
        let queued = Arc::clone(&self.queued).acquire_many_owned(size).await;
        let Ok(queued) = queued else { return Err(self.shared.stopped()) };
        self.ask(|reply| Command::Commit { transaction, reply, queued }).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        Watcher::new(Arc::clone(&self.shared), self.head.clone(), prefix, after).into_stream()
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl = ttl.clamp(MIN_TTL, MAX_TTL);
        self.ask(|reply| Command::Grant { ttl, reply }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Command::KeepAlive { lease, reply }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Command::Revoke { lease, reply }).await
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        self.ask(|reply| Command::Compact { at, reply }).await
    }

    async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        Ok(self.incarnation)
    }
}
