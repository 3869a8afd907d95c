//! The newest record of every key, in memory: pure, so that it can be simulated.
//!
//! ```text
//!   by key:  (namespace, key, cluster) ──► record ◄── log: revision 4, 7, 7, 9, 12 …   (replaced entries are swept later)
//!                                                                └── a session's cursor
//! ```
//!
//! What a session lacks is the part of the log above its cursor, the latest value of each key once, so a slow session costs
//! one number, and resuming is the same as being slow. Snapshots walk the keys, a namespace at a time.

mod heads;
mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use federation::{ClusterName, Namespace};
use federation_api::record::v1::Signed;
use federation_store::{Revision, layout};

use heads::HeadScopes;
use record::{ByKey, KeyView, Place};
pub use record::{Kind, Record, Speaker, Unreadable, parse_store_key, store_key};

/// A sweep of the log leaves at most one replaced entry for so many that count.
const REPLACED_SHARE: usize = 8;
/// Below so many replaced entries the log is not swept.
const REPLACED_LEAST: usize = 256;

/// What a cluster uses of its quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Live exports and slices.
    pub exports: usize,
    /// Records, withdrawals among them.
    pub records: usize,
    /// Withdrawals.
    pub withdrawals: usize,
    /// Bytes of all records as they are stored.
    pub bytes: usize,
}

/// Records to tell at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// Everything wanted up to this revision is in it or was before.
    pub revision: Revision,
    /// The records, in the order of their revisions.
    pub records: Vec<Signed>,
    /// More follows.
    pub more: bool,
}

/// How much one message may hold. A message is never empty for a limit: a revision of the log, and one record of a
/// snapshot, go out whole.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Records.
    pub records: usize,
    /// Bytes of records.
    pub bytes: usize,
}

/// Which keys a snapshot walks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Exports and slices of a namespace.
    Namespace(Namespace),
    /// Gateways and heads.
    Clusters,
}

impl Scope {
    fn text(&self) -> &str {
        match self {
            Self::Namespace(namespace) => namespace.as_str(),
            Self::Clusters => "",
        }
    }
}

/// Where a walk goes on: behind this record.
#[derive(Clone, Debug)]
pub struct Walked(Record);

/// The records as they are stored.
#[derive(Debug, Default)]
pub struct Index {
    revision: Revision,
    collected: Revision,
    records: BTreeSet<ByKey>,
    log: VecDeque<Record>,
    replaced: usize,
    usage: HashMap<ClusterName, Usage>,
    /// How many records each cluster has in each namespace.
    namespaces: HashMap<ClusterName, BTreeMap<Namespace, usize>>,
    heads: HashMap<ClusterName, HeadScopes>,
    names: record::Names,
}

impl Index {
    /// Takes a stored value in the order of revisions. Keys that hold no records are passed over.
    ///
    /// # Errors
    /// [`Unreadable`]: the last good record of the key stays.
    pub fn put(&mut self, key: &str, revision: Revision, value: &[u8]) -> Result<(), Unreadable> {
        if key == layout::COLLECTED {
            let bytes = value.try_into().map_err(|_| Unreadable::Collected)?;
            self.collected = self.collected.max(Revision::from_be_bytes(bytes));
            return Ok(());
        }
        let Some((cluster, name)) = parse_store_key(key) else { return Ok(()) };
        let (record, scopes) = self.names.read(revision, value, cluster, &name)?;
        self.remove(key);
        self.count(&record, true);
        if let Some(scopes) = scopes {
            let heads = self.heads.entry(record.cluster().clone()).or_default();
            heads.replace(record.position().0, revision, scopes);
        }
        self.records.insert(ByKey(record.clone()));
        self.log.push_back(record);
        self.sweep();
        Ok(())
    }

    /// A key was deleted.
    pub fn remove(&mut self, key: &str) {
        let Some((cluster, name)) = parse_store_key(key) else { return };
        if let Some(ByKey(old)) = self.records.take(&Place::of(cluster, &name) as &dyn KeyView) {
            self.count(&old, false);
            old.replace();
            self.replaced += 1;
            if old.kind() == Kind::Heads && old.is_replaced() {
                // Kept when a newer one follows at once: `put` compares with it.
                self.heads.entry(old.cluster().clone()).or_default().gone = true;
            }
        }
    }

    /// Everything up to this revision was taken.
    pub fn reach(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
        self.heads.retain(|_, heads| !heads.gone);
    }

    /// The revision reached.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Records were deleted up to this revision: who has not come so far cannot be told what changed, only all there is.
    #[must_use]
    pub fn collected(&self) -> Revision {
        self.collected
    }

    /// Whether somebody who has applied everything up to `revision` can be told what changed since.
    #[must_use]
    pub fn can_resume(&self, revision: Revision) -> bool {
        (1..=self.revision).contains(&revision) && revision >= self.collected
    }

    /// The stored record of a cluster's key.
    #[must_use]
    pub fn record(&self, cluster: &ClusterName, key: &str) -> Option<&Record> {
        self.records.get(&Place::of(cluster.as_str(), key) as &dyn KeyView).map(|ByKey(record)| record)
    }

    /// What a cluster uses.
    #[must_use]
    pub fn usage(&self, cluster: &ClusterName) -> Usage {
        self.usage.get(cluster).copied().unwrap_or_default()
    }

    /// The namespaces in which a cluster has records.
    pub fn namespaces_of(&self, cluster: &ClusterName) -> impl Iterator<Item = Namespace> {
        self.namespaces.get(cluster).into_iter().flat_map(|namespaces| namespaces.keys().cloned())
    }

    /// Everybody with records, and what they use.
    pub fn usages(&self) -> impl Iterator<Item = (&ClusterName, &Usage)> {
        self.usage.iter()
    }

    /// All records, in the order of namespaces and keys.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|ByKey(record)| record)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The next records above `cursor` that `wanted` takes.
    pub fn after(&self, cursor: Revision, limit: Limit, wanted: impl Fn(&Record) -> bool) -> Batch {
        let mut batch = Batch { revision: self.revision, ..Batch::default() };
        let (mut last, mut bytes) = (cursor, 0);
        let start = self.log.partition_point(|record| record.revision() <= cursor);
        for record in self.log.range(start..).filter(|record| !record.is_replaced()) {
            let full = batch.records.len() >= limit.records || bytes >= limit.bytes;
            // A revision is told whole: the cursor is a revision.
            if full && record.revision() != last {
                batch.more = true;
                batch.revision = last;
                return batch;
            }
            last = record.revision();
            if wanted(record) {
                bytes += record.size();
                batch.records.push(record.signed());
            }
        }
        batch
    }

    /// The next records of a scope behind `walked`, and where to go on; `None` when that was the last.
    pub fn walk(
        &self,
        scope: &Scope,
        walked: Option<&Walked>,
        limit: Limit,
        wanted: impl Fn(&Record) -> bool,
    ) -> (Vec<Signed>, Option<Walked>) {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let first = Place { namespace: scope.text(), key: "", cluster: "" };
        let from: Bound<&dyn KeyView> = match walked {
            Some(Walked(record)) => Bound::Excluded(record),
            None => Bound::Included(&first),
        };
        for ByKey(record) in self.records.range::<dyn KeyView, _>((from, Bound::Unbounded)) {
            if record.namespace_text() != scope.text() {
                break;
            }
            if wanted(record) {
                bytes += record.size();
                records.push(record.signed());
                if records.len() >= limit.records || bytes >= limit.bytes {
                    return (records, Some(Walked(record.clone())));
                }
            }
        }
        (records, None)
    }

    /// Whether heads say something about these namespaces, or about the cluster itself, that was not so at `cursor`. Who
    /// hears nothing of the other namespaces has no use for a word on them.
    #[must_use]
    pub fn heads_matter(&self, cluster: &ClusterName, cursor: Revision, interest: &BTreeSet<Namespace>) -> bool {
        self.heads.get(cluster).is_none_or(|heads| heads.matter(cursor, interest))
    }

    fn count(&mut self, record: &Record, added: bool) {
        let usage = self.usage.entry(record.cluster().clone()).or_default();
        let step = |number: &mut usize, by: usize| {
            *number = if added { number.saturating_add(by) } else { number.saturating_sub(by) };
        };
        step(&mut usage.records, 1);
        step(&mut usage.bytes, record.size());
        step(&mut usage.exports, usize::from(record.is_live_export()));
        step(&mut usage.withdrawals, usize::from(record.is_withdrawn()));
        if *usage == Usage::default() {
            self.usage.remove(record.cluster());
        }
        if let Some(namespace) = record.namespace() {
            let namespaces = self.namespaces.entry(record.cluster().clone()).or_default();
            let count = namespaces.entry(namespace.clone()).or_default();
            step(count, 1);
            namespaces.retain(|_, count| *count > 0);
            if namespaces.is_empty() {
                self.namespaces.remove(record.cluster());
            }
        }
    }

    fn sweep(&mut self) {
        if self.replaced >= REPLACED_LEAST.max(self.log.len() / REPLACED_SHARE) {
            self.log.retain(|record| !record.is_replaced());
            self.replaced = 0;
            self.names.sweep();
        }
    }
}

#[cfg(test)]
mod tests;
