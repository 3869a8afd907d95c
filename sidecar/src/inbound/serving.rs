//! What this sidecar serves at the moment, and when that changes.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use federation::ClusterName;
use tokio::sync::watch;

use crate::service::Workload;

/// What this sidecar serves at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Serving {
    pub(crate) cluster: Option<ClusterName>,
    /// The federation's domain, once it is known.
    pub(crate) federation: Option<Arc<str>>,
    pub(crate) workload: Workload,
    /// The control-plane, or the disk, has said what the workload is: until then no policies are not the policies.
    pub(crate) told: bool,
}

/// The present [`Serving`]. One owner writes; everybody reads snapshots.
#[derive(Debug)]
pub(crate) struct Served {
    serving: ArcSwap<Serving>,
    changes: watch::Sender<()>,
}

impl Default for Served {
    fn default() -> Self {
        Self { serving: ArcSwap::default(), changes: watch::Sender::new(()) }
    }
}

impl Served {
    pub(crate) fn load(&self) -> Guard<Arc<Serving>> {
        self.serving.load()
    }

    pub(crate) fn load_full(&self) -> Arc<Serving> {
        self.serving.load_full()
    }

    pub(crate) fn store(&self, serving: Serving) {
        self.serving.store(Arc::new(serving));
        self.changes.send_replace(());
    }

    /// Tells of every change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}
