//! What may be deleted, and when: evicted and departed memberships' records at once, withdrawals once nobody needs them.
//!
//! A withdrawal, or a record of a membership that was replaced, is needed for two things:
//!
//! 1. *to tell* receivers that hold the old value. The mark `collected` takes this over: whoever has not come as far as
//!    the last revision that was deleted gets a snapshot instead of what changed, and lets go of what the snapshot lacks
//!    since the owner's heads agree. So nothing is deleted before the stored heads are newer than it *and* their digest
//!    agrees with what is live here. That it is old enough ([`AGE`]) only keeps snapshots rare: a cluster that uses
//!    half of its quota for withdrawals has no such grace.
//! 2. *to refuse* an old value that is said again. The stored heads take this over: [`admission`](crate::admission) takes
//!    no record of an absent key that is not above them.
//!
//! Every deletion is a transaction that expects the records, the heads and the mark as they were judged, so replicas may
//! collect side by side.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use federation::ClusterName;
use federation_api::record::v1::{Statement, statement};
use federation_api::records::{Head, HeadScope};
use federation_store::{Committed, Revision, Store, StoreError, Transaction, layout};
use prost::Message;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::cache::Cache;
use crate::index::{Index, Kind, Record};
use crate::members::Members;
use crate::metrics::Metrics;
use crate::quota::Quota;

/// How long withdrawals are kept: clusters that were away for less resume without a snapshot.
pub const AGE: Duration = Duration::from_secs(3600);
/// How often it is looked for what may go, besides whenever memberships change.
const EVERY: Duration = Duration::from_secs(30);
/// Records deleted in one transaction: room for the heads and the mark.
const MOST: usize = federation_store::MAX_OPERATIONS - 2;

/// Which revisions are old, learnt by looking at the clock now and then: no record need remember its time.
#[derive(Debug, Default)]
pub struct Ages {
    seen: VecDeque<(Instant, Revision)>,
}

impl Ages {
    /// The store is at `revision`.
    pub fn note(&mut self, now: Instant, revision: Revision) {
        if self.seen.back().is_none_or(|(_, last)| *last < revision) {
            self.seen.push_back((now, revision));
        }
    }

    /// The last revision that is at least so old.
    pub fn older_than(&mut self, now: Instant, age: Duration) -> Revision {
        let old = |(seen, _): &(Instant, Revision)| now.saturating_duration_since(*seen) >= age;
        while self.seen.get(1).is_some_and(old) {
            self.seen.pop_front();
        }
        self.seen.front().filter(|first| old(first)).map_or(0, |(_, revision)| *revision)
    }
}

/// One deletion.
#[derive(Debug, PartialEq, Eq)]
pub struct Collection {
    /// Whose records.
    pub cluster: ClusterName,
    /// How many.
    pub count: usize,
    /// To be committed.
    pub transaction: Transaction,
}

/// What may be deleted now, a transaction a cluster; what is more than one holds comes next time. `mark` is the entry
/// `collected` as it was read: its revision, or 0.
#[must_use]
pub fn plan(
    index: &Index,
    void: impl Fn(&ClusterName, u64) -> bool,
    old: Revision,
    quota: &Quota,
    mark: Revision,
) -> Vec<Collection> {
    let mut clusters: BTreeMap<&ClusterName, Vec<&Record>> = BTreeMap::new();
    for record in index.records() {
        clusters.entry(record.cluster()).or_default().push(record);
    }
    let mut collections = Vec::new();
    for (cluster, records) in clusters {
        let voided: Vec<_> = records.iter().copied().filter(|record| void(cluster, record.position().0)).collect();
        let (gone, heads) = if voided.is_empty() {
            let heads = records.iter().copied().find(|record| record.kind() == Kind::Heads);
            let pressed = index.usage(cluster).withdrawals > quota.records / 2;
            (unneeded(&records, heads, if pressed { Revision::MAX } else { old }), heads)
        } else {
            (voided, None)
        };
        collections.extend(collection(cluster, &gone, heads, mark, index.collected()));
    }
    collections
}

fn collection(
    cluster: &ClusterName,
    gone: &[&Record],
    heads: Option<&Record>,
    mark: Revision,
    collected: Revision,
) -> Option<Collection> {
    let gone = &gone[..gone.len().min(MOST)];
    let last = gone.iter().map(|record| record.revision()).max()?.max(collected);
    let mut transaction =
        Transaction::new().expecting(layout::COLLECTED, mark).put(layout::COLLECTED, last.to_be_bytes().to_vec());
    if let Some(heads) = heads {
        transaction = transaction.expecting(heads.store_key(), heads.revision());
    }
    for record in gone {
        transaction = transaction.expecting(record.store_key(), record.revision()).delete(record.store_key());
    }
    Some(Collection { cluster: cluster.clone(), count: gone.len(), transaction })
}

/// Withdrawals, and live records of memberships that were replaced, that the owner's heads speak for.
fn unneeded<'a>(records: &[&'a Record], heads: Option<&Record>, old: Revision) -> Vec<&'a Record> {
    let Some(heads) = heads else { return Vec::new() };
    let position = heads.position();
    let over = |record: &Record| record.is_withdrawn() || record.position().0 < position.0;
    let candidate = |record: &&&'a Record| {
        over(record) && record.kind() != Kind::Heads && record.position() < position && record.revision() <= old
    };
    let candidates: Vec<_> = records.iter().filter(candidate).copied().collect();
    if candidates.is_empty() || !agrees(records, heads) {
        return Vec::new();
    }
    candidates
}

/// Whether the heads list exactly what is live here of their own membership.
fn agrees(records: &[&Record], heads: &Record) -> bool {
    let Ok(statement) = Statement::decode(heads.signed().message) else { return false };
    let Some(statement::Payload::Heads(said)) = statement.payload else { return false };
    let mut live: BTreeMap<String, (HeadScope, Vec<_>)> = BTreeMap::new();
    for record in records {
        if record.is_withdrawn() || record.position().0 != heads.position().0 {
            continue;
        }
        let Ok(key) = record.key().parse() else { return false };
        let Some(scope) = HeadScope::of(&key) else { continue };
        live.entry(scope.to_string()).or_insert_with(|| (scope, Vec::new())).1.push((key, record.position().1));
    }
    said.heads.len() == live.len()
        && said.heads.iter().all(|head| {
            live.get(&head.scope).is_some_and(|(scope, lines)| {
                let own = Head::of(scope.clone(), lines.iter().map(|(key, sequence)| (key, *sequence)));
                own.count == head.count && own.digest.as_slice() == head.digest.as_slice()
            })
        })
}

/// Collects for as long as the replica runs.
pub async fn run<S: Store>(
    store: S,
    cache: Cache,
    mut members: watch::Receiver<Arc<Members>>,
    quota: Quota,
    metrics: Metrics,
) {
    let mut ages = Ages::default();
    loop {
        let now = Instant::now();
        ages.note(now, cache.revision());
        let old = ages.older_than(now, AGE);
        let believed = members.borrow_and_update().clone();
        if let Err(error) = collect(&store, &cache, &believed, old, &quota, &metrics).await {
            warn!(%error, "nothing is collected for now");
        }
        // Evictions and departures are acted on at once; when trust-bundle's state is no longer followed, time goes on.
        if let Ok(Err(_)) = tokio::time::timeout(EVERY, members.changed()).await {
            return;
        }
    }
}

async fn collect<S: Store>(
    store: &S,
    cache: &Cache,
    members: &Members,
    old: Revision,
    quota: &Quota,
    metrics: &Metrics,
) -> Result<(), StoreError> {
    loop {
        let mark = store.get(layout::COLLECTED).await?.map_or(0, |entry| entry.modified);
        let planned =
            cache.read(|index| plan(index, |cluster, generation| members.void(cluster, generation), old, quota, mark));
        let Some(collection) = planned.into_iter().next() else { return Ok(()) };
        let reached = match store.commit(collection.transaction).await? {
            Committed::Done(revision) => {
                info!(cluster = %collection.cluster, records = collection.count, "collected");
                metrics.collected(collection.count);
                revision
            }
            // Another replica was first, or the cluster spoke.
            Committed::Conflict { .. } => cache.revision() + 1,
        };
        let mut changes = cache.changes();
        let _ = tokio::time::timeout(EVERY, changes.wait_for(|now| *now >= reached)).await;
    }
}
