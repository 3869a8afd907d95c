//! The federation's plane, as the cluster sees it: joining, the watch of the trust-bundle, the session with the
//! federator, and the certificate for both.
//!
//! ```text
//!   join(token) ──► Membership ──► watch trust  ──► Input::Trust      ◄── acknowledged when every proxy has it
//!                       │    └───► session      ──► Input::Session    ◄── own records
//!                       ├────────► renewal at half life, other publish keys
//!                       └────────► leave: records withdrawn, then the membership
//! ```
//!
//! All of it may be gone for any time: what was applied stays, and what is to be said waits here.

mod leaving;
mod links;
mod publish_key;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use federation::{ClusterName, FederationDomain};
use federation_api::client::federation::Session;
use federation_api::client::trust::TrustCursor;
use federation_api::record::v1::Signed;
use federation_api::token::JoinToken;
use federation_api::trust::v1::Watcher;
use mesh_tls::{Identity, TrustStore};
use spiffe_identity::TrustDomain;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use crate::membership::{self, Membership, MembershipError};
use crate::proxies::Proxies;
use crate::reconciler::{Effects, Input, Joined, Restored};
use crate::rotation::RotationStatus;
use crate::snapshot::Snapshot;
use crate::state::StateDirectory;

/// Wishes to join that wait; one at a time makes sense.
const JOINS: usize = 4;

/// What stays the same.
#[derive(Clone)]
pub struct PlaneFacts {
    /// The cluster.
    pub cluster: ClusterName,
    /// The federation.
    pub federation: FederationDomain,
    /// Its trust domain.
    pub plane: TrustDomain,
    /// Whom the mesh believes: the cluster's own bundle among them.
    pub trust: TrustStore,
    /// The cluster's trust domain.
    pub own: TrustDomain,
    /// Where the membership is kept.
    pub state: StateDirectory,
}

/// Others' side: what the reconciler has to say goes in here, nothing waits.
#[derive(Clone, Default)]
pub struct PlaneHandle {
    shared: Arc<Shared>,
}

/// The certificate for the federation's plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberCertificate {
    /// Until when it is valid; `None` while the cluster is no member.
    pub not_after: Option<SystemTime>,
    /// Why the last renewal failed.
    pub problem: Option<String>,
}

#[derive(Default)]
struct Shared {
    /// Held for a moment, never over an await.
    session: Mutex<Option<Session>>,
    trust_applied: watch::Sender<TrustCursor>,
    bundle: watch::Sender<Option<Signed>>,
    /// The own identity in the federation's plane, while the cluster is a member.
    own: watch::Sender<Option<String>>,
    /// Who watches the trust state; `None` while nobody says.
    watchers: watch::Sender<Option<Vec<Watcher>>>,
    /// Who wants to know that: a root's rotation, a publish key's.
    watching: watch::Sender<(bool, bool)>,
    key_wish: watch::Sender<publish_key::KeyWish>,
    key_rotation: watch::Sender<Option<RotationStatus>>,
    renewal: watch::Sender<MemberCertificate>,
    leave_wish: watch::Sender<bool>,
    leave_problem: watch::Sender<Option<String>>,
}

impl PlaneHandle {
    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.shared.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who watches the trust state, while somebody wants to know; `None` while the trust-bundle does not say.
    #[must_use]
    pub fn watchers(&self) -> Option<Vec<Watcher>> {
        self.shared.watchers.borrow().clone()
    }

    /// Whether a root's rotation wants to know who watches.
    pub fn watch_watchers(&self, wanted: bool) {
        self.shared.watching.send_modify(|watching| watching.0 = wanted);
    }

    fn watch_watchers_for_key(&self, wanted: bool) {
        self.shared.watching.send_modify(|watching| watching.1 = wanted);
    }

    /// The cluster's own identity in the federation's plane.
    #[must_use]
    pub fn own_identity(&self) -> Option<String> {
        self.shared.own.borrow().clone()
    }

    /// How the member certificate is.
    #[must_use]
    pub fn member_certificate(&self) -> MemberCertificate {
        self.shared.renewal.borrow().clone()
    }

    /// Passes on what follows for the federation. Files are written before.
    pub fn pass_on(&self, effects: &mut Effects) {
        if let Some(session) = self.session().as_ref() {
            session.publish(std::mem::take(&mut effects.publish));
            if let Some(namespaces) = &effects.namespaces {
                session.set_namespaces(namespaces.as_ref().clone());
            }
            if effects.begin_anew {
                session.begin_anew();
            } else if let Some(cursor) = effects.session_applied.take() {
                session.applied(cursor);
            }
        }
        if let Some(cursor) = effects.trust_applied.take() {
            self.shared.trust_applied.send_replace(cursor);
        }
        if let Some(bundle) = effects.bundle.take() {
            self.shared.bundle.send_replace(Some(bundle));
        }
    }
}

/// A wish to join.
struct JoinRequest {
    token: JoinToken,
    reply: oneshot::Sender<Result<u64, MembershipError>>,
}

/// Where wishes to join arrive.
pub struct Joins(mpsc::Receiver<JoinRequest>);

/// The operator's side.
#[derive(Clone)]
pub struct Joiner(mpsc::Sender<JoinRequest>);

impl Joiner {
    /// Makes the cluster a member; returns the membership's generation.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn join(&self, token: JoinToken) -> Result<u64, MembershipError> {
        let gone = |_| MembershipError::Unusable("the program is ending".to_owned());
        let (reply, answer) = oneshot::channel();
        self.0.send(JoinRequest { token, reply }).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }
}

/// The task's side.
pub struct Plane {
    facts: PlaneFacts,
    handle: PlaneHandle,
    inputs: mpsc::Sender<Input>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    proxies: Proxies,
    restored: links::Resume,
}

impl Plane {
    /// The plane of a cluster; `restored` says where its streams go on.
    #[must_use]
    pub fn new(
        facts: PlaneFacts,
        restored: &Restored,
        inputs: mpsc::Sender<Input>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        proxies: Proxies,
    ) -> (Self, PlaneHandle, Joiner, Joins) {
        let handle = PlaneHandle::default();
        let (joiner, joins) = mpsc::channel(JOINS);
        let restored = links::Resume { trust: restored.trust.cursor(), session: restored.session_cursor.clone() };
        let plane = Self { facts, handle: handle.clone(), inputs, snapshots, proxies, restored };
        (plane, handle, Joiner(joiner), Joins(joins))
    }

    /// Runs, as the member that the cluster is already or becomes, until nobody listens any more. Losing the federation
    /// ends nothing here.
    pub async fn run(mut self, joins: Joins, mut current: Option<Membership>) {
        let Joins(mut joins) = joins;
        loop {
            let Some(membership) = current.take() else {
                let Some(request) = joins.recv().await else { return };
                current = self.join(request, None).await;
                continue;
            };
            let generation = membership.verified.generation();
            let member = Arc::new(Mutex::new(membership));
            let request = tokio::select! {
                request = joins.recv() => request,
                outcome = Box::pin(self.be_member(Arc::clone(&member))) => match outcome {
                    Ok(()) if member.lock().unwrap_or_else(PoisonError::into_inner).leaving => {
                        self.stop_being_member();
                        continue;
                    }
                    outcome => {
                        if let Err(error) = outcome {
                            error!(%error, "the membership cannot be used");
                        }
                        // Only another token can help now.
                        joins.recv().await
                    }
                }
            };
            self.stop_being_member();
            let Some(request) = request else { return };
            let joined = self.join(request, Some(generation)).await;
            // After a refused token the old membership goes on, as it is on disk.
            current = match joined {
                Some(joined) => Some(joined),
                None => Membership::load(&self.facts.state, &self.facts.federation)
                    .inspect_err(|error| error!(%error, "the membership cannot be used"))
                    .unwrap_or_default(),
            };
        }
    }

    fn stop_being_member(&self) {
        *self.handle.session() = None;
        self.handle.shared.own.send_replace(None);
        self.handle.shared.renewal.send_replace(MemberCertificate::default());
        self.handle.shared.watchers.send_replace(None);
    }

    async fn join(&mut self, request: JoinRequest, current: Option<u64>) -> Option<Membership> {
        let outcome = self.joined(&request.token, current).await;
        let (reply, membership) = match outcome {
            Ok(membership) => (Ok(membership.verified.generation()), Some(membership)),
            Err(error) => {
                error!(%error, "joining failed");
                (Err(error), None)
            }
        };
        // Whoever asked may have gone away.
        let _ = request.reply.send(reply);
        membership
    }

    async fn joined(&mut self, token: &JoinToken, current: Option<u64>) -> Result<Membership, MembershipError> {
        let PlaneFacts { cluster, federation, trust, own, state, .. } = &self.facts;
        let unknown = || MembershipError::Unusable("the cluster's own roots are not known".to_owned());
        let bundle = trust.bundle(own).ok_or_else(unknown)?;
        let membership = Box::pin(membership::join(token, current, &bundle, cluster, federation)).await?;
        let state = state.clone();
        let saved = tokio::task::spawn_blocking(move || membership.save(&state).map(|()| membership)).await;
        let membership = saved.map_err(|error| MembershipError::Unusable(error.to_string()))??;
        let joined = joined_input(&membership)?;
        info!(generation = membership.verified.generation(), "joined the federation");
        self.restored = links::Resume::default();
        // The reconciler lives as long as this task.
        let _ = self.inputs.send(Input::Joined(Box::new(joined))).await;
        Ok(membership)
    }

    fn plane_trust(&self, membership: &Membership) -> Result<(Identity, TrustStore), MembershipError> {
        let trust = TrustStore::new();
        trust.insert(membership.plane_bundle(&self.facts.plane));
        Ok((membership.identity()?, trust))
    }
}

/// What the reconciler must know of a membership.
///
/// # Errors
/// The publish key is damaged.
pub fn joined_input(membership: &Membership) -> Result<Joined, MembershipError> {
    Ok(Joined {
        speaker: membership.speaker()?,
        successor: membership.successor()?,
        member: membership.verified.clone(),
        root: membership.root,
    })
}
