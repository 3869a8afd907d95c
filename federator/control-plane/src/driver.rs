//! Runs the reconciler: takes inputs, does what follows.

use std::sync::Arc;
use std::time::Duration;

use mesh_tls::TrustStore;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tracing::error;

use crate::plane::PlaneHandle;
use crate::reconciler::{Effects, Input, Now, Reconciler};
use crate::snapshot::Snapshot;
use crate::state::StateDirectory;

/// Inputs that wait for the reconciler.
pub const INPUTS: usize = 64;

/// A pause is so many times as long as the work before it. What follows is computed and written down at the cost of the whole
/// state, so what comes meanwhile is taken as one.
const REST: u32 = 4;

/// No pause is longer: somebody waits for what came.
const LONGEST_REST: Duration = Duration::from_millis(100);

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
            let begun = Instant::now();
            let effects = self.reconciler.flush(Now::read());
            self.perform(effects).await;
            let rested = Instant::now() + rest(begun.elapsed());
            let due = self.reconciler.next_due().map(Instant::from_std);
            let first = tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => Some(input),
                    None => return,
                },
                () = sleep_until(due) => None,
            };
            if first.is_none_or(|input| self.take(input)) {
                self.take_until(rested).await;
            }
            // A burst is taken as one.
            for _ in 0..INPUTS {
                let Ok(input) = self.inputs.try_recv() else { break };
                self.take(input);
            }
        }
    }

    /// Hands an input on; returns whether what follows from it may wait. Whom to believe may not.
    fn take(&mut self, input: Input) -> bool {
        let patient = !matches!(input, Input::Trust(_));
        self.reconciler.handle(input, Now::read());
        patient
    }

    /// Takes inputs until then, or until one that may not wait, or the last one.
    async fn take_until(&mut self, then: Instant) {
        while Instant::now() < then {
            let Ok(Some(input)) = timeout_at(then, self.inputs.recv()).await else { return };
            if !self.take(input) {
                return;
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

/// The pause after something that took so long.
fn rest(took: Duration) -> Duration {
    took.saturating_mul(REST).min(LONGEST_REST)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::SystemTime;

    use spiffe_identity::Bundle;

    use super::*;
    use crate::reconciler::{Facts, Restored};
    use crate::vips::{SavedVips, VipAllocator};

    fn driver(state: StateDirectory) -> (Driver, mpsc::Sender<Input>) {
        let bundle = Bundle {
            trust_domain: "east.mesh.example".parse().unwrap(),
            sequence: 1,
            x509_authorities: Vec::new(),
            refresh_hint: None,
        };
        let facts = Facts {
            cluster: "east".parse().unwrap(),
            federation: "mesh.example".parse().unwrap(),
            trust_domain: "east.mesh.example".to_owned(),
            bundle,
            spread: 0.0,
        };
        let vips = VipAllocator::new("241.0.0.0/16".parse().unwrap(), None, SavedVips::default());
        let now = Now { instant: std::time::Instant::now(), system: SystemTime::now() };
        let reconciler = Reconciler::new(facts, vips, Restored::default(), None, now);
        let (sender, inputs) = mpsc::channel(INPUTS);
        let snapshots = watch::channel(Arc::default()).0;
        let trust = TrustStore::new();
        (Driver { reconciler, inputs, state, trust, snapshots, plane: PlaneHandle::default() }, sender)
    }

    #[test]
    fn pauses_grow_with_the_work_and_have_an_end() {
        assert_eq!(rest(Duration::from_millis(2)), Duration::from_millis(8));
        assert_eq!(rest(Duration::from_secs(1)), LONGEST_REST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_a_pause_is_taken_as_one_and_whom_to_believe_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut driver, sender) = driver(StateDirectory::open(directory.path()).unwrap());
        for _ in 0..3 {
            sender.send(Input::TrustConfirmed).await.unwrap();
        }
        let then = Instant::now() + LONGEST_REST;
        driver.take_until(then).await;
        assert_eq!((Instant::now() >= then, driver.inputs.len()), (true, 0));

        sender.send(Input::Trust(Box::default())).await.unwrap();
        sender.send(Input::TrustConfirmed).await.unwrap();
        let then = Instant::now() + LONGEST_REST;
        driver.take_until(then).await;
        assert_eq!((Instant::now() < then, driver.inputs.len()), (true, 1));
    }
}
