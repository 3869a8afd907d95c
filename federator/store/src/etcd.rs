//! The store on etcd.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, GetResponse, LeaseGrantOptions, Txn, TxnOp, WatchOptions};
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::{
    Committed, Entry, Incarnation, LeaseId, Page, RangePage, Revision, Store, StoreError, Transaction, WatchStream,
};

mod commit;
mod config;
mod fault;
mod keys;
mod lease;
mod members;
mod metrics;
mod watch;

use commit::{Slots, commit};
pub use config::EtcdConfig;
use fault::Fault;
use keys::{Keys, number, revision};
use lease::LeaseKeeping;
use members::{ATTEMPT, DEADLINE, Members, PAUSE, replaced};
use metrics::Metrics;
use watch::Watcher;

/// How long to wait before asking again for a cluster that does not answer when the store is opened.
const OPEN_RETRY: Duration = Duration::from_secs(1);
/// The most entries in one page.
const PAGE_ENTRIES: usize = 1000;
/// The largest answer to a range. A page whose entries are larger is asked for again with fewer.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// The store on etcd.
///
/// ```text
///  get, range, grant …  ──► one member ──no answer──► the next member …   until the deadline
///  commit               ──► the same, with a mark that makes a lost answer readable
///  keep_alive           ──► one task, one stream for all leases
///  watch                ──► one stream at one member, opened again elsewhere when it breaks or falls silent
/// ```
///
/// - **No answer is not a no.** A commit whose answer got lost is repeated under a mark that lets it be applied once, and
///   read back; when even that stays unanswered, it is [`StoreError::OutcomeUnknown`].
/// - **A watch goes on** after a broken connection, a dead, paused or cut-off member, without its reader noticing but for
///   the delay. It ends with [`WatchError`](crate::WatchError) only when the history is compacted or another one, or the
///   store is refused.
/// - **An incarnation** is the number that `<prefix>incarnation` holds, mixed with the id of etcd's cluster, so that a
///   snapshot restored with another `--initial-cluster-token` begins a new one (and so does deleting that key). A store
///   that was open while etcd was restored notices by its cluster id, its incarnation or a revision that went back, and
///   fails for good: its program starts again.
/// - **Space.** A quota that is used up is [`StoreError::NoSpace`]: reading, deleting and keeping leases alive go on.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
    leases: LeaseKeeping,
}

#[derive(Debug)]
struct Inner {
    members: Arc<Members>,
    keys: Keys,
    slots: Slots,
    /// What `<prefix>incarnation` held when the store was opened.
    drawn: u64,
}

impl EtcdStore {
    /// Opens the store. Waits for as long as no member answers.
    ///
    /// # Errors
    ///
    /// [`StoreError::Storage`] when etcd refuses.
    pub async fn open(config: EtcdConfig) -> Result<Self, StoreError> {
        let keys = Keys::below(&config.prefix);
        let members = Arc::new(Members::new(config, Metrics::new()));
        let drawn = loop {
            match draw_incarnation(&members, &keys).await {
                Ok(drawn) => break drawn,
                Err(fault) if fault.is_transient() => {
                    warn!(error = ?fault, "etcd does not answer: waiting for it");
                    sleep(OPEN_RETRY).await;
                }
                Err(fault) => return Err(fault.into()),
            }
        };
        let leases = LeaseKeeping::start(Arc::clone(&members));
        Ok(Self { inner: Arc::new(Inner { members, keys, slots: Slots::draw(), drawn }), leases })
    }

    /// Registers the store's health: the silence of its watch, the last revision, failures by kind, answer times.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.members.metrics.register(registry);
    }

    /// The oldest revision that is kept. etcd tells it to a watch only.
    async fn oldest(&self) -> Result<Revision, Fault> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let link = self.inner.members.link().await?;
            let asked = timeout(ATTEMPT, compacted_at(link.client.clone(), &self.inner.keys)).await;
            match asked.unwrap_or_else(|elapsed| Err(Fault::Unknown(Box::new(elapsed)))) {
                Err(fault) if fault.is_transient() && Instant::now() + PAUSE < deadline => {
                    self.inner.members.give_up(&link, &fault);
                    sleep(PAUSE).await;
                }
                oldest => return oldest,
            }
        }
    }

    /// The newest revision.
    async fn current(&self) -> Result<Revision, Fault> {
        let key = self.inner.keys.incarnation.clone();
        let read = self.inner.read(key, GetOptions::new().with_keys_only()).await?;
        Ok(header_revision(&read))
    }

    /// Says which revisions there are, where the fault does not.
    async fn explain(&self, fault: Fault, lease: LeaseId) -> StoreError {
        let known = match fault {
            Fault::Compacted => self.oldest().await,
            Fault::FutureRevision => self.current().await,
            _ => Ok(0),
        };
        match known {
            Ok(known) => fault.into_store_error(lease, known),
            Err(other) => other.into(),
        }
    }
}

impl Inner {
    async fn read(&self, key: impl Into<Vec<u8>>, options: GetOptions) -> Result<GetResponse, Fault> {
        let key = key.into();
        let read = self.members.repeat("get", |client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.kv_client().max_decoding_message_size(ANSWER_BYTES).get(key, Some(options)).await }
        });
        read.await
    }

    /// Whether etcd still holds the history that this store was opened on.
    async fn verify(&self) -> Result<(), Fault> {
        let read = self.read(self.keys.incarnation.clone(), GetOptions::new()).await?;
        match read.kvs().first().map(|pair| decode_incarnation(pair.value())) {
            Some(Some(drawn)) if drawn == self.drawn => Ok(()),
            _ => Err(replaced("its incarnation changed")),
        }
    }
}

/// Where the history starts, as a watch that asks for all of it is told.
async fn compacted_at(mut client: Client, keys: &Keys) -> Result<Revision, Fault> {
    let options = WatchOptions::new().with_start_revision(1);
    let mut watch = client.watch(keys.incarnation.clone(), Some(options)).await?;
    while let Some(response) = watch.message().await? {
        if response.canceled() {
            return Ok(revision(response.compact_revision()));
        }
        if !response.created() {
            break;
        }
    }
    Ok(1)
}

/// Reads the number that the store's history is told by, or draws it.
async fn draw_incarnation(members: &Members, keys: &Keys) -> Result<u64, Fault> {
    let mine: u64 = rand::random();
    let key = keys.incarnation.clone();
    let response = members.repeat("txn", |mut client| {
        let draw = Txn::new()
            .when([Compare::mod_revision(key.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.clone(), format!("{mine:016x}"), None)])
            .or_else([TxnOp::get(key.clone(), None)]);
        async move { client.txn(draw).await }
    });
    let response = response.await?;
    if response.succeeded() {
        return Ok(mine);
    }
    let read = response.op_responses().into_iter().find_map(|answer| match answer {
        etcd_client::TxnOpResponse::Get(read) => Some(read),
        _ => None,
    });
    let drawn = read.as_ref().and_then(|read| read.kvs().first()).and_then(|pair| decode_incarnation(pair.value()));
    drawn.ok_or_else(|| Fault::Refused(format!("{}: holds no incarnation", keys.incarnation).into()))
}

fn decode_incarnation(value: &[u8]) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(value).ok()?, 16).ok()
}

fn header_revision(response: &GetResponse) -> Revision {
    response.header().map_or(0, |header| revision(header.revision()))
}

impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = self.inner.read(self.inner.keys.of(key), GetOptions::new()).await?;
        Ok(read.0.kvs.into_iter().next().and_then(|pair| self.inner.keys.entry(etcd_client::KeyValue(pair))))
    }

    async fn range(&self, prefix: &str, page: Page) -> Result<RangePage, StoreError> {
        let keys = &self.inner.keys;
        let mut start = keys.of(prefix).into_bytes();
        if let Some(after) = &page.after {
            // The least key greater than `after`.
            let behind = [keys.of(after).as_bytes(), &[0]].concat();
            start = start.max(behind);
        }
        let mut limit = page.limit.clamp(1, PAGE_ENTRIES);
        loop {
            let mut options =
                GetOptions::new().with_range(keys.end_of(prefix)).with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
            if let Some(at) = page.at {
                options = options.with_revision(number(at));
            }
            let read = match self.inner.read(start.clone(), options).await {
                Ok(read) => read,
                Err(Fault::TooLarge(_)) if limit > 1 => {
                    limit /= 2;
                    continue;
                }
                Err(fault) => return Err(self.explain(fault, LeaseId::new(0)).await),
            };
            let (revision, more) = (page.at.unwrap_or(header_revision(&read)), read.more());
            let pairs = read.0.kvs.into_iter();
            let entries = pairs.filter_map(|pair| keys.entry(etcd_client::KeyValue(pair))).collect();
            return Ok(RangePage { entries, revision, more });
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        transaction.check()?;
        let Inner { members, keys, slots, .. } = &*self.inner;
        Box::pin(commit(members, keys, slots, &transaction)).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        Watcher::stream(Arc::clone(&self.inner), prefix, after)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
        // Its own number, so that asking twice grants once.
        let id: i64 = rand::random_range(1..i64::MAX);
        let granted = self.inner.members.repeat("lease_grant", |mut client| async move {
            client.lease_grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await
        });
        match granted.await {
            Ok(_) | Err(Fault::LeaseExists) => Ok(LeaseId::new(id.cast_unsigned())),
            Err(fault) => Err(fault.into()),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.leases.keep_alive(lease).await {
                Err(fault) if fault.is_transient() && Instant::now() + PAUSE < deadline => sleep(PAUSE).await,
                kept => return kept.map_err(|fault| fault.into_store_error(lease, 0)),
            }
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let id = lease.number().cast_signed();
        let first =
            self.inner.members.attempt("lease_revoke", |mut client| async move { client.lease_revoke(id).await });
        let unclear = match first.await {
            Ok(_) => return Ok(()),
            Err(Fault::NotDone(_)) => false,
            Err(Fault::Unknown(_)) => true,
            Err(fault) => return Err(fault.into_store_error(lease, 0)),
        };
        let again =
            self.inner.members.repeat("lease_revoke", |mut client| async move { client.lease_revoke(id).await });
        match again.await {
            Err(Fault::LeaseNotFound) if unclear => Ok(()),
            revoked => revoked.map(|_| ()).map_err(|fault| fault.into_store_error(lease, 0)),
        }
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        let compacted =
            self.inner.members.repeat("compact", |mut client| async move { client.compact(number(at), None).await });
        match compacted.await {
            Ok(_) | Err(Fault::Compacted) => Ok(()),
            Err(fault) => Err(self.explain(fault, LeaseId::new(0)).await),
        }
    }

    async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        Ok(Incarnation::new(self.inner.drawn ^ self.inner.members.cluster()))
    }
}
