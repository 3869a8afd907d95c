//! Who watches, and how far each has come: at this replica, at the others, and until a while ago.
//!
//! ```text
//!   a watch here ──► here ──share──► watchers/<this replica>/… (lease) ──► elsewhere, at the other replicas
//!        └ ends ──► gone ◄── its key is deleted, or its replica died ────────┘
//! ```

mod share;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use federation_api::trust::v1::{WatchAck, Watcher as WireWatcher};
use federation_store::{Entry, LeaseId, Revision, layout};
use prometheus_client::metrics::gauge::Gauge;
use prost::Message;
use spiffe_identity::SpiffeId;
use tokio::sync::watch;

use crate::tokens::milliseconds;

pub use share::share;

/// Watches that one identity may have open: its replicas, each with one that is not known to be dead yet.
pub const MAX_WATCHES_PER_PEER: usize = 64;
/// How long a watcher that went away is remembered: what it knew may still be in use behind it.
pub const REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// Watchers that went away and are remembered, at most.
const MAX_GONE: usize = 1_000;
/// Names of pending proxies that are kept of an acknowledgement, and the bytes of each.
const MAX_PENDING: (usize, usize) = (100, 256);
/// The longest name of a watcher's replica.
const MAX_REPLICA: usize = 128;

/// One watcher as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// Who it is.
    pub peer: SpiffeId,
    /// Which of its replicas; empty when it does not say.
    pub replica: String,
    /// Since when.
    pub since: SystemTime,
    /// The epoch it was told last.
    pub told: Revision,
    /// What it acknowledged last.
    pub acknowledged: WatchAck,
}

impl Watcher {
    fn to_wire(&self) -> WireWatcher {
        WireWatcher {
            identity: self.peer.to_string(),
            replica: self.replica.clone(),
            acknowledged: self.acknowledged.epoch,
            pending_proxies: self.acknowledged.pending_proxies.clone(),
            pending_count: self.acknowledged.pending_count,
            connected_count: self.acknowledged.connected_count,
            connected: true,
            since_ms: milliseconds(self.since),
        }
    }
}

/// All watchers. Clones share them.
#[derive(Debug, Clone)]
pub struct Watchers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Below which this replica's watches are shared.
    prefix: String,
    replica: String,
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
    count: Gauge,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    here: BTreeMap<u64, Watcher>,
    /// By the key that shares it.
    elsewhere: BTreeMap<String, WireWatcher>,
    /// By identity and replica.
    gone: BTreeMap<(String, String), WireWatcher>,
    lease: Option<LeaseId>,
}

/// One watcher's place in the table, given back on drop.
#[derive(Debug)]
pub struct Watching {
    watchers: Watchers,
    key: u64,
}

impl Watchers {
    /// Nobody yet; `replica` is this service's own name among its replicas, `count` says how many watch here.
    #[must_use]
    pub fn new(replica: &str, count: Gauge) -> Self {
        Self(Arc::new(Inner {
            prefix: format!("{}{replica}/", layout::WATCHERS),
            replica: replica.to_owned(),
            table: Mutex::default(),
            changed: watch::Sender::new(0),
            count,
        }))
    }

    /// Everybody who watches here now.
    #[must_use]
    pub fn here(&self) -> Vec<Watcher> {
        self.with(|table| table.here.values().cloned().collect())
    }

    /// Everybody who watches at any replica, and who did until a while ago.
    #[must_use]
    pub fn everywhere(&self, now: SystemTime) -> Vec<WireWatcher> {
        let oldest = milliseconds(now.checked_sub(REMEMBERED).unwrap_or(SystemTime::UNIX_EPOCH));
        self.with(|table| {
            table.gone.retain(|_, watcher| watcher.since_ms >= oldest);
            let here = table.here.values().map(Watcher::to_wire);
            let mut live: Vec<_> = here.chain(table.elsewhere.values().cloned()).collect();
            leave_out_replaced(&mut live);
            let is_back = |gone: &WireWatcher| {
                live.iter().any(|live| (&live.identity, &live.replica) == (&gone.identity, &gone.replica))
            };
            let gone: Vec<_> = table.gone.values().filter(|gone| !is_back(gone)).cloned().collect();
            live.extend(gone);
            live
        })
    }

    /// Counts the changes to who watches and what they have acknowledged, here and elsewhere.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Takes in another watch of `peer`; `None` when it has [`MAX_WATCHES_PER_PEER`] already.
    #[must_use]
    pub fn add(&self, peer: &SpiffeId) -> Option<Watching> {
        let acknowledged = WatchAck::default();
        let (replica, since) = (String::new(), SystemTime::now());
        let watcher = Watcher { peer: peer.clone(), replica, since, told: 0, acknowledged };
        self.change(|table| {
            if table.here.values().filter(|watcher| watcher.peer == *peer).count() >= MAX_WATCHES_PER_PEER {
                return None;
            }
            table.next += 1;
            table.here.insert(table.next, watcher);
            self.0.count.inc();
            Some(Watching { watchers: self.clone(), key: table.next })
        })
    }

    /// What the store says of watches at other replicas.
    pub fn heard(&self, put: &[Entry], deleted: &[String]) {
        let foreign = |key: &str| key.starts_with(layout::WATCHERS) && !key.starts_with(&self.0.prefix);
        let put: Vec<_> = put.iter().filter(|entry| foreign(&entry.key)).collect();
        let deleted: Vec<_> = deleted.iter().filter(|key| foreign(key)).collect();
        if put.is_empty() && deleted.is_empty() {
            return;
        }
        let now = milliseconds(SystemTime::now());
        self.change(|table| {
            for entry in put {
                if let Ok(watcher) = WireWatcher::decode(entry.value.clone()) {
                    table.elsewhere.insert(entry.key.clone(), watcher);
                }
            }
            for key in deleted {
                if let Some(watcher) = table.elsewhere.remove(key) {
                    table.remember(watcher, now);
                }
            }
        });
    }

    /// All that the store says now: what it does not say any more is gone.
    pub fn heard_all(&self, entries: &[Entry]) {
        let missing = self.with(|table| {
            let known = table.elsewhere.keys();
            known.filter(|key| !entries.iter().any(|entry| entry.key == **key)).cloned().collect::<Vec<_>>()
        });
        self.heard(entries, &missing);
    }

    fn with<T>(&self, look: impl FnOnce(&mut Table) -> T) -> T {
        look(&mut self.0.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let changed = self.with(change);
        self.0.changed.send_modify(|revision| *revision += 1);
        changed
    }
}

/// Of several watches of one named replica only the last counts: the others are those of connections, or of replicas of
/// this service, that are not known to be dead yet.
fn leave_out_replaced(live: &mut Vec<WireWatcher>) {
    let mut newest: BTreeMap<(String, String), i64> = BTreeMap::new();
    for watcher in live.iter().filter(|watcher| !watcher.replica.is_empty()) {
        let since = newest.entry((watcher.identity.clone(), watcher.replica.clone())).or_insert(watcher.since_ms);
        *since = watcher.since_ms.max(*since);
    }
    live.retain(|watcher| {
        let newest = newest.get(&(watcher.identity.clone(), watcher.replica.clone()));
        newest.is_none_or(|newest| watcher.since_ms >= *newest)
    });
}

impl Table {
    fn remember(&mut self, mut watcher: WireWatcher, now: i64) {
        watcher.connected = false;
        watcher.since_ms = now;
        self.gone.insert((watcher.identity.clone(), watcher.replica.clone()), watcher);
        if self.gone.len() > MAX_GONE {
            let oldest = self.gone.iter().min_by_key(|(_, watcher)| watcher.since_ms).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.gone.remove(&key));
        }
    }
}

impl Watching {
    /// Which of its replicas the watcher says it is.
    pub fn named(&self, replica: &str) {
        let replica = replica.chars().filter(|it| !it.is_control()).take(MAX_REPLICA).collect();
        self.update(|watcher| watcher.replica = replica);
    }

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
        self.watchers.change(|table| table.here.get_mut(&self.key).map(change));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let now = milliseconds(SystemTime::now());
        self.watchers.change(|table| {
            if let Some(watcher) = table.here.remove(&self.key) {
                table.remember(watcher.to_wire(), now);
            }
        });
        self.watchers.0.count.dec();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use bytes::Bytes;

    use super::*;

    fn east() -> SpiffeId {
        "spiffe://mesh.example/cluster/east/control-plane".parse().unwrap()
    }

    fn watchers() -> Watchers {
        Watchers::new("a", Gauge::default())
    }

    fn shared(watcher: &Watcher, key: &str) -> Entry {
        let value = Bytes::from(watcher.to_wire().encode_to_vec());
        Entry { key: key.to_owned(), value, created: 1, modified: 1, lease: None }
    }

    #[test]
    fn a_peer_has_a_bounded_number_of_watches_and_gets_a_place_back() {
        let watchers = watchers();
        let mut open: Vec<_> = (0..MAX_WATCHES_PER_PEER).map(|_| watchers.add(&east()).unwrap()).collect();
        assert!(watchers.add(&east()).is_none());
        let west = "spiffe://mesh.example/cluster/west/control-plane".parse().unwrap();
        assert!(watchers.add(&west).is_some(), "another peer has its own bound");
        open.pop();
        assert!(watchers.add(&east()).is_some());
    }

    #[test]
    fn an_acknowledgement_counts_as_far_as_the_watcher_was_told_and_is_bounded() {
        let watchers = watchers();
        let watching = watchers.add(&east()).unwrap();
        watching.told(5);
        let pending_proxies = std::iter::once("x".repeat(1000)).chain((0..1000).map(|n| n.to_string())).collect();
        watching.acknowledge(WatchAck { epoch: 5, pending_proxies, ..WatchAck::default() });
        watching.acknowledge(WatchAck { epoch: 6, ..WatchAck::default() });
        let acknowledged = watchers.here().remove(0).acknowledged;
        assert_eq!((acknowledged.epoch, acknowledged.pending_proxies.len()), (5, 100));
        assert_eq!(acknowledged.pending_proxies[0], "0");
        drop(watching);
        assert_eq!(watchers.here(), []);
    }

    #[test]
    fn who_went_away_is_remembered_for_a_while_and_forgotten_when_it_is_back() {
        let (watchers, now) = (watchers(), SystemTime::now());
        let watching = watchers.add(&east()).unwrap();
        watching.named("east-0");
        assert!(watchers.everywhere(now)[0].connected);
        drop(watching);
        let gone = watchers.everywhere(now);
        assert_eq!((gone.len(), gone[0].connected, gone[0].replica.as_str()), (1, false, "east-0"));
        let other = watchers.add(&east()).unwrap();
        other.named("east-1");
        assert_eq!(watchers.everywhere(now).len(), 2, "another replica is another watcher");
        other.named("east-0");
        assert_eq!(watchers.everywhere(now).len(), 1);
        drop(other);
        assert_eq!(watchers.everywhere(now).len(), 1);
        assert_eq!(watchers.everywhere(now + REMEMBERED + Duration::from_secs(5)), []);
    }

    #[test]
    fn another_replicas_watchers_count_until_their_keys_are_gone() {
        let (here, there, now) = (watchers(), Watchers::new("b", Gauge::default()), SystemTime::now());
        let watching = there.add(&east()).unwrap();
        watching.told(7);
        watching.acknowledge(WatchAck { epoch: 7, ..WatchAck::default() });
        let entry = shared(&there.here()[0], "watchers/b/0");
        here.heard(std::slice::from_ref(&entry), &[]);
        there.heard(std::slice::from_ref(&entry), &[]);
        assert_eq!(here.everywhere(now)[0].acknowledged, 7);
        assert_eq!(there.everywhere(now).len(), 1, "its own is not counted twice");
        here.heard_all(&[entry]);
        assert!(here.everywhere(now)[0].connected);
        here.heard_all(&[]);
        assert!(!here.everywhere(now)[0].connected);
    }

    #[test]
    fn of_two_watches_of_a_named_replica_the_later_counts() {
        let (here, now) = (watchers(), SystemTime::now());
        let mut stale = Watcher {
            peer: east(),
            replica: "east-0".to_owned(),
            since: now - Duration::from_secs(60),
            told: 0,
            acknowledged: WatchAck::default(),
        };
        here.heard(&[shared(&stale, "watchers/dead/0")], &[]);
        let watching = here.add(&east()).unwrap();
        assert_eq!(here.everywhere(now).len(), 2, "an unnamed one may be another");
        watching.named("east-0");
        assert_eq!(here.everywhere(now).len(), 1);
        stale.replica = "east-1".to_owned();
        here.heard(&[shared(&stale, "watchers/dead/0")], &[]);
        assert_eq!(here.everywhere(now).len(), 2);
    }
}
