//! Who is connected, apart from what exists: one leased key a cluster. Losing it deletes nothing.
//!
//! The leased keys of all clusters that are connected to a replica hang on the replica's one lease, so keeping them alive
//! costs the store as much for a thousand clusters as for one. A session that ends gives its key up after the grace of
//! three heartbeats, unless another session of the cluster has put it anew meanwhile, here or elsewhere; a replica that
//! dies leaves its lease to run out, by which time its clusters have found another replica.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use federation::ClusterName;
use federation_api::federation::v1::{ClusterLiveness, Presence};
use federation_store::{Revision, layout};
use prost::Message;
use tokio::sync::watch;
use tracing::info;

/// What is known of a cluster's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Its leased key is there.
    pub connected: bool,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
    /// The replica that holds its publishing session, or did last.
    pub replica: String,
    /// The revision that it said to this replica it had applied; 0 when it never said so here.
    pub applied: Revision,
    change: u64,
}

#[derive(Debug, Default)]
struct Table {
    clusters: BTreeMap<ClusterName, State>,
    /// The clusters in the order in which they last changed.
    changes: BTreeMap<u64, ClusterName>,
    change: u64,
}

/// Every cluster that was seen by this replica, connected or not.
#[derive(Debug, Clone, Default)]
pub struct Liveness {
    table: Arc<Mutex<Table>>,
    changed: watch::Sender<u64>,
}

impl Liveness {
    /// Nobody known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Held for a look only.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when the table does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Remembers what a session of this replica has applied.
    pub fn applied(&self, cluster: &ClusterName, revision: Revision) {
        if let Some(state) = self.table().clusters.get_mut(cluster) {
            state.applied = revision;
        }
    }

    /// What changed after `change`, as it is told to sessions, and the last change there is; everything after 0.
    #[must_use]
    pub fn since(&self, change: u64) -> (Vec<ClusterLiveness>, u64) {
        let table = self.table();
        let clusters = table.changes.range(change + 1..).filter_map(|(_, cluster)| {
            let state = table.clusters.get(cluster)?;
            Some(ClusterLiveness {
                cluster: cluster.to_string(),
                connected: state.connected,
                since_ms: state.since_ms,
                applied_revision: state.applied,
            })
        });
        (clusters.collect(), table.change)
    }

    /// The whole table.
    #[must_use]
    pub fn clusters(&self) -> BTreeMap<ClusterName, State> {
        self.table().clusters.clone()
    }

    /// How many are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.table().clusters.values().filter(|state| state.connected).count()
    }

    /// A cluster is no member any more.
    pub fn forget(&self, cluster: &ClusterName) {
        let mut table = self.table();
        if let Some(state) = table.clusters.remove(cluster) {
            table.changes.remove(&state.change);
        }
    }

    /// These leased keys there are, and no others.
    pub fn replace<'a>(&self, alive: impl Iterator<Item = (&'a str, &'a bytes::Bytes)>) {
        let alive: BTreeMap<_, _> = alive.collect();
        let known: Vec<_> = self.table().clusters.keys().map(|cluster| layout::alive(cluster.as_str())).collect();
        known.iter().filter(|key| !alive.contains_key(key.as_str())).for_each(|key| self.lost(key));
        alive.into_iter().for_each(|(key, value)| self.put(key, value));
    }

    /// A leased key was put.
    pub fn put(&self, key: &str, value: &[u8]) {
        // A value of an older replica is no message, and says the same.
        let presence = Presence::decode(value).ok().filter(|presence| presence.since_ms > 0);
        let presence = presence.unwrap_or_else(|| Presence { since_ms: now_ms(), ..Presence::default() });
        self.set(key, true, presence);
    }

    /// A leased key is gone.
    pub fn lost(&self, key: &str) {
        self.set(key, false, Presence { since_ms: now_ms(), ..Presence::default() });
    }

    fn set(&self, key: &str, connected: bool, presence: Presence) {
        let Some(cluster) = layout::name_below(layout::ALIVE, key).and_then(|name| ClusterName::parse(name).ok())
        else {
            return;
        };
        let mut table = self.table();
        let known = table.clusters.get(&cluster);
        if known.is_none() && !connected {
            return;
        }
        if let Some(state) = table.clusters.get_mut(&cluster).filter(|state| state.connected == connected) {
            // It moved to another replica without being lost between.
            if connected {
                state.replica = presence.replica;
            }
            return;
        }
        info!(%cluster, connected, "liveness changed");
        let old = table.clusters.remove(&cluster);
        if let Some(old) = &old {
            table.changes.remove(&old.change);
        }
        table.change += 1;
        let change = table.change;
        let replica =
            if connected { presence.replica } else { old.as_ref().map_or_else(String::new, |old| old.replica.clone()) };
        let applied = old.map_or(0, |old| old.applied);
        let state = State { connected, since_ms: presence.since_ms, replica, applied, change };
        table.clusters.insert(cluster.clone(), state);
        table.changes.insert(change, cluster);
        drop(table);
        self.changed.send_replace(change);
    }
}

/// Unix milliseconds.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
