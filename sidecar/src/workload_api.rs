//! The SPIFFE Workload API, X.509 profile, on a Unix socket: other programs beside the application use the workload's identity.
//!
//! ```text
//!  program ── unix socket, 0660 ──► FetchX509SVID ────┐        ┌── Identity     a new SVID
//!  (SPIFFE_ENDPOINT_SOCKET)         FetchX509Bundles ─┴ Source ┼── TrustStore   a new root, a quarantine
//!                                                              └── Standing     whether the control-plane grants one
//! ```
//!
//! - Who may open the socket *is* the workload: it is handed the key. The socket's mode is 0660, so the group of its directory
//!   decides (in a pod: a shared volume with an `fsGroup`). No caller is told apart from another.
//! - Every message is the whole state. The first one comes at once, the next when an SVID or a bundle changes; what a message
//!   leaves out is withdrawn. A quarantined trust domain is left out.
//! - `Unavailable` until there is an SVID and a first whole state; `PermissionDenied` when the control-plane refuses an SVID, or
//!   the deny-list names it; `InvalidArgument` without the standard's metadata; JWT calls are `Unimplemented`.
//! - Connections and streams are bounded.

mod answers;
mod authority;
mod connection;
mod generated;
mod socket;
mod standing;
mod updates;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use mesh_tls::{Identity, TrustStore};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use spiffe_identity::TrustDomain;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use self::answers::Source;
use self::connection::Caller;
use self::generated::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use self::generated::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
pub(crate) use self::socket::Socket;
pub(crate) use self::standing::Standing;
use self::updates::updates;

/// Connections at a time; one more is closed unheard.
const MAX_CONNECTIONS: usize = 64;

/// Streams at a time, over all connections; one more is told so.
const MAX_STREAMS: usize = 256;

/// Streams of one connection at a time; more wait at the client.
const STREAMS_PER_CONNECTION: u32 = 32;

/// Of a request; those of the X.509 profile are empty.
const MAX_REQUEST: usize = 64 * 1024;

/// What the standard asks of every request, against programs that are made to call it unawares.
const HEADER: (&str, &str) = ("workload.spiffe.io", "true");

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How an answer began.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    call: &'static str,
    code: &'static str,
}

/// What the Workload API counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    calls: Family<Answered, Counter>,
    streams: Gauge,
    shed: Counter,
}

impl Metrics {
    /// Adds them all to a registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "workload_api_calls",
            "Calls of the SPIFFE Workload API by how their answer began",
            self.calls.clone(),
        );
        registry.register("workload_api_streams", "Open streams of the SPIFFE Workload API", self.streams.clone());
        registry.register(
            "workload_api_shed",
            "Connections to the SPIFFE Workload API beyond the limit",
            self.shed.clone(),
        );
    }
}

/// The service.
#[derive(Clone)]
pub(crate) struct WorkloadApi {
    source: Arc<Source>,
    streams: Arc<Semaphore>,
    metrics: Metrics,
    stopped: CancellationToken,
}

impl WorkloadApi {
    /// Answers from what the sidecar knows of itself and of others.
    pub(crate) fn new(
        trust_domain: TrustDomain,
        identity: Identity,
        trust: TrustStore,
        standing: Standing,
        metrics: Metrics,
    ) -> Self {
        let source = Arc::new(Source { trust_domain, identity, trust, standing });
        Self { source, streams: Arc::new(Semaphore::new(MAX_STREAMS)), metrics, stopped: CancellationToken::new() }
    }

    /// Serves until dropped; then streams end and the socket is gone.
    pub(crate) async fn serve(self, socket: Socket) {
        let _stop = self.stopped.clone().drop_guard();
        info!(socket = %socket.path().display(), "workload API");
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let incoming = connection::incoming(socket, connections, self.metrics.shed.clone());
        let service = SpiffeWorkloadApiServer::new(self).max_decoding_message_size(MAX_REQUEST);
        let service = tonic::service::interceptor::InterceptedService::new(service, require_header);
        let server = Server::builder().max_concurrent_streams(Some(STREAMS_PER_CONNECTION)).add_service(service);
        if let Err(error) = server.serve_with_incoming(incoming).await {
            warn!(%error, "workload API");
        }
    }

    /// Begins a stream, or says why not.
    fn stream<T>(
        &self,
        call: &'static str,
        caller: Option<Caller>,
        read: fn(&Source) -> Result<T, Status>,
    ) -> Result<Response<Streamed<T>>, Status>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        let begun = self.begin(read);
        let code = begun.as_ref().map_or_else(|status| code_label(status.code()), |_| "ok");
        self.metrics.calls.get_or_create(&Answered { call, code }).inc();
        let (process, user) = caller.map_or((None, None), |caller| (caller.process, Some(caller.user)));
        info!(call, code, caller.pid = process, caller.uid = user, "workload API call");
        begun
    }

    fn begin<T>(&self, read: fn(&Source) -> Result<T, Status>) -> Result<Response<Streamed<T>>, Status>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        // A stream that has nothing to say ends with its call, not after it.
        read(&self.source)?;
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted(format!("{MAX_STREAMS} streams are open")))?;
        let open = updates::Open::new(permit, self.metrics.streams.clone());
        Ok(Response::new(Box::pin(updates(Arc::clone(&self.source), read, self.stopped.clone(), open))))
    }

    fn unimplemented(&self, call: &'static str) -> Status {
        self.metrics.calls.get_or_create(&Answered { call, code: "unimplemented" }).inc();
        Status::unimplemented("JWT-SVIDs are not issued here; the X.509 profile is")
    }
}

fn require_header(request: Request<()>) -> Result<Request<()>, Status> {
    let (name, value) = HEADER;
    match request.metadata().get(name) {
        Some(given) if given == value => Ok(request),
        _ => Err(Status::invalid_argument(format!("the metadata {name}: {value} is missing"))),
    }
}

const fn code_label(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::PermissionDenied => "permission_denied",
        tonic::Code::Unavailable => "unavailable",
        tonic::Code::ResourceExhausted => "resource_exhausted",
        _ => "other",
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Streamed<X509svidResponse>;
    type FetchX509BundlesStream = Streamed<X509BundlesResponse>;
    type FetchJWTBundlesStream = Streamed<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream("FetchX509SVID", request.extensions().get::<Option<Caller>>().copied().flatten(), Source::svids)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream(
            "FetchX509Bundles",
            request.extensions().get::<Option<Caller>>().copied().flatten(),
            Source::bundles,
        )
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(self.unimplemented("FetchJWTSVID"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(self.unimplemented("FetchJWTBundles"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(self.unimplemented("ValidateJWTSVID"))
    }
}
