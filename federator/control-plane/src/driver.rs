//! Runs the reconciler: takes inputs, does what follows.

use std::sync::Arc;

use mesh_tls::TrustStore;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::error;

use crate::plane::PlaneHandle;
use crate::reconciler::{Effects, Input, Now, Reconciler};
use crate::snapshot::Snapshot;
use crate::state::StateDirectory;

/// Inputs that wait for the reconciler.
pub const INPUTS: usize = 64;

/// The reconciler's surroundings.
pub struct Driver {
    /// The owner of the state.
    pub reconciler: Reconciler,
    /// What happens.
    pub inputs: mpsc::Receiver<Input>,
    /// Where files go.
    pub state: StateDirectory,
    /// Whom the mesh believes.
    pub trust: TrustStore,
    /// Who sees the snapshots.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// The federation.
    pub plane: PlaneHandle,
}

impl Driver {
    /// Runs until every sender of inputs is gone.
    pub async fn run(mut self) {
        loop {
            let effects = self.reconciler.flush(Now::read());
            self.perform(effects).await;
            let due = self.reconciler.next_due().map(Instant::from_std);
            let first = tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => Some(input),
                    None => return,
                },
                () = sleep_until(due) => None,
            };
            let now = Now::read();
            if let Some(first) = first {
                self.reconciler.handle(first, now);
            }
            // A burst is taken as one.
            for _ in 0..INPUTS {
                let Ok(input) = self.inputs.try_recv() else { break };
                self.reconciler.handle(input, now);
            }
        }
    }

    async fn perform(&mut self, mut effects: Effects) {
        if let Some(trust) = effects.trust.take() {
            self.trust.deny(trust.denied);
            self.trust.replace(trust.bundles);
        }
        // Proxies need not wait for the disk: a clusterset IP that was lost with it comes back by its service's name.
        if let Some(snapshot) = effects.snapshot.take() {
            self.snapshots.send_replace(snapshot);
        }
        if !effects.files.is_empty() && !self.write(std::mem::take(&mut effects.files)).await {
            // What is not written down is neither acknowledged nor said; the next change tries again.
            effects.session_applied = None;
            effects.trust_applied = None;
        }
        self.plane.pass_on(&mut effects);
    }

    async fn write(&self, files: Vec<(&'static str, Vec<u8>)>) -> bool {
        let state = self.state.clone();
        let written = tokio::task::spawn_blocking(move || {
            files.into_iter().try_for_each(|(name, bytes)| state.write(name, &bytes))
        });
        match written.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                error!(%error, "state cannot be written down");
                false
            }
            Err(error) => {
                error!(%error, "state cannot be written down");
                false
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
