//! The SPIFFE bundle endpoint (SPIFFE Federation, section 5): software outside the federation fetches the members' roots.
//!
//! ```text
//!  GET https://host:8443/east.mesh.example ──► Answer::of ──► JWK Set of east's roots
//!                      /mesh.example       ──►            ──► of the federation's own
//!        ▲ https_web: the operator's certificate, read again when it is replaced
//!        └ https_spiffe: the service's own SVID, spiffe://<federation>/service/trust-bundle
//! ```
//!
//! No client is asked for a certificate. One connection answers one request, within a deadline, and reads no body; how many
//! connections there are, in all and from one address, is bounded. Whoever is shut out of the federation is not served.

mod certificate;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_tls::rpc::{self, AcceptLimits, ServerStream};
use mesh_tls::{ClientAuth, Identity, TrustStore, server_config};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use serde::Deserialize;
use spiffe_identity::federation::Answer;
use spiffe_identity::{BundleSet, TrustDomain};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

pub use self::certificate::{CertificateError, WebCertificate};
use crate::standing::check_membership;
use crate::state::TrustState;

/// The one protocol of the endpoint.
const ALPN: &[u8] = b"http/1.1";

/// How long a client may take over its request and its answer together, the handshake apart.
const CONNECTION: Duration = Duration::from_secs(10);

/// The longest request head.
const MAX_HEAD: usize = 16 * 1024;

/// Where bundles are served to software outside the federation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EndpointConfig {
    /// Port 8443 by convention.
    pub listen: SocketAddr,
    /// Profile `https_web`, with a certificate that clients know by the web's authorities; without: `https_spiffe`.
    #[serde(default)]
    pub web: Option<WebConfig>,
}

/// PEM files of a web certificate. They are read again when they change.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WebConfig {
    /// The certificate and its intermediates, the leaf first.
    pub certificate_file: PathBuf,
    /// The leaf's key.
    pub key_file: PathBuf,
}

/// A status, as it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: u16,
}

/// What the endpoint counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Family<Status, Counter>,
}

impl Metrics {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("endpoint_requests", "Requests for bundles by status", self.requests.clone());
    }
}

/// What was opened before anything runs.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    certificate: Option<WebCertificate>,
}

impl Bound {
    /// Binds the listener and reads the web certificate, if there is to be one.
    ///
    /// # Errors
    /// Names the field and what is wrong.
    pub async fn open(config: &EndpointConfig) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("bundleEndpoint.listen: {}", config.listen))?;
        let certificate = config.web.clone().map(WebCertificate::open).transpose();
        Ok(Self { listener, certificate: certificate.context("bundleEndpoint.web")? })
    }
}

/// Serves what is known of the federation until dropped; never ends by itself.
///
/// `own` holds the federation's own bundle, `identity` is the service's.
///
/// # Errors
/// The listener has no address.
pub async fn run(
    bound: Bound,
    mut state: watch::Receiver<Arc<TrustState>>,
    own: TrustStore,
    federation: TrustDomain,
    identity: Identity,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let tls = match &bound.certificate {
        Some(certificate) => certificate.server_config(ALPN)?,
        None => server_config(&identity, &own, ClientAuth::None, &[ALPN]),
    };
    let profile = if bound.certificate.is_some() { "https_web" } else { "https_spiffe" };
    info!(listen = %bound.listener.local_addr()?, profile, "serving bundles");
    let first = bundles(&state.borrow(), &own, &federation);
    let (published, served) = watch::channel(Arc::new(first));
    let follow = async {
        let mut roots = own.changed();
        loop {
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                changed = roots.changed() => if changed.is_err() { return },
            }
            roots.borrow_and_update();
            let now = bundles(&state.borrow_and_update(), &own, &federation);
            published.send_replace(Arc::new(now));
        }
    };
    let reload = async {
        match &bound.certificate {
            Some(certificate) => certificate.keep_current().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = follow => {}
        () = reload => {}
        () = serve(bound.listener, tls, served, metrics) => {}
    }
    Ok(())
}

/// The bundles of everybody who is not shut out, and the federation's own.
fn bundles(state: &TrustState, own: &TrustStore, federation: &TrustDomain) -> BundleSet {
    let mut set = BundleSet::new();
    let members = state.members().filter(|cluster| {
        let member = state.member(cluster.as_str());
        member.is_some_and(|member| check_membership(state.deny_list(), cluster, member.generation()).is_ok())
    });
    let of_members = members.filter_map(|cluster| state.bundle(cluster.as_str())).map(|known| known.bundle.clone());
    for bundle in own.bundle(federation).into_iter().chain(of_members) {
        if let Err(error) = set.offer(bundle) {
            warn!(%error, "a bundle is not served");
        }
    }
    set
}

/// Answers requests until dropped.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    bundles: watch::Receiver<Arc<BundleSet>>,
    metrics: Metrics,
) {
    let limits = AcceptLimits {
        handshake_deadline: Duration::from_secs(5),
        handshakes: 64,
        handshakes_per_source: 16,
        anonymous_lifetime: CONNECTION,
        connections: 256,
        ..AcceptLimits::default()
    };
    let mut incoming = rpc::incoming(listener, tls, limits);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = incoming.next() => match stream {
                Some(Ok(stream)) => {
                    connections.spawn(connection(stream, bundles.clone(), metrics.clone()));
                }
                Some(Err(error)) => debug!(%error, "a connection for a bundle"),
                None => return,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: ServerStream, bundles: watch::Receiver<Arc<BundleSet>>, metrics: Metrics) {
    let remote = stream.info().remote;
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&bundles.borrow(), &request, &metrics);
        std::future::ready(response)
    });
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).max_buf_size(MAX_HEAD).timer(TokioTimer::new()).header_read_timeout(CONNECTION);
    match tokio::time::timeout(CONNECTION, builder.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(src.addr = %remote, %error, "a request for a bundle"),
        Err(_) => debug!(src.addr = %remote, "a request for a bundle took too long"),
    }
}

fn answer(
    bundles: &BundleSet,
    request: &Request<Incoming>,
    metrics: &Metrics,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let target = request.uri().path();
    let Answer { status, headers, body } = Answer::of(bundles, request.method().as_str(), target);
    metrics.requests.get_or_create(&Status { status }).inc();
    let response = Response::builder().status(status);
    headers
        .into_iter()
        .fold(response, |response, (name, value)| response.header(name, value))
        .body(Full::new(Bytes::from(body)))
}
