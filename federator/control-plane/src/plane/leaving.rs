//! Leaving the federation: every record is withdrawn, and only then the membership ends, by the cluster's own word.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use federation::RecordKey;
use federation_api::client::trust;
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::signing::SequenceClock;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::{Plane, PlaneHandle};
use crate::membership::{self, Membership, MembershipError};
use crate::reconciler::Input;

/// A departure that was not taken is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

impl PlaneHandle {
    /// Ends the membership, once everything is withdrawn.
    pub fn leave(&self) {
        self.shared.leave_wish.send_replace(true);
    }

    /// Why the last attempt to leave failed.
    #[must_use]
    pub fn leave_problem(&self) -> Option<String> {
        self.shared.leave_problem.borrow().clone()
    }
}

impl Plane {
    /// Returns when the membership has ended by the operator's wish.
    pub(super) async fn leave(&self, channel: Channel, membership: &Arc<Mutex<Membership>>) {
        let lock = || membership.lock().unwrap_or_else(PoisonError::into_inner);
        if !lock().leaving {
            let mut wish = self.handle.shared.leave_wish.subscribe();
            if wish.wait_for(|wish| *wish).await.is_err() {
                return std::future::pending().await;
            }
            lock().leaving = true;
            self.save(membership).await;
        }
        info!("leaving the federation: own records are withdrawn");
        let _ = self.inputs.send(Input::Leave).await;
        let mut snapshots = self.snapshots.clone();
        if snapshots.wait_for(|snapshot| snapshot.withdrawn).await.is_err() {
            return std::future::pending().await;
        }
        loop {
            let last = self.snapshots.borrow().last_sequence;
            let statement = departure(&lock(), last);
            let problem = match statement {
                Ok(statement) => match trust::leave(channel.clone(), statement).await {
                    Ok(()) => break,
                    // It is no member any more, whoever ended that: nothing is left to be said.
                    Err(status) if status.code() == Code::PermissionDenied && status.message().contains("member") => {
                        warn!(%status, "the membership had ended before");
                        break;
                    }
                    Err(status) => format!("trust-bundle: {}: {}", status.code(), status.message()),
                },
                Err(error) => error.to_string(),
            };
            warn!(problem, "the departure is not taken");
            self.handle.shared.leave_problem.send_replace(Some(problem));
            tokio::time::sleep(RETRY).await;
        }
        self.forget().await;
    }

    async fn forget(&self) {
        let state = self.facts.state.clone();
        let removed = tokio::task::spawn_blocking(move || membership::remove(&state)).await;
        match removed {
            Ok(Ok(())) => info!("left the federation"),
            Ok(Err(error)) => warn!(%error, "the ended membership is still on disk"),
            Err(error) => warn!(%error, "the ended membership is still on disk"),
        }
        self.handle.shared.leave_wish.send_replace(false);
        self.handle.shared.leave_problem.send_replace(None);
        let _ = self.inputs.send(Input::Left).await;
    }
}

fn departure(membership: &Membership, last: u64) -> Result<Signed, MembershipError> {
    let now = SystemTime::now();
    let sequence = SequenceClock::after(last).next(now);
    let speaker = membership.speaker_of(sequence)?;
    let signed = speaker.sign(sequence, now, &RecordKey::Membership, &Payload::Withdrawal);
    signed.map_err(|error| MembershipError::Unusable(error.to_string()))
}
