//! The leased keys of this replica's sessions, on one lease.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use federation::ClusterName;
use federation_api::federation::v1::Presence as Value;
use federation_store::{LeaseId, Store, StoreError, Transaction, layout};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::warn;

use crate::admission::Epoch;
use crate::liveness::now_ms;

/// The lease is kept alive so often within its time: two calls may fail.
const CALLS: u32 = 3;
/// How long opening a session waits for the replica's first lease.
const LEASE_DEADLINE: Duration = Duration::from_secs(3);
/// Ended sessions that wait to be taken note of.
const ENDED: usize = 1024;

/// The cluster's publishing session here, by its epoch.
type Held = HashMap<ClusterName, (Epoch, Vec<u8>)>;

/// Puts and gives up leased keys.
#[derive(Debug, Clone)]
pub struct Presence {
    replica: Arc<str>,
    lease: watch::Receiver<Option<LeaseId>>,
    /// There is no lease since the store has no space for one.
    full: Arc<AtomicBool>,
    held: Arc<Mutex<Held>>,
    ended: mpsc::Sender<(ClusterName, u64, bool)>,
}

/// Keeps the lease; [`run`](Self::run) until the replica ends.
#[derive(Debug)]
pub struct PresenceKeeper<S> {
    store: S,
    ttl: Duration,
    lease: watch::Sender<Option<LeaseId>>,
    full: Arc<AtomicBool>,
    held: Arc<Mutex<Held>>,
    ended: mpsc::Receiver<(ClusterName, u64, bool)>,
}

/// For the replica's sessions, which may be silent for `ttl`.
pub fn presence<S: Store>(store: S, replica: &str, ttl: Duration) -> (Presence, PresenceKeeper<S>) {
    let (lease, leases) = watch::channel(None);
    let (ended, receiver) = mpsc::channel(ENDED);
    let (held, full) = (Arc::default(), Arc::default());
    let presence =
        Presence { replica: replica.into(), lease: leases, full: Arc::clone(&full), held: Arc::clone(&held), ended };
    (presence, PresenceKeeper { store, ttl, lease, full, held, ended: receiver })
}

impl Presence {
    /// The lease to put a cluster's key under, and the value.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while there is no lease, [`StoreError::NoSpace`] when the store is too full to grant one.
    pub async fn offer(&self) -> Result<(LeaseId, Vec<u8>), StoreError> {
        let mut lease = self.lease.clone();
        let none = |full| match full {
            true => StoreError::NoSpace("the replica is granted no lease".into()),
            false => StoreError::Unavailable("the replica has no lease".into()),
        };
        if lease.borrow().is_none() && self.full.load(Ordering::Relaxed) {
            return Err(none(true));
        }
        let found = tokio::time::timeout(LEASE_DEADLINE, lease.wait_for(Option::is_some)).await;
        let lease = found.ok().and_then(Result::ok).and_then(|lease| *lease);
        let lease = lease.ok_or_else(|| none(self.full.load(Ordering::Relaxed)))?;
        Ok((lease, Value { since_ms: now_ms(), replica: self.replica.to_string() }.encode_to_vec()))
    }

    /// The cluster's key was put with this epoch.
    pub fn hold(&self, cluster: &ClusterName, epoch: &Epoch, value: Vec<u8>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(cluster.clone(), (epoch.clone(), value));
    }

    /// The session of this epoch ended. A session that ended for its silence has had its grace.
    pub async fn release(&self, cluster: &ClusterName, epoch: u64, at_once: bool) {
        // When the keeper is gone the lease runs out by itself.
        let _ = self.ended.send((cluster.clone(), epoch, at_once)).await;
    }
}

impl<S: Store> PresenceKeeper<S> {
    /// Keeps the lease alive and gives up the keys of sessions that ended.
    pub async fn run(mut self) {
        let mut calls = interval(self.ttl / CALLS);
        calls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut grace: BTreeSet<(Instant, ClusterName, u64)> = BTreeSet::new();
        loop {
            let due = grace.first().map(|(at, ..)| *at);
            tokio::select! {
                _ = calls.tick() => {
                    if let Err(error) = self.keep().await {
                        warn!(%error, "the replica's lease is not kept alive");
                    }
                }
                ended = self.ended.recv() => {
                    let Some((cluster, epoch, at_once)) = ended else { return };
                    let wait = if at_once { Duration::ZERO } else { self.ttl };
                    grace.insert((Instant::now() + wait, cluster, epoch));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some((_, cluster, epoch)) = grace.pop_first()
                        && let Err(error) = self.give_up(&cluster, epoch).await
                    {
                        warn!(%cluster, %error, "a leased key is not given up");
                        grace.insert((Instant::now() + self.ttl, cluster, epoch));
                    }
                }
            }
        }
    }

    async fn keep(&mut self) -> Result<(), StoreError> {
        let lease = *self.lease.borrow();
        if let Some(lease) = lease {
            match self.store.keep_alive(lease).await {
                Err(StoreError::LeaseNotFound { .. }) => {
                    self.lease.send_replace(None);
                }
                kept => return kept,
            }
        }
        let granted = self.store.grant_lease(self.ttl).await;
        self.full.store(matches!(granted, Err(StoreError::NoSpace(_))), Ordering::Relaxed);
        let lease = granted?;
        self.lease.send_replace(Some(lease));
        let held: Vec<_> = {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.iter().map(|(cluster, (epoch, value))| (cluster.clone(), epoch.clone(), value.clone())).collect()
        };
        for (cluster, epoch, value) in held {
            let put = Transaction::new().expecting(&epoch.key, epoch.modified);
            // When it conflicts, a newer session has put the key.
            let _ = self.store.commit(put.put_leased(layout::alive(cluster.as_str()), value, lease)).await?;
        }
        Ok(())
    }

    /// Deletes the key, unless a newer session has put it since: that has taken another epoch.
    async fn give_up(&mut self, cluster: &ClusterName, number: u64) -> Result<(), StoreError> {
        let epoch = {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.get(cluster).filter(|(epoch, _)| epoch.number == number).map(|(epoch, _)| epoch.clone())
        };
        let Some(epoch) = epoch else { return Ok(()) };
        let delete = Transaction::new().expecting(&epoch.key, epoch.modified).delete(layout::alive(cluster.as_str()));
        let _ = self.store.commit(delete).await?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.get(cluster).is_some_and(|(epoch, _)| epoch.number == number) {
            held.remove(cluster);
        }
        Ok(())
    }
}
