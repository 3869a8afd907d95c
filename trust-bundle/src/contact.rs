//! Whether this replica still hears its store. One that does not cannot confirm to anybody that what they know is all there
//! is, a quarantine above all: it sends its watchers away, to a replica that can.
//!
//! A change of the trust state and its entry in the audit record are one transaction, so the end of the record, asked of the
//! store itself, says how far the state must have come.

use std::time::Duration;

use federation_store::{Revision, Store, StoreError, layout};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info};

/// How long a store may be silent: longer than etcd takes to find another leader.
pub const SILENCE: Duration = Duration::from_secs(10);
/// So often the store is asked in that time.
const QUESTIONS: u32 = 5;

/// Keeps `in_touch` true for as long as the store answers and `reached`, the revision that the state has come to, follows what
/// it says; false from `silence` after it did so for the last time. Runs until dropped.
pub async fn keep<S: Store>(
    store: S,
    mut reached: watch::Receiver<Revision>,
    in_touch: watch::Sender<bool>,
    silence: Duration,
) {
    let mut heard = Instant::now();
    loop {
        let asked = Instant::now();
        let answer =
            timeout(silence.saturating_sub(heard.elapsed()).max(silence / QUESTIONS), ask(&store, &mut reached)).await;
        if matches!(answer, Ok(Ok(()))) {
            heard = asked;
        }
        let now = heard.elapsed() < silence;
        if in_touch.send_if_modified(|it| std::mem::replace(it, now) != now) {
            if now {
                info!("the store is heard again: watchers are served");
            } else {
                let reason = match answer {
                    Ok(Err(error)) => error.to_string(),
                    _ => "it does not answer, or what it told last does not arrive".to_owned(),
                };
                error!(reason, ?silence, "the store is not heard any more: watchers are sent to other replicas");
            }
        }
        sleep(silence / QUESTIONS).await;
    }
}

/// Ready when the state is as far as the store says that it must be.
async fn ask<S: Store>(store: &S, reached: &mut watch::Receiver<Revision>) -> Result<(), StoreError> {
    let end = store.get(layout::AUDIT_HEAD).await?.map_or(0, |entry| entry.modified);
    // An error says that nobody follows the store any more: the service ends.
    let _ = reached.wait_for(|reached| *reached >= end).await;
    Ok(())
}
