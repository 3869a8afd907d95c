//! The newest record of every key, in memory, fed by one watch of the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use federation::{ClusterName, Namespace, RecordKey};
use federation_api::record::v1::{Signed, Statement, statement};
use federation_store::{
    Change, FollowError, Followed, Revision, Snapshot, Store, StoreError, WatchBatch, follow, layout,
};
use prost::Message;
use tokio::sync::watch;
use tracing::error;

/// The prefixes whose values are signed records.
const RECORDS: [&str; 4] = [layout::EXPORTS, layout::SLICES, layout::GATEWAYS, layout::HEADS];

/// A stored record.
#[derive(Debug)]
pub struct Record {
    /// The revision that wrote it.
    pub revision: Revision,
    /// Who speaks.
    pub cluster: ClusterName,
    /// About what.
    pub key: RecordKey,
    /// Its order among the records of its key: (generation, sequence).
    pub order: (u64, u64),
    /// It says that the key has no value any more.
    pub withdrawn: bool,
    /// The record itself, as its cluster signed it.
    pub signed: Signed,
}

impl Record {
    fn decode(revision: Revision, value: &Bytes) -> Result<Self, String> {
        let signed = Signed::decode(value.clone()).map_err(|error| error.to_string())?;
        let statement = Statement::decode(signed.message.clone()).map_err(|error| error.to_string())?;
        Ok(Self {
            revision,
            cluster: statement.cluster.parse().map_err(|error| format!("cluster: {error}"))?,
            key: statement.key.parse().map_err(|error| format!("key: {error}"))?,
            order: (statement.generation, statement.sequence),
            withdrawn: matches!(statement.payload, Some(statement::Payload::Withdrawal(_))),
            signed,
        })
    }
}

/// Where a cluster's record of a key lies in the store; `None` for what is not the federator's to keep.
#[must_use]
pub fn store_key(cluster: &ClusterName, key: &RecordKey) -> Option<String> {
    let cluster = cluster.as_str();
    match key {
        RecordKey::Export(service) => Some(layout::export(service.namespace.as_str(), service.name.as_str(), cluster)),
        RecordKey::Slice(service, slice) => {
            Some(layout::slice(service.namespace.as_str(), service.name.as_str(), cluster, slice))
        }
        RecordKey::Gateways => Some(layout::gateway(cluster)),
        RecordKey::Heads => Some(layout::heads(cluster)),
        RecordKey::Bundle | RecordKey::Membership => None,
    }
}

#[derive(Debug, Default)]
struct Contents {
    revision: Revision,
    records: HashMap<Arc<str>, Arc<Record>>,
    /// One entry a record: the revision that wrote it. What a session lacks is the part above its cursor.
    by_revision: BTreeMap<(Revision, Arc<str>), Arc<Record>>,
    live_exports: HashMap<ClusterName, usize>,
}

impl Contents {
    fn put(&mut self, key: &str, record: Record) {
        self.remove(key);
        let (key, record): (Arc<str>, _) = (key.into(), Arc::new(record));
        if counts(&record) {
            *self.live_exports.entry(record.cluster.clone()).or_default() += 1;
        }
        self.by_revision.insert((record.revision, key.clone()), record.clone());
        self.records.insert(key, record);
    }

    fn remove(&mut self, key: &str) {
        if let Some((key, old)) = self.records.remove_entry(key) {
            if counts(&old)
                && let Some(count) = self.live_exports.get_mut(&old.cluster)
            {
                *count -= 1;
            }
            self.by_revision.remove(&(old.revision, key));
        }
    }
}

fn counts(record: &Record) -> bool {
    !record.withdrawn && matches!(record.key, RecordKey::Export(_) | RecordKey::Slice(..))
}

/// The records as they are stored, shared by all sessions. Locks are held for a look only, never over a wait.
#[derive(Debug, Clone)]
pub struct Cache {
    contents: Arc<RwLock<Contents>>,
    incarnation: Arc<str>,
    revision: Arc<watch::Sender<Revision>>,
}

/// What a session is told at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// Everything up to this revision is in it or was before.
    pub revision: Revision,
    /// The records, in the order of their revisions.
    pub records: Vec<Signed>,
    /// More follows.
    pub more: bool,
}

impl Cache {
    /// Reads all records.
    ///
    /// # Errors
    /// The store's.
    pub async fn load<S: Store>(store: &S) -> Result<Self, StoreError> {
        let incarnation = store.incarnation().await?.to_string();
        let cache =
            Self { contents: Arc::default(), incarnation: incarnation.into(), revision: Arc::new(watch::channel(0).0) };
        cache.replace(&store.snapshot("").await?);
        Ok(cache)
    }

    fn replace(&self, snapshot: &Snapshot) {
        let mut contents = Contents { revision: snapshot.revision, ..Contents::default() };
        for entry in &snapshot.entries {
            apply(&mut contents, &entry.key, entry.modified, Some(&entry.value));
        }
        *self.contents.write().unwrap_or_else(PoisonError::into_inner) = contents;
        self.revision.send_replace(snapshot.revision);
    }

    /// Keeps the cache equal to the store.
    ///
    /// # Errors
    /// The store's, when it cannot go on.
    pub async fn follow<S: Store>(&self, store: S) -> Result<(), FollowError> {
        follow(&store, "", self.revision(), |followed| match followed {
            Followed::Snapshot(snapshot) => self.replace(&snapshot),
            Followed::Batch(batch) => self.advance(&batch),
        })
        .await
    }

    fn advance(&self, batch: &WatchBatch) {
        {
            let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
            for change in &batch.changes {
                match change {
                    Change::Put(entry) => apply(&mut contents, &entry.key, entry.modified, Some(&entry.value)),
                    Change::Delete { key, .. } => apply(&mut contents, key, batch.revision, None),
                }
            }
            contents.revision = batch.revision;
        }
        self.revision.send_replace(batch.revision);
    }

    /// The revision the cache has reached.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Changes when the revision does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Which history the revisions belong to.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// The stored record of a key.
    #[must_use]
    pub fn record(&self, store_key: &str) -> Option<Arc<Record>> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner).records.get(store_key).cloned()
    }

    /// How many exports and slices of a cluster are live.
    #[must_use]
    pub fn live_exports(&self, cluster: &ClusterName) -> usize {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        contents.live_exports.get(cluster).copied().unwrap_or(0)
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.contents.read().unwrap_or_else(PoisonError::into_inner).records.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next records after `cursor` that `wanted` takes, at most `limit`.
    pub fn after(&self, cursor: Revision, limit: usize, wanted: impl Fn(&Record) -> bool) -> Batch {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Batch { revision: contents.revision, ..Batch::default() };
        let mut last = cursor;
        for ((revision, _), record) in contents.by_revision.range((cursor + 1, Arc::from(""))..) {
            // A revision is told whole: the cursor is a revision.
            if batch.records.len() >= limit && *revision != last {
                batch.more = true;
                batch.revision = last;
                return batch;
            }
            last = *revision;
            if wanted(record) {
                batch.records.push(record.signed.clone());
            }
        }
        batch
    }

    /// All records of these namespaces that `wanted` takes: what a subscriber lacks that widens its interest.
    pub fn of_namespaces(&self, namespaces: &BTreeSet<Namespace>, wanted: impl Fn(&Record) -> bool) -> Batch {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        let in_scope = |record: &Record| record.key.namespace().is_some_and(|namespace| namespaces.contains(namespace));
        let records = contents.records.values().filter(|record| in_scope(record) && wanted(record));
        Batch {
            revision: contents.revision,
            records: records.map(|record| record.signed.clone()).collect(),
            more: false,
        }
    }
}

fn apply(contents: &mut Contents, key: &str, revision: Revision, value: Option<&Bytes>) {
    if !RECORDS.iter().any(|prefix| key.starts_with(prefix)) {
        return;
    }
    match value.map(|value| Record::decode(revision, value)) {
        None => contents.remove(key),
        Some(Ok(record)) => contents.put(key, record),
        Some(Err(error)) => error!(key, %error, "stored value does not decode: keeping the last good one"),
    }
}
