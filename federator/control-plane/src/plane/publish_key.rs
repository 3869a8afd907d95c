//! Replacing the key under which the cluster speaks.
//!
//! ```text
//!   grant of the next key, under the present one ──► on disk ──► trust-bundle ──► everybody who watches
//!                                 after_sequence: a little in the future         │ acknowledgements
//!   sequences up to it: the present key     above it: the next one ◄─────────────┘ (waited for, and named)
//! ```
//!
//! A sequence is at least the time in microseconds, so the keys change places by themselves, after a crash too. What the
//! present key has signed above `after_sequence`, because the grant was long on its way, is signed again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use federation_api::client::trust;
use federation_api::trust::v1::Watcher;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::{Plane, PlaneHandle, joined_input};
use crate::membership::Membership;
use crate::reconciler::Input;
use crate::rotation::{Key, RotationStatus, described, name};

/// A grant's `after_sequence` lies this far in the future: longer than it takes to tell everybody who listens.
const LEAD: Duration = Duration::from_secs(2);
/// A grant that could not be put is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// Acknowledgements are looked at this often.
const LOOK: Duration = Duration::from_millis(200);

/// What the operator wants of the publish key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyWish {
    /// Counts wishes for another key.
    number: u64,
    /// Not to wait.
    emergency: bool,
}

impl PlaneHandle {
    /// Replaces the publish key; in an emergency at once.
    ///
    /// # Errors
    /// It is being replaced already.
    pub fn rotate_publish_key(&self, emergency: bool) -> Result<(), String> {
        let under_way = self.publish_key_rotation().phase != "idle";
        if under_way && !emergency {
            return Err("a rotation is under way already".to_owned());
        }
        if !under_way {
            self.show_publish_key("publish", Vec::new(), None, None);
        }
        self.shared.key_wish.send_modify(|wish| {
            wish.number += u64::from(!under_way);
            wish.emergency = emergency;
        });
        Ok(())
    }

    /// How far the publish key's rotation is.
    #[must_use]
    pub fn publish_key_rotation(&self) -> RotationStatus {
        self.shared.key_rotation.borrow().clone().unwrap_or_else(|| RotationStatus::idle(Key::PublishKey))
    }

    fn show_publish_key(
        &self,
        phase: &'static str,
        waiting_for: Vec<String>,
        until: Option<SystemTime>,
        problem: Option<String>,
    ) {
        let emergency = self.shared.key_wish.borrow().emergency;
        let not_before = until.map(crate::admin::timestamp);
        let status = RotationStatus {
            phase,
            emergency,
            waiting_for,
            not_before,
            problem,
            ..RotationStatus::idle(Key::PublishKey)
        };
        self.shared.key_rotation.send_replace(Some(status));
    }
}

impl Plane {
    /// Replaces the publish key whenever that is wished, for as long as the membership lasts.
    pub(super) async fn keep_publish_key(&self, channel: Channel, membership: &Arc<Mutex<Membership>>) {
        let mut wishes = self.handle.shared.key_wish.subscribe();
        // One from before this membership began is for this one too: it is what the operator sees as under way.
        let mut done = wishes.borrow().number - u64::from(self.handle.shared.key_rotation.borrow().is_some());
        loop {
            let under_way = with(membership, |membership| membership.next_key().is_some());
            if !under_way {
                let Ok(wish) = wishes.wait_for(|wish| wish.number > done).await.map(|wish| *wish) else { return };
                done = wish.number;
                if let Err(problem) = self.prepare(membership, wish.emergency).await {
                    warn!(problem, "the publish key is not replaced");
                    self.handle.shared.key_rotation.send_replace(Some(RotationStatus {
                        problem: Some(problem),
                        ..RotationStatus::idle(Key::PublishKey)
                    }));
                    continue;
                }
            }
            let epoch = self.put_grant(&channel, membership).await;
            self.speak(membership).await;
            self.until_known(membership, epoch).await;
            with(membership, Membership::finish_key);
            self.save(membership).await;
            self.speak(membership).await;
            info!("the publish key is replaced");
            self.handle.shared.key_rotation.send_replace(None);
        }
    }

    /// Makes the next key and its grant, and writes both down.
    async fn prepare(&self, membership: &Arc<Mutex<Membership>>, emergency: bool) -> Result<(), String> {
        let last = self.snapshots.borrow().last_sequence;
        let lead = if emergency { Duration::ZERO } else { LEAD };
        let after = last.max(microseconds(SystemTime::now() + lead));
        with(membership, |membership| membership.prepare_key(after)).map_err(|error| error.to_string())?;
        info!(after, "the publish key is being replaced");
        self.save(membership).await;
        Ok(())
    }

    /// Puts the grant until the trust-bundle has it. Returns the epoch that tells of it.
    async fn put_grant(&self, channel: &Channel, membership: &Arc<Mutex<Membership>>) -> u64 {
        loop {
            let member = with(membership, |membership| {
                membership.next_key().map(|next| (next.epoch, membership.next_member(next)))
            });
            let Some((known, member)) = member else { return 0 };
            if let Some(epoch) = known {
                return epoch;
            }
            match trust::publish_member(channel.clone(), member).await {
                Ok(epoch) => match with(membership, |membership| membership.confirm_key(epoch)) {
                    Ok(()) => self.save(membership).await,
                    Err(error) => warn!(%error, "the grant of the next publish key does not hold"),
                },
                Err(status) => {
                    warn!(%status, "the grant of the next publish key is not taken");
                    let problem = format!("trust-bundle: {}: {}", status.code(), status.message());
                    self.handle.show_publish_key("publish", vec!["trust-bundle".to_owned()], None, Some(problem));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Lets the reconciler speak with the keys there are.
    async fn speak(&self, membership: &Arc<Mutex<Membership>>) {
        match with(membership, |membership| joined_input(membership)) {
            Ok(joined) => {
                // The reconciler lives as long as this task.
                let _ = self.inputs.send(Input::PublishKeys(Box::new(joined))).await;
            }
            Err(error) => warn!(%error, "the publish key cannot be used"),
        }
    }

    /// Until the next key speaks, and everybody who watches knows it.
    async fn until_known(&self, membership: &Arc<Mutex<Membership>>, epoch: u64) {
        let after = with(membership, |membership| membership.next_key().map_or(0, |next| next.after));
        self.handle.watch_watchers_for_key(true);
        loop {
            let emergency = self.handle.shared.key_wish.borrow().emergency;
            let speaks = microseconds(SystemTime::now()) > after;
            let behind = match self.handle.watchers() {
                Some(watchers) => self.behind(&watchers, epoch),
                None => vec!["trust-bundle, to say who watches".to_owned()],
            };
            if speaks && (emergency || behind.is_empty()) {
                break;
            }
            let until = (!speaks).then(|| UNIX_EPOCH + Duration::from_micros(after));
            self.handle.show_publish_key("spread", behind, until, None);
            tokio::time::sleep(LOOK).await;
        }
        self.handle.watch_watchers_for_key(false);
    }

    fn behind(&self, watchers: &[Watcher], epoch: u64) -> Vec<String> {
        let own = self.handle.own_identity();
        let others = watchers.iter().filter(|watcher| watcher.connected && Some(&watcher.identity) != own.as_ref());
        // Records are verified by control-planes and federators: their proxies need not know.
        others.filter(|watcher| watcher.acknowledged < epoch).map(|watcher| described(&name(watcher), &[])).collect()
    }
}

fn with<T>(membership: &Arc<Mutex<Membership>>, look: impl FnOnce(&mut Membership) -> T) -> T {
    look(&mut membership.lock().unwrap_or_else(PoisonError::into_inner))
}

fn microseconds(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}
