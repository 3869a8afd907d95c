//! `trust.v1`: the RPC face. The caller is who its certificate says.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use federation::ClusterName;
use federation_api::trust::v1::trust_server::Trust;
use federation_api::trust::v1::{
    JoinRequest, JoinResponse, PublishBundleRequest, PublishBundleResponse, RenewCertificateRequest,
    RenewCertificateResponse, WatchAck, WatchRequest, WatchResponse, WatchStart, watch_request,
};
use federation_store::Store;
use futures_util::{Stream, StreamExt};
use mesh_tls::rpc::peer;
use spiffe_identity::{PlaneRole, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::membership::{Membership, Refused};
use crate::state::TrustState;

/// The version of the protocol that this service speaks.
const VERSION: u32 = 1;
/// Responses that wait for a slow watcher; further changes are merged into the next one.
const WATCH_BUFFER: usize = 2;
/// A watcher must say what it wants within this time.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// Serves `trust.v1`.
#[derive(Debug)]
pub struct TrustService<S> {
    membership: Membership<S>,
    authority: Arc<Authority>,
    trust_domain: TrustDomain,
    certificate_lifetime: Duration,
    state: watch::Receiver<Arc<TrustState>>,
    watchers: Watchers,
}

/// Who watches and how far each has come, for status.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    next: Arc<AtomicU64>,
    acknowledged: Arc<Mutex<BTreeMap<(String, u64), WatchAck>>>,
}

impl Watchers {
    /// Each watcher's identity and its last acknowledgement.
    #[must_use]
    pub fn list(&self) -> Vec<(String, WatchAck)> {
        let table = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|((peer, _), ack)| (peer.clone(), ack.clone())).collect()
    }

    fn add(&self, peer: &SpiffeId) -> Watching {
        let key = (peer.to_string(), self.next.fetch_add(1, Ordering::Relaxed));
        let watching = Watching { watchers: self.clone(), key };
        watching.acknowledge(WatchAck::default());
        watching
    }
}

/// One watcher's entry; gone when dropped.
#[derive(Debug)]
struct Watching {
    watchers: Watchers,
    key: (String, u64),
}

impl Watching {
    fn acknowledge(&self, ack: WatchAck) {
        let mut table = self.watchers.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert(self.key.clone(), ack);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut table = self.watchers.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        table.remove(&self.key);
    }
}

impl<S: Store> TrustService<S> {
    /// Serves with the federation's authority, telling watchers `state`.
    pub fn new(
        membership: Membership<S>,
        authority: Arc<Authority>,
        trust_domain: TrustDomain,
        certificate_lifetime: Duration,
        state: watch::Receiver<Arc<TrustState>>,
    ) -> Self {
        Self { membership, authority, trust_domain, certificate_lifetime, state, watchers: Watchers::default() }
    }

    /// Who watches.
    #[must_use]
    pub fn watchers(&self) -> Watchers {
        self.watchers.clone()
    }

    fn issue(&self, csr: &[u8], id: &SpiffeId) -> Result<Vec<Vec<u8>>, Status> {
        let svid = self
            .authority
            .issue(csr, id, self.certificate_lifetime, SystemTime::now())
            .map_err(|error| Status::invalid_argument(format!("csr: {error}")))?;
        Ok(svid.chain.into_iter().map(|certificate| certificate.to_vec()).collect())
    }

    fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.authority.root().to_vec()]
    }

    /// The caller, who must be of the federation's own trust domain and, if a control-plane, of a member.
    fn authorize<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        let id = peer(request)?;
        if *id.trust_domain() != self.trust_domain {
            return Err(Status::permission_denied(format!("{id} is not of the federation {}", self.trust_domain)));
        }
        match id.role() {
            Some(PlaneRole::ControlPlane { cluster }) if self.state.borrow().member(cluster).is_none() => {
                Err(Status::permission_denied(format!("cluster {cluster} is no member")))
            }
            Some(_) => Ok(id),
            None => Err(Status::permission_denied(format!("{id} has no part in the federation"))),
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match &refused {
            Refused::Unverified(_) => Code::Unauthenticated,
            Refused::TokenUsed(_) | Refused::OldGeneration { .. } | Refused::StaleBundle { .. } => {
                Code::FailedPrecondition
            }
            Refused::Malformed { .. } => Code::InvalidArgument,
            Refused::NoMember(_) => Code::PermissionDenied,
            Refused::Store(_) => Code::Unavailable,
        };
        Self::new(code, refused.to_string())
    }
}

#[tonic::async_trait]
impl<S: Store> Trust for TrustService<S> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        let (Some(member), Some(bundle)) = (&request.member, &request.bundle) else {
            return Err(Status::invalid_argument("member and bundle must be set"));
        };
        // A request that no certificate can be made for must not use the token up.
        let probe =
            SpiffeId::service(&self.trust_domain, "probe").map_err(|error| Status::internal(error.to_string()))?;
        self.issue(&request.csr, &probe)?;
        let verified = self
            .membership
            .join(member, bundle, SystemTime::now())
            .await
            .inspect_err(|refused| warn!(%refused, "join refused"))?;
        let cluster = verified.cluster();
        let id = SpiffeId::control_plane(&self.trust_domain, cluster.as_str())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let certificate_chain = self.issue(&request.csr, &id)?;
        info!(%cluster, generation = verified.generation(), "joined");
        Ok(Response::new(JoinResponse { certificate_chain, federation_roots: self.roots() }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let id = self.authorize(&request)?;
        let certificate_chain = self.issue(&request.get_ref().csr, &id)?;
        Ok(Response::new(RenewCertificateResponse { certificate_chain, federation_roots: self.roots() }))
    }

    async fn publish_bundle(
        &self,
        request: Request<PublishBundleRequest>,
    ) -> Result<Response<PublishBundleResponse>, Status> {
        let id = self.authorize(&request)?;
        let Some(PlaneRole::ControlPlane { cluster }) = id.role() else {
            return Err(Status::permission_denied(format!("{id} speaks for no cluster")));
        };
        let cluster: ClusterName = cluster.parse().map_err(|error| Status::permission_denied(format!("{error}")))?;
        let bundle = request.get_ref().bundle.as_ref().ok_or_else(|| Status::invalid_argument("bundle must be set"))?;
        self.membership.publish_bundle(&cluster, bundle).await?;
        Ok(Response::new(PublishBundleResponse {}))
    }

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let id = self.authorize(&request)?;
        let mut requests = request.into_inner();
        let start = tokio::time::timeout(START_DEADLINE, first_request(&mut requests))
            .await
            .map_err(|_| Status::deadline_exceeded("no start came in time"))??;
        if !start.versions.contains(&VERSION) {
            let message = format!("this service speaks version {VERSION}, the watcher {:?}", start.versions);
            return Err(Status::failed_precondition(message));
        }
        let (responses, stream) = mpsc::channel(WATCH_BUFFER);
        let watching = self.watchers.add(&id);
        let tell = tell(start, self.state.clone(), self.roots(), responses.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = tell => {}
                () = responses.closed() => {}
                () = listen(requests, &watching) => {}
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream))))
    }
}

async fn first_request(requests: &mut Streaming<WatchRequest>) -> Result<WatchStart, Status> {
    match requests.next().await.transpose()?.and_then(|request| request.request) {
        Some(watch_request::Request::Start(start)) => Ok(start),
        _ => Err(Status::invalid_argument("the first request must be a start")),
    }
}

/// Takes acknowledgements until the watcher ends.
async fn listen(mut requests: Streaming<WatchRequest>, watching: &Watching) {
    while let Some(Ok(request)) = requests.next().await {
        if let Some(watch_request::Request::Ack(ack)) = request.request {
            watching.acknowledge(ack);
        }
    }
}

/// Tells one watcher everything it lacks, for as long as it takes it. A slow one gets later changes in one response.
async fn tell(
    start: WatchStart,
    mut state: watch::Receiver<Arc<TrustState>>,
    roots: Vec<Vec<u8>>,
    responses: mpsc::Sender<Result<WatchResponse, Status>>,
) {
    let now = state.borrow_and_update().clone();
    let known = start.incarnation == now.incarnation() && start.epoch <= now.epoch() && start.epoch > 0;
    let mut cursor = known.then_some(start.epoch);
    // The first response always comes: it carries the version and the roots.
    let first = now.since(cursor).unwrap_or_else(|| WatchResponse {
        incarnation: now.incarnation().to_owned(),
        epoch: now.epoch(),
        ..WatchResponse::default()
    });
    let mut next = Some(WatchResponse { version: VERSION, federation_roots: roots, ..first });
    loop {
        if let Some(response) = next.take() {
            cursor = Some(response.epoch);
            if responses.send(Ok(response)).await.is_err() {
                return;
            }
        }
        if state.changed().await.is_err() {
            let _ = responses.send(Err(Status::unavailable("the service ends"))).await;
            return;
        }
        next = state.borrow_and_update().since(cursor);
    }
}
