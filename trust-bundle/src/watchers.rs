//! Who watches, and how far each has come.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use federation_api::trust::v1::WatchAck;
use federation_store::Revision;
use prometheus_client::metrics::gauge::Gauge;
use spiffe_identity::SpiffeId;

/// Watches that one identity may have open: its replicas, each with one that is not known to be dead yet.
pub const MAX_WATCHES_PER_PEER: usize = 64;
/// Names of pending proxies that are kept of an acknowledgement, and the bytes of each.
const MAX_PENDING: (usize, usize) = (100, 256);

/// One watcher as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// Who it is.
    pub peer: SpiffeId,
    /// The epoch it was told last.
    pub told: Revision,
    /// What it acknowledged last.
    pub acknowledged: WatchAck,
}

/// All watchers. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    next: Arc<AtomicU64>,
    table: Arc<Mutex<BTreeMap<u64, Watcher>>>,
    count: Gauge,
}

/// One watcher's place in the table, given back on drop.
#[derive(Debug)]
pub struct Watching {
    watchers: Watchers,
    key: u64,
}

impl Watchers {
    /// Nobody yet; `count` says how many they are.
    #[must_use]
    pub fn new(count: Gauge) -> Self {
        Self { count, ..Self::default() }
    }

    /// Everybody who watches now.
    #[must_use]
    pub fn list(&self) -> Vec<Watcher> {
        self.with(|table| table.values().cloned().collect())
    }

    /// Takes in another watch of `peer`; `None` when it has [`MAX_WATCHES_PER_PEER`] already.
    #[must_use]
    pub fn add(&self, peer: &SpiffeId) -> Option<Watching> {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let watcher = Watcher { peer: peer.clone(), told: 0, acknowledged: WatchAck::default() };
        self.with(|table| {
            if table.values().filter(|watcher| watcher.peer == *peer).count() >= MAX_WATCHES_PER_PEER {
                return None;
            }
            table.insert(key, watcher);
            self.count.inc();
            Some(Watching { watchers: self.clone(), key })
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<u64, Watcher>) -> T) -> T {
        look(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watching {
    /// The watcher was told everything up to `epoch`.
    pub fn told(&self, epoch: Revision) {
        self.update(|watcher| watcher.told = epoch);
    }

    /// The watcher acknowledges. What it was never told it cannot have applied.
    pub fn acknowledge(&self, mut ack: WatchAck) {
        let (names, bytes) = MAX_PENDING;
        ack.pending_proxies.retain(|name| name.len() <= bytes);
        ack.pending_proxies.truncate(names);
        self.update(|watcher| {
            if ack.epoch <= watcher.told {
                watcher.acknowledged = ack;
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut Watcher)) {
        self.watchers.with(|table| table.get_mut(&self.key).map(change));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watchers.with(|table| table.remove(&self.key));
        self.watchers.count.dec();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn east() -> SpiffeId {
        "spiffe://mesh.example/cluster/east/control-plane".parse().unwrap()
    }

    #[test]
    fn a_peer_has_a_bounded_number_of_watches_and_gets_a_place_back() {
        let watchers = Watchers::default();
        let mut open: Vec<_> = (0..MAX_WATCHES_PER_PEER).map(|_| watchers.add(&east()).unwrap()).collect();
        assert!(watchers.add(&east()).is_none());
        let west = "spiffe://mesh.example/cluster/west/control-plane".parse().unwrap();
        assert!(watchers.add(&west).is_some(), "another peer has its own bound");
        open.pop();
        assert!(watchers.add(&east()).is_some());
    }

    #[test]
    fn an_acknowledgement_counts_as_far_as_the_watcher_was_told_and_is_bounded() {
        let watchers = Watchers::default();
        let watching = watchers.add(&east()).unwrap();
        watching.told(5);
        let pending_proxies = std::iter::once("x".repeat(1000)).chain((0..1000).map(|n| n.to_string())).collect();
        watching.acknowledge(WatchAck { epoch: 5, pending_proxies, ..WatchAck::default() });
        watching.acknowledge(WatchAck { epoch: 6, ..WatchAck::default() });
        let acknowledged = watchers.list().remove(0).acknowledged;
        assert_eq!((acknowledged.epoch, acknowledged.pending_proxies.len()), (5, 100));
        assert_eq!(acknowledged.pending_proxies[0], "0");
        drop(watching);
        assert_eq!(watchers.list(), []);
    }
}
