//! Replacing the federation's own authority: one replica drives, and all of them say how far it is.
//!
//! ```text
//!   operator ──wish──► authority/wish ──► the driver: the replica that holds authority/driver (a lease)
//!                                           │ changes the files of the authority's folder, a step at a time
//!                                           ├──► authority/state: roots and signer, part of the trust state and its epoch
//!                                           └──► authority/status: how far it is, and whom it waits for
//!   every replica ◄── authority/state ── follows, tells its watchers, shares their acknowledgements
//! ```
//!
//! The files are what counts: a driver that dies at any point leaves a step that its successor, or itself after a restart,
//! repeats. What a step publishes is the same when it is repeated, so its epoch is too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation_api::trust::v1::rotate_authority_request::Step;
use federation_api::trust::v1::{RotateAuthorityResponse, StoredAuthority, StoredRotation, StoredWish, Watcher};
use federation_store::{Committed, LeaseId, Revision, Store, StoreError, Transaction, layout};
use prost::Message;
use rustls_pki_types::CertificateDer;
use spiffe_identity::{Pace, Phase, TrustDomain, Waiting};
use svid_issuer::{Authority, OpenError, RootRotation, RootStep, RotateError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::audit::{AuditLog, Note};
use crate::authority::{PlaneAuthority, stored};
use crate::state::TrustState;
use crate::tokens::milliseconds;
use crate::watchers::Watchers;

/// How long nobody drives after a driver died.
const LEASE: Duration = Duration::from_secs(5);
/// How often the driver says that it lives.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);
/// How often it looks at wishes, watchers and the time.
const TICK: Duration = Duration::from_millis(250);
/// How long to wait before trying again to become the driver.
const RETRY: Duration = Duration::from_secs(1);
/// Watchers that a status names.
const NAMED: usize = 100;

/// What makes one replica able to drive.
#[derive(Debug)]
pub struct Driver<S> {
    /// Where wishes, state and status lie.
    pub store: S,
    /// The files.
    pub authority: PlaneAuthority,
    /// How long each wait lasts.
    pub pace: Pace,
    /// Who is waited for.
    pub watchers: Watchers,
    /// Who of them still has a say.
    pub state: watch::Receiver<Arc<TrustState>>,
    /// Where each phase is recorded.
    pub audit: AuditLog<S>,
    /// This replica's name.
    pub replica: String,
}

/// Why a replica stops driving for a moment.
#[derive(Debug, thiserror::Error)]
enum DriveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Rotate(#[from] RotateError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A watcher as the rotation was told of it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    acknowledged: u64,
    connected: bool,
}

impl<S: Store> Driver<S> {
    /// Drives whenever no other replica does, until dropped.
    pub async fn run(self) {
        loop {
            let outcome = match self.take_over().await {
                Ok(Some(lease)) => {
                    let outcome = self.drive(lease).await;
                    self.authority.yield_to_others();
                    // It expires by itself otherwise.
                    let _ = self.store.revoke(lease).await;
                    outcome
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = outcome {
                warn!(error = &error as &dyn std::error::Error, "the federation's authority is not driven from here");
            }
            sleep(RETRY).await;
        }
    }

    /// A lease under which this replica is the driver, when no other is.
    async fn take_over(&self) -> Result<Option<LeaseId>, StoreError> {
        if self.store.get(layout::AUTHORITY_DRIVER).await?.is_some() {
            return Ok(None);
        }
        let lease = self.store.grant_lease(LEASE).await?;
        let take = Transaction::new().expecting_absent(layout::AUTHORITY_DRIVER).put_leased(
            layout::AUTHORITY_DRIVER,
            self.replica.clone(),
            lease,
        );
        match self.store.commit(take).await? {
            Committed::Done(_) => Ok(Some(lease)),
            Committed::Conflict { .. } => self.store.revoke(lease).await.map(|()| None),
        }
    }

    async fn drive(&self, lease: LeaseId) -> Result<(), DriveError> {
        let authority = self.authority.drive()?;
        let mut rotation = RootRotation::resume(authority.clone(), SystemTime::now())?;
        if rotation.is_some() {
            info!("going on with the rotation of the federation's authority");
        }
        let mut told = BTreeMap::new();
        let mut alive_until = Instant::now() + KEEP_ALIVE;
        loop {
            if Instant::now() >= alive_until {
                self.store.keep_alive(lease).await?;
                alive_until = Instant::now() + KEEP_ALIVE;
            }
            self.fulfil(&authority, &mut rotation, &mut told).await?;
            if let Some(under_way) = &mut rotation {
                self.tell_of_watchers(under_way, &mut told)?;
                if self.advance(&authority, under_way, &mut told).await? {
                    rotation = None;
                    told.clear();
                }
            }
            sleep(TICK).await;
        }
    }

    /// Does what an operator wishes.
    async fn fulfil(
        &self,
        authority: &Arc<Authority>,
        rotation: &mut Option<RootRotation>,
        told: &mut BTreeMap<String, Told>,
    ) -> Result<(), DriveError> {
        let Some(entry) = self.store.get(layout::AUTHORITY_WISH).await? else { return Ok(()) };
        let StoredWish { step, who } = StoredWish::decode(entry.value.clone()).unwrap_or_default();
        let step = Step::try_from(step).unwrap_or(Step::Unspecified);
        let outcome = match (step, rotation.take()) {
            (Step::Begin, None) => {
                told.clear();
                RootRotation::begin(authority.clone(), self.pace).map(|begun| *rotation = Some(begun))
            }
            (Step::Begin, under_way) => {
                *rotation = under_way;
                Err(RotateError::UnderWay)
            }
            (Step::Hurry, Some(mut under_way)) => {
                let hurried = under_way.update(spiffe_identity::Rotation::hurry);
                *rotation = Some(under_way);
                hurried
            }
            (Step::Cancel, Some(under_way)) => {
                let cancelled = under_way.cancel();
                if cancelled.is_err() {
                    *rotation = RootRotation::resume(authority.clone(), SystemTime::now())?;
                    told.clear();
                }
                cancelled
            }
            (_, under_way) => {
                *rotation = under_way;
                let refused = "no rotation is under way".to_owned();
                return self.answer(&entry.key, entry.modified, &who, step, &None, refused).await;
            }
        };
        if outcome.is_ok() && step == Step::Cancel {
            self.publish(authority, &authority.roots()).await?;
        }
        let refused = outcome.err().map(|error| error.to_string()).unwrap_or_default();
        self.answer(&entry.key, entry.modified, &who, step, rotation, refused).await
    }

    /// Takes the wish away, and says what became of it.
    async fn answer(
        &self,
        wish: &str,
        modified: Revision,
        who: &str,
        step: Step,
        rotation: &Option<RootRotation>,
        refused: String,
    ) -> Result<(), DriveError> {
        let state = status(rotation.as_ref(), None);
        let note = Note {
            who: who.to_owned(),
            action: "authority.rotate",
            subject: self.authority.current().trust_domain().to_string(),
            detail: step.as_str_name().trim_start_matches("STEP_").to_lowercase(),
        };
        let status = StoredRotation { state: Some(state), refused: refused.clone() };
        loop {
            let answered = Transaction::new()
                .expecting(wish, modified)
                .delete(wish)
                .put(layout::AUTHORITY_STATUS, status.encode_to_vec());
            if refused.is_empty() {
                let staged = self.audit.stage(answered, &note).await?;
                match self.store.commit(staged).await? {
                    Committed::Conflict { key } if key == layout::AUDIT_HEAD => continue,
                    _ => return Ok(()),
                }
            }
            self.audit.refused(&note, &refused).await;
            let _ = self.store.commit(answered).await?;
            return Ok(());
        }
    }

    /// Passes on who watches and what they have acknowledged, as far as it has changed.
    fn tell_of_watchers(
        &self,
        rotation: &mut RootRotation,
        told: &mut BTreeMap<String, Told>,
    ) -> Result<(), DriveError> {
        let now = SystemTime::now();
        let (state, federation) = (self.state.borrow().clone(), self.authority.current().trust_domain().clone());
        let current = by_name(self.watchers.everywhere(now), &state, &federation);
        if current == *told {
            return Ok(());
        }
        let before = std::mem::replace(told, current);
        let current = &*told;
        rotation.update(|rotation| {
            for name in before.keys().filter(|name| !current.contains_key(*name)) {
                rotation.gone(name);
            }
            for (name, now_told) in current {
                let known = before.get(name);
                if known == Some(now_told) {
                    continue;
                }
                if known.is_none_or(|known| !known.connected || known.acknowledged > now_told.acknowledged) {
                    rotation.connected(name);
                }
                if now_told.acknowledged > 0 {
                    rotation.acknowledged(name, now_told.acknowledged);
                }
                if !now_told.connected {
                    rotation.disconnected(name, now);
                }
            }
        })?;
        Ok(())
    }

    /// Does what is due; says whether the rotation is over.
    async fn advance(
        &self,
        authority: &Arc<Authority>,
        rotation: &mut RootRotation,
        told: &mut BTreeMap<String, Told>,
    ) -> Result<bool, DriveError> {
        let now = SystemTime::now();
        let step = rotation.step(now)?;
        let (waiting, done) = match step {
            RootStep::Publish(roots) => {
                let epoch = self.publish(authority, &roots).await?;
                rotation.published(epoch, now)?;
                (None, false)
            }
            RootStep::Wait(waiting) => {
                // The signer may have changed with this step, or the store may have gone back to a backup.
                let epoch = self.publish(authority, &authority.roots()).await?;
                if rotation.republished(epoch)? {
                    warn!(epoch, "the store has gone back: who has acknowledged is asked anew");
                    told.clear();
                }
                (Some(waiting), false)
            }
            RootStep::Done => (None, true),
        };
        if let Some(stalled) = waiting.as_ref().filter(|waiting| waiting.stalled) {
            warn!(%stalled, "the rotation of the federation's authority");
        }
        self.report(status((!done).then_some(&*rotation), waiting)).await?;
        Ok(done)
    }

    /// Says which roots the federation has, if it does not say so already, and from which epoch on.
    async fn publish(&self, authority: &Authority, roots: &[CertificateDer<'static>]) -> Result<Revision, StoreError> {
        let value = stored(authority, roots);
        loop {
            let present = self.store.get(layout::AUTHORITY_STATE).await?;
            let said = present.as_ref().and_then(|entry| StoredAuthority::decode(entry.value.clone()).ok());
            if let (Some(entry), Some(said)) = (&present, said)
                && said == value
            {
                return Ok(entry.modified);
            }
            let put = Transaction::new()
                .expecting(layout::AUTHORITY_STATE, present.map_or(0, |entry| entry.modified))
                .put(layout::AUTHORITY_STATE, value.encode_to_vec());
            if let Committed::Done(revision) = self.store.commit(put).await? {
                info!(roots = roots.len(), revision, "published the federation's roots");
                return Ok(revision);
            }
        }
    }

    /// Says how far it is, and records each phase.
    async fn report(&self, state: RotateAuthorityResponse) -> Result<(), StoreError> {
        loop {
            let present = self.store.get(layout::AUTHORITY_STATUS).await?;
            let said = present.as_ref().and_then(|entry| StoredRotation::decode(entry.value.clone()).ok());
            // Whoever had the wish may not have read yet why it was refused.
            let StoredRotation { state: before, refused } = said.unwrap_or_default();
            let before = before.unwrap_or_default();
            if before == state {
                return Ok(());
            }
            let status = StoredRotation { state: Some(state.clone()), refused };
            let put = Transaction::new()
                .expecting(layout::AUTHORITY_STATUS, present.map_or(0, |entry| entry.modified))
                .put(layout::AUTHORITY_STATUS, status.encode_to_vec());
            let put = if before.phase == state.phase {
                put
            } else {
                info!(phase = state.phase, "the rotation of the federation's authority");
                let note = Note {
                    who: format!("trust-bundle {}", self.replica),
                    action: "authority.phase",
                    subject: self.authority.current().trust_domain().to_string(),
                    detail: state.phase.clone(),
                };
                self.audit.stage(put, &note).await?
            };
            if let Committed::Done(_) = self.store.commit(put).await? {
                return Ok(());
            }
        }
    }
}

/// Everybody of whom something is to be expected. Of several with one name the one that is furthest behind counts.
fn by_name(watchers: Vec<Watcher>, state: &TrustState, federation: &TrustDomain) -> BTreeMap<String, Told> {
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    for watcher in watchers {
        if !watcher.identity.parse().is_ok_and(|id| state.expects(&id, federation)) {
            continue;
        }
        let Watcher { identity, replica, acknowledged, connected, .. } = watcher;
        let name = if replica.is_empty() { identity } else { format!("{identity} ({replica})") };
        let behind = told.entry(name).or_insert(Told { acknowledged, connected });
        behind.acknowledged = behind.acknowledged.min(acknowledged);
        behind.connected |= connected;
    }
    told
}

fn status(rotation: Option<&RootRotation>, waiting: Option<Waiting>) -> RotateAuthorityResponse {
    let phase = match rotation.map(RootRotation::phase) {
        None | Some(Phase::Done) => "idle",
        Some(Phase::Publish | Phase::Spread { .. }) => "preparing",
        Some(Phase::Activate) => "activating",
        Some(Phase::Drain { .. }) => "draining",
        Some(Phase::Retire | Phase::Settle { .. }) => "retiring",
    };
    let (until, mut waiting_for) = waiting.map_or((None, Vec::new()), |waiting| (waiting.until, waiting.watchers));
    waiting_for.truncate(NAMED);
    RotateAuthorityResponse {
        phase: phase.to_owned(),
        waiting_for,
        not_before_ms: until.map_or(0, milliseconds),
        emergency: rotation.is_some_and(RootRotation::is_emergency),
    }
}

/// How the last wish ended.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// The driver says no.
    #[error("{0}")]
    Refused(String),
    /// Another wish is being fulfilled.
    #[error("another step is being taken at this moment")]
    Busy,
    /// No replica acts on it.
    #[error("no replica drives the authority at this moment: try again")]
    Nobody,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far the rotation is.
///
/// # Errors
/// The store's.
pub async fn progress<S: Store>(store: &S) -> Result<StoredRotation, StoreError> {
    let entry = store.get(layout::AUTHORITY_STATUS).await?;
    let said = entry.and_then(|entry| StoredRotation::decode(entry.value).ok());
    let mut said = said.unwrap_or_default();
    said.state.get_or_insert_with(|| status(None, None));
    Ok(said)
}

/// Leaves a wish, and waits until the driver has acted on it.
///
/// # Errors
/// [`WishError`]
pub async fn wish<S: Store>(store: &S, step: Step, who: &str) -> Result<RotateAuthorityResponse, WishError> {
    let wish = StoredWish { step: step.into(), who: who.to_owned() };
    let put =
        Transaction::new().expecting_absent(layout::AUTHORITY_WISH).put(layout::AUTHORITY_WISH, wish.encode_to_vec());
    let Committed::Done(revision) = store.commit(put).await? else { return Err(WishError::Busy) };
    let deadline = Instant::now() + LEASE + 2 * RETRY;
    loop {
        match store.get(layout::AUTHORITY_WISH).await? {
            Some(entry) if entry.modified == revision => {}
            _ => break,
        }
        if Instant::now() >= deadline {
            let withdraw =
                Transaction::new().expecting(layout::AUTHORITY_WISH, revision).delete(layout::AUTHORITY_WISH);
            match store.commit(withdraw).await? {
                Committed::Done(_) => return Err(WishError::Nobody),
                Committed::Conflict { .. } => break,
            }
        }
        sleep(TICK / 5).await;
    }
    let StoredRotation { state, refused } = progress(store).await?;
    if refused.is_empty() { Ok(state.unwrap_or_default()) } else { Err(WishError::Refused(refused)) }
}
