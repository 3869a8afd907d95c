//! The sessions that are open here, for operators.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use federation::ClusterName;
use serde::Serialize;

use crate::liveness::now_ms;
use crate::protocol::Progress;

/// Sessions of one cluster at once: its control-plane's replicas, and those that are not yet known to be gone.
const PER_CLUSTER: usize = 16;

/// One open session.
#[derive(Clone, Debug)]
struct Open {
    cluster: ClusterName,
    replica: String,
    publisher: bool,
    resumed: bool,
    namespaces: usize,
    since_ms: i64,
    progress: Progress,
    waiting: usize,
}

/// What is told of a session.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionState {
    /// The cluster.
    pub cluster: String,
    /// Its control-plane's replica, as it calls itself.
    pub replica: String,
    /// It publishes for its cluster.
    pub publisher: bool,
    /// It went on where one before had ended.
    pub resumed: bool,
    /// Namespaces it asked for at first.
    pub namespaces: usize,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
    /// What it wants up to this revision was sent.
    pub told_revision: u64,
    /// It said that it had applied everything up to this one.
    pub applied_revision: u64,
    /// For how long it has owed an acknowledgement, milliseconds.
    pub unacknowledged_ms: u64,
    /// Revisions of the store that it was not told of yet.
    pub behind: u64,
    /// A snapshot is on its way.
    pub snapshot: bool,
    /// Answers that wait since it does not read.
    pub answers_waiting: usize,
}

/// The open sessions.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    sessions: Arc<Mutex<BTreeMap<(ClusterName, u64), Open>>>,
}

/// A session's entry, gone when dropped.
#[derive(Debug)]
pub struct Entry {
    registry: Registry,
    key: (ClusterName, u64),
}

impl Registry {
    /// Held for a look only.
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<(ClusterName, u64), Open>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new session; `None` when the cluster has too many.
    #[must_use]
    pub fn open(
        &self,
        cluster: &ClusterName,
        replica: &str,
        publisher: bool,
        resumed: bool,
        namespaces: usize,
    ) -> Option<Entry> {
        let mut sessions = self.sessions();
        let own = sessions.range((cluster.clone(), 0)..=(cluster.clone(), u64::MAX));
        let (count, last) = own.fold((0, 0), |(count, _), ((_, number), _)| (count + 1, *number));
        if count >= PER_CLUSTER {
            return None;
        }
        let key = (cluster.clone(), last + 1);
        let open = Open {
            cluster: cluster.clone(),
            replica: replica.chars().take(100).collect(),
            publisher,
            resumed,
            namespaces,
            since_ms: now_ms(),
            progress: Progress::default(),
            waiting: 0,
        };
        sessions.insert(key.clone(), open);
        Some(Entry { registry: self.clone(), key })
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions().is_empty()
    }

    /// All of them, by cluster.
    #[must_use]
    pub fn list(&self, now: Instant, revision: u64) -> Vec<SessionState> {
        let sessions = self.sessions();
        let state = |open: &Open| SessionState {
            cluster: open.cluster.to_string(),
            replica: open.replica.clone(),
            publisher: open.publisher,
            resumed: open.resumed,
            namespaces: open.namespaces,
            since_ms: open.since_ms,
            told_revision: open.progress.told,
            applied_revision: open.progress.applied,
            unacknowledged_ms: open
                .progress
                .unacknowledged
                .map_or(0, |since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)),
            behind: revision.saturating_sub(open.progress.told),
            snapshot: open.progress.snapshot,
            answers_waiting: open.waiting,
        };
        sessions.values().map(state).collect()
    }
}

impl Entry {
    /// How far the session is.
    pub fn note(&self, progress: Progress, waiting: usize) {
        if let Some(open) = self.registry.sessions().get_mut(&self.key) {
            (open.progress, open.waiting) = (progress, waiting);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.sessions().remove(&self.key);
    }
}
