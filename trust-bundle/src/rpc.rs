//! `trust.v1`: the RPC faces. The caller is who its certificate says.

mod members;
mod operations;
mod watch;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use federation_api::trust::v1::operations_server::OperationsServer;
use federation_api::trust::v1::trust_server::{Trust, TrustServer};
use federation_api::trust::v1::{
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, ListWatchersRequest, ListWatchersResponse,
    PublishBundleRequest, PublishBundleResponse, RenewCertificateRequest, RenewCertificateResponse, WatchRequest,
    WatchResponse,
};
use federation_store::{Revision, Store};
use futures_util::Stream;
use mesh_runtime::DrainWatcher;
use mesh_tls::rpc::{ConnectionInfo, peer, remote};
use spiffe_identity::{SpiffeId, TrustDomain};
use tokio::sync::watch as tokio_watch;
use tonic::{Request, Response, Status, Streaming};
use tracing::{error, info};

use crate::allowance::Changes;
use crate::audit::{AuditLog, Note};
use crate::authority::PlaneAuthority;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::standing::marked_generation;
use crate::state::TrustState;
use crate::tokens::Tokens;
use crate::watchers::Watchers;

/// How long a change waits for this replica to know of it, so that the next call is not answered from before it.
const KNOWN_DEADLINE: Duration = Duration::from_secs(3);

/// What is told to callers of a replica that cannot say which roots the federation has.
const LAGS: &str = "the authority of this replica is not the federation's at this moment";

/// What is told to watchers of a replica that does not hear its store.
const OUT_OF_TOUCH: &str = "this replica does not hear its store: another one may";

/// The time in which a watcher that is sent to another replica hears why, before its connection ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the service works with.
#[derive(Debug)]
pub struct Parts<S> {
    /// Decides over members.
    pub membership: Membership<S>,
    /// The known tokens.
    pub tokens: Tokens<S>,
    /// Where wishes for the authority's rotation are left.
    pub store: S,
    /// What was done, and what was refused.
    pub audit: AuditLog<S>,
    /// The federation's own trust domain.
    pub federation: TrustDomain,
    /// Signs certificates of the federation's plane.
    pub authority: PlaneAuthority,
    /// How long these live.
    pub certificate_lifetime: Duration,
    /// How often each caller may change something.
    pub changes: Changes,
    /// What watchers are told.
    pub state: tokio_watch::Receiver<Arc<TrustState>>,
    /// Whether the state is known to be what the store holds.
    pub in_touch: tokio_watch::Receiver<bool>,
    /// Who watches.
    pub watchers: Watchers,
    /// Counts refusals.
    pub metrics: Metrics,
    /// Ends the watches.
    pub drain: DrainWatcher,
}

/// Serves `trust.v1`: what members call, and what operators call.
#[derive(Debug)]
pub struct TrustService<S> {
    parts: Arc<Parts<S>>,
}

impl<S> Clone for TrustService<S> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone() }
    }
}

/// Who calls.
#[derive(Debug, Clone)]
struct Caller {
    id: Option<SpiffeId>,
    /// The membership that its certificate was issued for.
    held: Option<u64>,
    address: Option<SocketAddr>,
    connection: Option<ConnectionInfo>,
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Self {
        let connection = request.extensions().get::<ConnectionInfo>();
        let leaf = connection.and_then(|connection| connection.peer.as_ref()?.chain().first());
        Self {
            id: peer(request).ok(),
            held: leaf.and_then(|leaf| marked_generation(leaf)),
            address: remote(request),
            connection: connection.cloned(),
        }
    }

    /// Refuses the call, and ends its connection: the next one leads to another replica.
    fn send_away(&self, why: &str) -> Status {
        if let Some(connection) = &self.connection {
            connection.end_after(FAREWELL);
        }
        Status::unavailable(why)
    }

    /// For the audit record.
    fn name(&self) -> String {
        match (&self.id, self.address) {
            (Some(id), _) => id.to_string(),
            (None, Some(address)) => format!("nobody known, from {}", address.ip()),
            (None, None) => "nobody known".to_owned(),
        }
    }
}

impl<S: Store> TrustService<S> {
    /// Serves with these parts.
    pub fn new(parts: Parts<S>) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// The face for members.
    #[must_use]
    pub fn for_members(&self) -> TrustServer<Self> {
        TrustServer::new(self.clone())
    }

    /// The face for operators.
    #[must_use]
    pub fn for_operators(&self) -> OperationsServer<Self> {
        OperationsServer::new(self.clone())
    }

    fn federation(&self) -> &TrustDomain {
        &self.parts.federation
    }

    fn roots(&self) -> Vec<Vec<u8>> {
        let told = self.parts.state.borrow().federation_roots().cloned();
        told.unwrap_or_else(|| self.parts.authority.current().roots().iter().map(|root| root.to_vec()).collect())
    }

    /// The caller, who must have a say in the federation.
    fn authorize(&self, caller: &Caller) -> Result<SpiffeId, Status> {
        let missing = || Status::unauthenticated("this call needs a client certificate");
        let id = caller.id.clone().ok_or_else(missing)?;
        self.parts.state.borrow().admits(&id, caller.held, self.federation())?;
        Ok(id)
    }

    async fn until_known(&self, revision: Revision) {
        let mut state = self.parts.state.clone();
        let known = state.wait_for(|state| state.epoch() >= revision);
        if tokio::time::timeout(KNOWN_DEADLINE, known).await.is_err() {
            error!(revision, "the store's watch lags behind: what has just changed is not known here for a while");
        }
    }

    /// Logs and counts a refusal.
    fn answer<T>(
        &self,
        call: &'static str,
        caller: &Caller,
        outcome: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        outcome.map(Response::new).inspect_err(|status| {
            self.parts.metrics.refused(call);
            let peer = caller.id.as_ref().map(tracing::field::display);
            let source = caller.address.map(tracing::field::display);
            info!(call, peer.id = peer, src.addr = source, code = ?status.code(), reason = status.message(), "refused");
        })
    }

    /// [`answer`](Self::answer) to a call that would have changed something: its refusal is recorded. What was done is
    /// recorded with the change.
    async fn answer_change<T>(
        &self,
        call: &'static str,
        caller: &Caller,
        (action, subject): (&'static str, String),
        outcome: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        if let Err(status) = &outcome {
            let note = Note { who: caller.name(), action, subject, detail: String::new() };
            self.parts.audit.refused(&note, status.message()).await;
        }
        self.answer(call, caller, outcome)
    }
}

#[tonic::async_trait]
impl<S: Store> Trust for TrustService<S> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let mut caller = Caller::of(&request);
        let subject = self.token_of(request.get_ref(), &mut caller);
        let outcome = self.make_member(request.get_ref()).await;
        self.answer_change("Join", &caller, ("member.joined", subject), outcome).await
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.renew(&caller, request.get_ref()).await;
        self.answer_change("RenewCertificate", &caller, ("certificate.renewed", caller.name()), outcome).await
    }

    async fn publish_bundle(
        &self,
        request: Request<PublishBundleRequest>,
    ) -> Result<Response<PublishBundleResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.put_own_words(&caller, request.get_ref()).await;
        self.answer_change("PublishBundle", &caller, ("bundle.put", caller.name()), outcome).await
    }

    async fn list_watchers(
        &self,
        request: Request<ListWatchersRequest>,
    ) -> Result<Response<ListWatchersResponse>, Status> {
        let caller = Caller::of(&request);
        self.answer("ListWatchers", &caller, self.list_watchers(&caller))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let caller = Caller::of(&request);
        let outcome = self.end_membership(&caller, request.get_ref()).await;
        self.answer_change("Leave", &caller, ("member.left", caller.name()), outcome).await
    }

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request);
        self.answer("Watch", &caller, self.open_watch(&caller, request).await)
    }
}
