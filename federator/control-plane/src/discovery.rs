//! `discovery.v1`, served to the cluster's proxies.
//!
//! ```text
//!   Snapshot (watch) ──► one task per proxy: subscriptions, versions sent ──► deltas, at most a few in flight
//! ```
//!
//! A slow proxy costs its set of versions and nothing more: the next delta is computed from the newest snapshot when there
//! is room for it. What a proxy is told follows from the identity in its certificate.

mod delta;
mod stream;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation_api::discovery::v1::discovery_server::Discovery;
use federation_api::discovery::v1::{IssueSvidRequest, IssueSvidResponse, WatchRequest, WatchResponse};
use futures_util::Stream;
use mesh_tls::rpc;
use spiffe_identity::{SpiffeId, TrustDomain};
use svid_issuer::{AttestError, Attestor, Authority, IssueError};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use crate::proxies::Proxies;
use crate::snapshot::Snapshot;

/// The namespace of the mesh's own workloads.
pub const SYSTEM_NAMESPACE: &str = "isthmus-system";
/// The control-plane's service account.
pub const CONTROL_PLANE_ACCOUNT: &str = "control-plane";
/// The gateways' service account: nobody else is told a gateway's state.
pub const GATEWAY_ACCOUNT: &str = "east-west-gateway";

/// Responses on their way to one proxy.
const RESPONSES: usize = 2;

/// What the service needs.
pub struct DiscoveryService<A> {
    shared: Arc<Shared<A>>,
}

struct Shared<A> {
    trust_domain: TrustDomain,
    authority: Arc<Authority>,
    attestor: A,
    svid_lifetime: Duration,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    proxies: Proxies,
}

impl<A: Attestor + 'static> DiscoveryService<A> {
    /// A service of one cluster.
    #[must_use]
    pub fn new(
        authority: Arc<Authority>,
        attestor: A,
        svid_lifetime: Duration,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        proxies: Proxies,
    ) -> Self {
        let trust_domain = authority.trust_domain().clone();
        Self { shared: Arc::new(Shared { trust_domain, authority, attestor, svid_lifetime, snapshots, proxies }) }
    }
}

impl<A: Attestor> Shared<A> {
    /// Who calls, if it is somebody of this cluster who is not shut out.
    fn caller<T>(&self, request: &Request<T>) -> Result<SpiffeId, Status> {
        let id = rpc::peer(request)?;
        if *id.trust_domain() != self.trust_domain {
            return Err(Status::permission_denied(format!("{id} is not of this cluster's trust domain")));
        }
        self.check_not_denied(&id)?;
        Ok(id)
    }

    fn check_not_denied(&self, id: &SpiffeId) -> Result<(), Status> {
        if self.snapshots.borrow().denied.contains(&id.to_string()) {
            return Err(Status::permission_denied(format!("{id} is quarantined")));
        }
        Ok(())
    }

    async fn attested(&self, token: &str) -> Result<SpiffeId, Status> {
        let workload = self.attestor.attest(token).await.map_err(|error| match error {
            AttestError::Refused(_) => Status::unauthenticated(error.to_string()),
            AttestError::Unavailable(_) => Status::unavailable(error.to_string()),
        })?;
        SpiffeId::workload(&self.trust_domain, &workload.namespace, &workload.service_account)
            .map_err(|error| Status::unauthenticated(format!("the token names no workload: {error}")))
    }
}

#[tonic::async_trait]
impl<A: Attestor + 'static> Discovery for DiscoveryService<A> {
    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<IssueSvidResponse>, Status> {
        let shared = &self.shared;
        let token = &request.get_ref().service_account_token;
        let id = if token.is_empty() { shared.caller(&request)? } else { shared.attested(token).await? };
        shared.check_not_denied(&id)?;
        let issued = shared.authority.issue(&request.get_ref().csr, &id, shared.svid_lifetime, SystemTime::now());
        let svid = issued.map_err(|error| match error {
            IssueError::Request(_) => Status::invalid_argument(format!("csr: {error}")),
            _ => Status::internal(error.to_string()),
        })?;
        info!(peer.id = %id, renewal = token.is_empty(), "issued an SVID");
        let since_epoch = svid.not_after.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Response::new(IssueSvidResponse {
            certificate_chain: svid.chain.iter().map(|der| der.to_vec()).collect(),
            not_after_ms: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.shared.caller(&request)?;
        let (responses, receiver) = mpsc::channel(RESPONSES);
        let serving = stream::ProxyStream {
            caller,
            trust_domain: self.shared.trust_domain.clone(),
            snapshots: self.shared.snapshots.clone(),
            proxies: self.shared.proxies.clone(),
            responses,
        };
        // Ends when the proxy hangs up: its requests end, or the responses' receiver is dropped.
        tokio::spawn(serving.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
