//! Writes what [`admission`](crate::admission) plans: one transaction a message, fenced by the session's epoch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use federation::ClusterName;
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::{PublishResult, Refusal};
use federation_api::record::v1::Signed;
use federation_api::verify::VerifiedMember;
use federation_store::{Committed, LeaseId, Revision, Store, StoreError, Transaction, layout};
use tracing::warn;

use crate::admission::{Epoch, Offer, Plan, fitting, plan};
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::quota::{Bucket, Quota};

/// How long a transaction that lost against another waits for the cache before it looks again.
const CATCH_UP: Duration = Duration::from_millis(50);
/// How often it looks again before the session is told to come back.
const ATTEMPTS: usize = 100;
/// When records come again that found the store full: anything from this to twice as much, so that clusters do not all
/// come at once.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(5);

/// The revision of a cluster's epoch; 0 when there never was one.
///
/// # Errors
/// The store's.
pub(crate) async fn epoch_revision<S: Store>(store: &S, cluster: &ClusterName) -> Result<Revision, StoreError> {
    Ok(store.get(&layout::epoch(cluster.as_str())).await?.map_or(0, |entry| entry.modified))
}

/// Takes the next epoch of a cluster: older sessions of it can publish no more. The cluster's leased key is put with it.
/// With `after` the epoch before must still be that of this revision; `None` says that another was taken since.
///
/// # Errors
/// The store's.
pub async fn take_epoch<S: Store>(
    store: &S,
    cluster: &ClusterName,
    presence: Vec<u8>,
    lease: LeaseId,
    after: Option<Revision>,
) -> Result<Option<Epoch>, StoreError> {
    let key = layout::epoch(cluster.as_str());
    loop {
        let current = store.get(&key).await?;
        if after.is_some_and(|after| current.as_ref().map_or(0, |entry| entry.modified) != after) {
            return Ok(None);
        }
        let number =
            current.as_ref().and_then(|entry| entry.value.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes);
        let transaction = Transaction::new()
            .expecting(&key, current.map_or(0, |entry| entry.modified))
            .put(&key, (number + 1).to_be_bytes().to_vec())
            .put_leased(layout::alive(cluster.as_str()), presence.clone(), lease);
        if let Committed::Done(modified) = store.commit(transaction).await? {
            return Ok(Some(Epoch { key, modified, number: number + 1 }));
        }
    }
}

/// The store takes nothing; the same may come again after a while.
fn no_space() -> Refusal {
    let pause = rand::random_range(NO_SPACE_PAUSE..NO_SPACE_PAUSE * 2);
    Refusal {
        reason: Reason::NoSpace.into(),
        detail: "the federation's store is full: its operator must make room".to_owned(),
        retry_after_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX).max(1),
    }
}

/// Writes records for members.
#[derive(Debug, Clone)]
pub struct Publisher<S> {
    store: S,
    cache: Cache,
    quota: Quota,
    metrics: Metrics,
    /// How fast each cluster has published lately. One entry a member that ever published here.
    buckets: Arc<Mutex<HashMap<ClusterName, Bucket>>>,
}

impl<S: Store> Publisher<S> {
    /// Writes to `store`, which `cache` follows.
    pub fn new(store: S, cache: Cache, quota: Quota, metrics: Metrics) -> Self {
        Self { store, cache, quota, metrics, buckets: Arc::default() }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The limits that sessions announce.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Stores records of `member`, or says of each why not, in the order in which they came.
    ///
    /// # Errors
    /// The store's: whether records are there is unknown, and the session must be opened again.
    pub async fn publish(
        &self,
        member: &VerifiedMember,
        epoch: Option<&Epoch>,
        records: Vec<Signed>,
    ) -> Result<Vec<PublishResult>, StoreError> {
        let started = Instant::now();
        let mut results = Vec::with_capacity(records.len());
        let mut offers: Vec<_> =
            records.into_iter().map(|signed| Offer::examine(member, &self.quota, signed)).collect();
        while !offers.is_empty() {
            let rest = offers.split_off(fitting(&offers));
            results.extend(self.write(member, epoch, &offers).await?);
            offers = rest;
        }
        self.metrics.published(&results, started.elapsed());
        Ok(results)
    }

    /// The answers to records for which the store has no room: they may come again.
    pub(crate) fn refuse_for_space(&self, member: &VerifiedMember, records: Vec<Signed>) -> Vec<PublishResult> {
        let examine = |signed| Offer::examine(member, &self.quota, signed);
        let offers: Vec<_> = records.into_iter().map(examine).collect();
        let results = Plan::refused(&offers, &no_space()).results(&offers, 0);
        self.metrics.published(&results, Duration::ZERO);
        results
    }

    /// As [`publish`](Self::publish), for clients that would take a refusal for now for the last word: such records are
    /// offered again here, for as long as the caller waits.
    ///
    /// # Errors
    /// The store's.
    pub async fn publish_at_last(
        &self,
        member: &VerifiedMember,
        epoch: Option<&Epoch>,
        records: Vec<Signed>,
    ) -> Result<Vec<PublishResult>, StoreError> {
        let mut results = self.publish(member, epoch, records.clone()).await?;
        loop {
            let pause = |result: &PublishResult| result.refusal.as_ref().map_or(0, |refusal| refusal.retry_after_ms);
            let Some(longest) = results.iter().map(pause).max().filter(|longest| *longest > 0) else {
                return Ok(results);
            };
            tokio::time::sleep(Duration::from_millis(longest.into())).await;
            let (places, again): (Vec<_>, Vec<_>) = std::iter::zip(0.., &results)
                .filter(|(_, result)| pause(result) > 0)
                .filter_map(|(place, _): (usize, _)| Some((place, records.get(place)?.clone())))
                .unzip();
            for (place, result) in std::iter::zip(places, self.publish(member, epoch, again).await?) {
                results[place] = result;
            }
        }
    }

    async fn write(
        &self,
        member: &VerifiedMember,
        epoch: Option<&Epoch>,
        offers: &[Offer],
    ) -> Result<Vec<PublishResult>, StoreError> {
        for _ in 0..ATTEMPTS {
            let plan = self.plan(member, epoch, offers);
            let Some(transaction) = plan.transaction.clone() else { return Ok(plan.results(offers, 0)) };
            let committed = match self.store.commit(transaction).await {
                // The session goes on: what it is told, its heartbeats and its lease need no space.
                Err(StoreError::NoSpace(source)) => {
                    warn!(cluster = %member.cluster(), %source, "the store is full: records are refused for now");
                    return Ok(plan.without_space(offers, &no_space()));
                }
                committed => committed?,
            };
            match committed {
                Committed::Done(revision) => {
                    self.charge(member.cluster(), plan.writes);
                    // So that the cluster's next message meets no conflict with this one.
                    self.catch_up(|reached| reached >= revision).await;
                    return Ok(plan.results(offers, revision));
                }
                Committed::Conflict { key } if epoch.is_some_and(|epoch| epoch.key == key) => {
                    return Ok(plan.fenced(offers));
                }
                Committed::Conflict { .. } => {
                    let reached = self.cache.revision();
                    self.catch_up(|now| now > reached).await;
                }
            }
        }
        Err(StoreError::Unavailable("the replica's copy of the store does not follow it".into()))
    }

    /// Counts an epoch among the cluster's updates: to open a session and leave it, over and over, writes as much to the store.
    ///
    /// # Errors
    /// After which time the next one is allowed.
    pub(crate) fn charge_epoch(&self, cluster: &ClusterName) -> Result<(), Duration> {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(cluster.clone()).or_insert_with(|| Bucket::full(&self.quota, now));
        if bucket.free(&self.quota, now) == 0 {
            return Err(bucket.wait(&self.quota, 1));
        }
        bucket.take(1);
        Ok(())
    }

    fn charge(&self, cluster: &ClusterName, writes: usize) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(cluster) {
            bucket.take(writes);
        }
    }

    fn plan(&self, member: &VerifiedMember, epoch: Option<&Epoch>, offers: &[Offer]) -> Plan {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(member.cluster().clone()).or_insert_with(|| Bucket::full(&self.quota, now));
        let free = bucket.free(&self.quota, now);
        let bucket = *bucket;
        drop(buckets);
        let pause = |count| bucket.wait(&self.quota, count);
        self.cache.read(|index| plan(member, epoch, offers, index, &self.quota, free, pause))
    }

    /// Waits for the cache.
    async fn catch_up(&self, enough: impl Fn(Revision) -> bool) {
        let mut changes = self.cache.changes();
        let _ = tokio::time::timeout(CATCH_UP, changes.wait_for(|reached| enough(*reached))).await;
    }
}
