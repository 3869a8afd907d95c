//! Who is connected, apart from what exists: one leased key a cluster. Losing it deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use federation::ClusterName;
use federation_api::federation::v1::ClusterLiveness;
use federation_store::{
    Change, FollowError, Followed, LeaseId, Revision, Snapshot, Store, StoreError, Transaction, follow, layout,
};
use tokio::sync::watch;
use tracing::info;

/// Every cluster that was ever seen by this replica, connected or not.
pub type Table = Arc<BTreeMap<ClusterName, State>>;

/// What is known of a cluster's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Its lease is alive.
    pub connected: bool,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
}

/// Publishes who is connected, and keeps the leases of this replica's sessions.
#[derive(Debug, Clone)]
pub struct Liveness {
    table: Arc<watch::Sender<Table>>,
    applied: Arc<Mutex<BTreeMap<ClusterName, Revision>>>,
}

impl Liveness {
    /// Nobody known yet.
    #[must_use]
    pub fn new() -> Self {
        Self { table: Arc::new(watch::channel(Table::default()).0), applied: Arc::default() }
    }

    /// The table and its changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    /// Remembers what a session of this replica has applied.
    pub fn applied(&self, cluster: &ClusterName, revision: Revision) {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.clone(), revision);
    }

    /// The table as it is told to sessions.
    #[must_use]
    pub fn list(&self) -> Vec<ClusterLiveness> {
        let table = self.table.borrow().clone();
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let list = table.iter().map(|(cluster, state)| ClusterLiveness {
            cluster: cluster.to_string(),
            connected: state.connected,
            since_ms: state.since_ms,
            applied_revision: applied.get(cluster).copied().unwrap_or(0),
        });
        list.collect()
    }

    /// Follows the leased keys.
    ///
    /// # Errors
    /// The store's, when it cannot go on.
    pub async fn follow<S: Store>(&self, store: S) -> Result<(), FollowError> {
        let snapshot = store.snapshot(layout::ALIVE).await?;
        self.replace(&snapshot);
        follow(&store, layout::ALIVE, snapshot.revision, |followed| match followed {
            Followed::Snapshot(snapshot) => self.replace(&snapshot),
            Followed::Batch(batch) => batch.changes.iter().for_each(|change| match change {
                Change::Put(entry) => self.set(&entry.key, true),
                Change::Delete { key, .. } => self.set(key, false),
            }),
        })
        .await
    }

    fn replace(&self, snapshot: &Snapshot) {
        let alive: BTreeSet<_> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
        let known = self.table.borrow().clone();
        for cluster in known.keys().map(|cluster| layout::alive(cluster.as_str())) {
            self.set(&cluster, alive.contains(cluster.as_str()));
        }
        alive.into_iter().for_each(|key| self.set(key, true));
    }

    fn set(&self, key: &str, connected: bool) {
        let Some(cluster) = layout::name_below(layout::ALIVE, key).and_then(|name| ClusterName::parse(name).ok())
        else {
            return;
        };
        self.table.send_if_modified(|table| {
            if table.get(&cluster).is_some_and(|state| state.connected == connected) {
                return false;
            }
            info!(%cluster, connected, "liveness changed");
            Arc::make_mut(table).insert(cluster, State { connected, since_ms: now_ms() });
            true
        });
    }
}

impl Default for Liveness {
    fn default() -> Self {
        Self::new()
    }
}

/// A session's hold on its cluster's leased key.
#[derive(Debug)]
pub struct Alive<S> {
    store: S,
    key: String,
    ttl: Duration,
    lease: Option<LeaseId>,
}

impl<S: Store> Alive<S> {
    /// For a cluster whose session may be silent for `ttl`.
    pub fn new(store: S, cluster: &ClusterName, ttl: Duration) -> Self {
        Self { store, key: layout::alive(cluster.as_str()), ttl, lease: None }
    }

    /// The session was heard.
    ///
    /// # Errors
    /// The store's; the next call tries again.
    pub async fn heard(&mut self) -> Result<(), StoreError> {
        if let Some(lease) = self.lease {
            match self.store.keep_alive(lease).await {
                Err(StoreError::LeaseNotFound { .. }) => self.lease = None,
                kept => return kept,
            }
        }
        let lease = self.store.grant_lease(self.ttl).await?;
        let put = Transaction::new().put_leased(&self.key, now_ms().to_be_bytes().to_vec(), lease);
        // Nothing is expected, so nothing can conflict.
        let _ = self.store.commit(put).await?;
        self.lease = Some(lease);
        Ok(())
    }
}

/// Unix milliseconds.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
