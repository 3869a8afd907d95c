//! `trust.v1`: the RPC face. The caller is who its certificate says.

mod watch;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation::ClusterName;
use federation_api::trust::v1::trust_server::Trust;
use federation_api::trust::v1::{
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, ListWatchersRequest, ListWatchersResponse,
    PublishBundleRequest, PublishBundleResponse, RenewCertificateRequest, RenewCertificateResponse, WatchRequest,
    WatchResponse, Watcher as WireWatcher,
};
use federation_store::{Revision, Store};
use futures_util::Stream;
use mesh_runtime::DrainWatcher;
use mesh_tls::rpc::{peer, remote};
use spiffe_identity::{PlaneRole, SpiffeId, TrustDomain};
use svid_issuer::{Authority, IssueError};
use tokio::sync::watch as tokio_watch;
use tonic::{Request, Response, Status, Streaming};
use tracing::{error, info};

use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::state::TrustState;
use crate::watchers::Watchers;

/// How long a join waits for this replica to know the new member, so that its next call is not refused here.
const KNOWN_DEADLINE: Duration = Duration::from_secs(3);

/// What the service works with.
#[derive(Debug)]
pub struct Parts<S> {
    /// Decides joins and bundles.
    pub membership: Membership<S>,
    /// Signs certificates of the federation's plane.
    pub authority: Arc<Authority>,
    /// How long these live.
    pub certificate_lifetime: Duration,
    /// What watchers are told.
    pub state: tokio_watch::Receiver<Arc<TrustState>>,
    /// Who watches.
    pub watchers: Watchers,
    /// Counts refusals.
    pub metrics: Metrics,
    /// Ends the watches.
    pub drain: DrainWatcher,
}

/// Serves `trust.v1`.
#[derive(Debug)]
pub struct TrustService<S> {
    parts: Parts<S>,
}

impl<S: Store> TrustService<S> {
    /// Serves with these parts.
    pub fn new(parts: Parts<S>) -> Self {
        Self { parts }
    }

    fn federation(&self) -> &TrustDomain {
        self.parts.authority.trust_domain()
    }

    fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.parts.authority.root().to_vec()]
    }

    fn issue(&self, csr: &[u8], id: &SpiffeId, now: SystemTime) -> Result<Vec<Vec<u8>>, Status> {
        match self.parts.authority.issue(csr, id, self.parts.certificate_lifetime, now) {
            Ok(svid) => Ok(svid.chain.into_iter().map(|certificate| certificate.to_vec()).collect()),
            Err(IssueError::Request(refused)) => Err(Status::invalid_argument(format!("csr: {refused}"))),
            Err(failed) => {
                error!(%id, error = %failed, "no certificate can be issued");
                Err(Status::internal("no certificate can be issued"))
            }
        }
    }

    /// The caller, who must have a say in the federation.
    fn authorize<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        let id = peer(request)?;
        self.parts.state.borrow().admits(&id, self.federation())?;
        Ok(id)
    }

    /// Everything that can fail for the request's sake comes before the token is used up, the certificate included.
    async fn make_member(&self, request: &JoinRequest) -> Result<JoinResponse, Status> {
        let (Some(member), Some(bundle)) = (&request.member, &request.bundle) else {
            return Err(Status::invalid_argument("member and bundle must be set"));
        };
        let now = SystemTime::now();
        let joining = self.parts.membership.examine(member, bundle, now)?;
        let cluster = joining.member().cluster();
        let id = SpiffeId::control_plane(self.federation(), cluster.as_str())
            .map_err(|error| Status::invalid_argument(format!("member: cluster: {error}")))?;
        let certificate_chain = self.issue(&request.csr, &id, now)?;
        let revision = self.parts.membership.admit(&joining).await?;
        info!(%cluster, generation = joining.member().generation(), revision, "joined");
        self.until_known(revision).await;
        Ok(JoinResponse { certificate_chain, federation_roots: self.roots() })
    }

    async fn until_known(&self, revision: Revision) {
        let mut state = self.parts.state.clone();
        let known = state.wait_for(|state| state.epoch() >= revision);
        if tokio::time::timeout(KNOWN_DEADLINE, known).await.is_err() {
            error!(revision, "the store's watch lags behind: a new member may be refused for a while");
        }
    }

    fn renew(&self, request: &Request<RenewCertificateRequest>) -> Result<RenewCertificateResponse, Status> {
        let id = self.authorize(request)?;
        let certificate_chain = self.issue(&request.get_ref().csr, &id, SystemTime::now())?;
        info!(peer.id = %id, "renewed a certificate");
        Ok(RenewCertificateResponse { certificate_chain, federation_roots: self.roots() })
    }

    async fn put_bundle(&self, request: &Request<PublishBundleRequest>) -> Result<PublishBundleResponse, Status> {
        let id = self.authorize(request)?;
        let Some(PlaneRole::ControlPlane { cluster }) = id.role_in(self.federation()) else {
            return Err(Status::permission_denied(format!("{id} speaks for no cluster")));
        };
        let cluster: ClusterName = cluster.parse().map_err(|error| Status::permission_denied(format!("{error}")))?;
        let bundle = request.get_ref().bundle.as_ref();
        let bundle = bundle.ok_or_else(|| Status::invalid_argument("bundle must be set"))?;
        let revision = self.parts.membership.publish_bundle(&cluster, bundle).await?;
        info!(%cluster, revision, "bundle published");
        Ok(PublishBundleResponse { epoch: revision })
    }

    fn list(&self, request: &Request<ListWatchersRequest>) -> Result<ListWatchersResponse, Status> {
        self.authorize(request)?;
        let watchers = self.parts.watchers.list().into_iter().map(|watcher| WireWatcher {
            identity: watcher.peer.to_string(),
            acknowledged: watcher.acknowledged.epoch,
            pending_proxies: watcher.acknowledged.pending_proxies,
            pending_count: watcher.acknowledged.pending_count,
            connected_count: watcher.acknowledged.connected_count,
            connected: true,
            ..WireWatcher::default()
        });
        Ok(ListWatchersResponse { epoch: self.parts.state.borrow().epoch(), watchers: watchers.collect() })
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
            let peer = caller.peer.as_ref().map(tracing::field::display);
            let source = caller.address.map(tracing::field::display);
            info!(call, peer.id = peer, src.addr = source, code = ?status.code(), reason = status.message(), "refused");
        })
    }
}

/// Who calls, for the log.
struct Caller {
    peer: Option<SpiffeId>,
    address: Option<std::net::SocketAddr>,
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Self {
        Self { peer: peer(request).ok(), address: remote(request) }
    }
}

#[tonic::async_trait]
impl<S: Store> Trust for TrustService<S> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = Caller::of(&request);
        self.answer("Join", &caller, self.make_member(request.get_ref()).await)
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        self.answer("RenewCertificate", &Caller::of(&request), self.renew(&request))
    }

    async fn publish_bundle(
        &self,
        request: Request<PublishBundleRequest>,
    ) -> Result<Response<PublishBundleResponse>, Status> {
        let caller = Caller::of(&request);
        self.answer("PublishBundle", &caller, self.put_bundle(&request).await)
    }

    async fn list_watchers(
        &self,
        request: Request<ListWatchersRequest>,
    ) -> Result<Response<ListWatchersResponse>, Status> {
        self.answer("ListWatchers", &Caller::of(&request), self.list(&request))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let refused = Err(Status::unimplemented("a membership ends by the operator's eviction only"));
        self.answer("Leave", &Caller::of(&request), refused)
    }

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request);
        self.answer("Watch", &caller, self.open_watch(request).await)
    }
}
