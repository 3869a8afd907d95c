//! Calls to the local application: the mesh's listener.
//!
//! ```text
//!  peer ─► TLS, both ends proven ─► SNI = a binding? ─► verdict ─┬─ isthmus-h2 ──► HTTP/2 ─► application (HTTP/1.1, h2c)
//!                                                               └─ isthmus-tcp ─► bytes ──► application
//! ```
//!
//! The verdict is this side's first word, so that a peer never mistakes a refusal for a reset in mid-request.
//!
//! Policies are asked for every request and every raw connection, and raw connections that are open once more whenever
//! policies change. Plaintext is another matter: see [`plaintext`].

pub(crate) mod admission;
pub(crate) mod application;
pub(crate) mod denials;
pub(crate) mod exchange;
mod http;
mod plaintext;
pub(crate) mod policy;
pub(crate) mod serving;
mod sources;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use federation::Sni;
use federation::export::ApplicationProtocol;
use federation::sni::Subset;
use federation_api::mesh::v1::Verdict;
use federation_api::mesh::v1::verdict::Code;
use federation_api::verdict;
use mesh_runtime::DrainWatcher;
use mesh_tls::{Guarded, Identity, TrustStore, handshake};
use relay::{RelayOptions, Relayed, Side, SocketOptions};
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use crate::inbound::admission::Admission;
use crate::inbound::application::Application;
use crate::inbound::denials::Denials;
use crate::inbound::policy::{Call, Decision, Judgement};
use crate::inbound::serving::{Served, Serving};
use crate::inbound::sources::Sources;
use crate::metrics::{Answered, Direction, Metrics};
use crate::outbound::ACCEPT_PAUSE;
use crate::routing::plan::{ALPN_HTTP, ALPN_TCP};
use crate::service::Binding;
use crate::tasks::Tasks;
use crate::telemetry::Access;

/// How long a peer may take over its handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Handshakes at a time; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;

/// Connections beyond the limit that are still told so; further ones are closed unheard.
const MAX_REFUSALS: usize = 64;

/// What calls to the application need.
pub(crate) struct Inbound {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) trust: TrustStore,
    pub(crate) identity: Identity,
    pub(crate) serving: Arc<Served>,
    pub(crate) application: Application,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) drain: DrainWatcher,
    /// Mesh connections at a time.
    pub(crate) connections: Arc<Semaphore>,
    /// Requests that the application has at a time.
    pub(crate) admission: Admission,
    /// How many denials are logged.
    pub(crate) denials: Denials,
}

/// Boxed: it is handed on from one stage to the next, and each would hold room for it.
type Stream = Box<Guarded<TlsStream<TcpStream>>>;

/// A peer whose handshake is done.
struct Caller {
    peer: mesh_tls::Peer,
    /// Its cluster's trust domain: the caller's label in metrics.
    domain: Arc<str>,
    identity: Arc<str>,
    address: SocketAddr,
}

/// What is wrong with a connection, as the peer is told.
struct Refused {
    code: Code,
    detail: String,
}

impl Inbound {
    /// Accepts mesh connections until dropped. While draining, new ones are told so.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        let sources = Sources::default();
        loop {
            let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "inbound accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(source) = sources.enter(address.ip()) else {
                self.count("none", "shed");
                continue;
            };
            let (permit, overloaded) = match Arc::clone(&self.connections).try_acquire_owned() {
                Ok(permit) => (permit, false),
                Err(_) => match Arc::clone(&refusals).try_acquire_owned() {
                    Ok(permit) => (permit, true),
                    Err(_) => {
                        self.count("none", "shed");
                        continue;
                    }
                },
            };
            let inbound = Arc::clone(&self);
            self.tasks.spawn(Box::pin(async move {
                // What a stage needs goes with the stage: most of a connection's life is the last one.
                let accepted = Box::pin(inbound.handshake(stream, address)).await;
                drop((handshake, source));
                if let Some((stream, caller)) = accepted {
                    inbound.connection(stream, caller, overloaded, permit).await;
                }
            }));
        }
    }

    async fn handshake(&self, stream: TcpStream, address: SocketAddr) -> Option<(Stream, Caller)> {
        let failed = |error: &dyn std::fmt::Display| {
            self.count("none", "handshake");
            debug!(src.addr = %address, %error, "mesh handshake");
        };
        if let Err(error) = relay::configure(&stream, &SocketOptions::default()) {
            failed(&error);
            return None;
        }
        let stream = match handshake::accept(stream, &self.tls, HANDSHAKE_DEADLINE).await {
            Ok(stream) => stream,
            Err(error) => {
                failed(&error);
                return None;
            }
        };
        let peer = mesh_tls::Peer::of_server(stream.get_ref().1)?;
        let caller = Caller {
            domain: peer.id().trust_domain().as_str().into(),
            identity: peer.id().to_string().into(),
            address,
            peer: peer.clone(),
        };
        Some((Box::new(Guarded::new(stream, &self.trust, peer)), caller))
    }

    async fn connection(
        self: &Arc<Self>,
        mut stream: Stream,
        caller: Caller,
        overloaded: bool,
        permit: OwnedSemaphorePermit,
    ) {
        let open = self.metrics.open_connections.get_or_create_owned(&Direction { direction: "inbound" });
        open.inc();
        let serving = self.serving.load_full();
        let http = stream.inner().get_ref().1.alpn_protocol() == Some(ALPN_HTTP);
        match self.judge(&stream, &serving, &caller, overloaded) {
            Err(refused) => self.refuse(&mut stream, &serving, &caller, refused).await,
            Ok(binding) if http => Box::pin(self.http(stream, &serving, caller, binding)).await,
            Ok(binding) => Box::pin(self.opaque(stream, &serving, caller, &binding)).await,
        }
        open.dec();
        drop(permit);
    }

    /// Finds what the connection is for, or why it goes nowhere.
    fn judge(
        &self,
        stream: &Stream,
        serving: &Serving,
        caller: &Caller,
        overloaded: bool,
    ) -> Result<Arc<Binding>, Refused> {
        let refused = |code, detail: String| Refused { code, detail };
        if self.drain.draining() {
            return Err(refused(Code::Draining, "this endpoint is going away".to_owned()));
        }
        if overloaded {
            return Err(refused(Code::Overloaded, "too many connections".to_owned()));
        }
        let connection = stream.inner().get_ref().1;
        let name = connection.server_name().unwrap_or_default();
        let sni: Sni = name.parse().map_err(|error| refused(Code::UnknownService, format!("{error}")))?;
        if let Subset::Cluster(cluster) | Subset::Slot(cluster, _) = &sni.subset
            && serving.cluster.as_ref() != Some(cluster)
        {
            return Err(refused(Code::UnknownService, format!("this is not cluster {cluster}")));
        }
        let binding = serving
            .workload
            .binding(&sni.host, sni.port)
            .ok_or_else(|| refused(Code::UnknownService, format!("{}:{} is not answered here", sni.host, sni.port)))?;
        let opaque = binding.port.application_protocol() == ApplicationProtocol::Tcp;
        match connection.alpn_protocol() {
            Some(ALPN_HTTP) if !opaque || !binding.port.declares_protocol() => Ok(Arc::clone(binding)),
            Some(ALPN_TCP) if opaque => match self.permits(serving, caller, binding, None) {
                Ok(()) => Ok(Arc::clone(binding)),
                Err(policy) => Err(refused(Code::Denied, format!("denied by {policy}"))),
            },
            // Raw bytes to an HTTP port would get around the checks of each request.
            Some(_) => Err(refused(Code::Denied, "the port carries another protocol here".to_owned())),
            None => Err(refused(Code::Denied, "no isthmus protocol was offered".to_owned())),
        }
    }

    /// Whether the policies let a call through, raw TCP or an HTTP request's method and path; else the policy that does not.
    fn permits(
        &self,
        serving: &Serving,
        caller: &Caller,
        binding: &Binding,
        http: Option<(&str, &str)>,
    ) -> Result<(), Arc<str>> {
        let call = Call {
            caller: caller.peer.id(),
            federation: serving.federation.as_deref(),
            port: binding.target_port,
            local: binding.host.is_local().then_some(serving.cluster.as_ref().map_or("", |own| own.as_str())),
            http,
        };
        let Judgement { decision, rule, dry_run } = serving.workload.policies.judge(&call);
        let (method, path) = http.unzip();
        if let Some(would) = dry_run {
            info!(src.addr = %caller.address, peer.id = %caller.identity, service = binding.host.label(), port = binding.port.port, method, path, ?would, "dry run of a policy");
        }
        let Decision::Denied(policy) = decision else { return Ok(()) };
        if let Some(unsaid) = self.denials.say(Instant::now()) {
            info!(src.addr = %caller.address, peer.id = %caller.identity, service = binding.host.label(), port = binding.port.port, method, path, %policy, rule, unsaid, "denied");
        }
        Err(policy)
    }

    async fn refuse(&self, stream: &mut Stream, serving: &Serving, caller: &Caller, refused: Refused) {
        debug!(src.addr = %caller.address, peer.id = %caller.identity, code = refused.code.as_str_name(), detail = refused.detail, "refused");
        self.count(&caller.domain, verdict_label(refused.code));
        if self.speak(stream, serving, refused.code, refused.detail).await.is_ok() {
            // The peer may be gone already: it was refused anyway.
            let _ = stream.shutdown().await;
        }
    }

    /// Says the verdict.
    async fn speak(&self, stream: &mut Stream, serving: &Serving, code: Code, detail: String) -> std::io::Result<()> {
        let verdict = Verdict {
            code: code.into(),
            endpoint: serving.workload.endpoint.clone(),
            cluster: serving.cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            locality: Some((&serving.workload.locality).into()),
            detail,
        };
        let frame = verdict::encode(&verdict).map_err(std::io::Error::other)?;
        stream.write_all(&frame).await?;
        stream.flush().await
    }

    async fn http(self: &Arc<Self>, mut stream: Stream, serving: &Serving, caller: Caller, binding: Arc<Binding>) {
        if let Err(error) = self.speak(&mut stream, serving, Code::Ok, String::new()).await {
            debug!(src.addr = %caller.address, %error, "verdict");
            return;
        }
        self.count(&caller.domain, verdict_label(Code::Ok));
        http::serve(self, stream, caller, binding).await;
    }

    /// The application is asked first: a refusal is still news that the peer can act on.
    async fn opaque(&self, mut stream: Stream, serving: &Serving, caller: Caller, binding: &Binding) {
        let mut access = Access::new("inbound", "tcp", binding.host.label().into());
        access.cluster = Arc::clone(&caller.domain);
        access.peer = Arc::clone(&caller.identity);
        let mut application = match Box::pin(self.application.connect(binding.target_port)).await {
            Ok(application) => application,
            Err(error) => {
                access.end = error.code();
                let refused = Refused { code: Code::ApplicationUnreachable, detail: error.to_string() };
                self.refuse(&mut stream, serving, &caller, refused).await;
                return;
            }
        };
        let _hold = self.drain.hold();
        if let Err(error) = self.speak(&mut stream, serving, Code::Ok, String::new()).await {
            debug!(src.addr = %caller.address, %error, "verdict");
            return;
        }
        self.count(&caller.domain, verdict_label(Code::Ok));
        let mut relayed = Relayed::default();
        let options = RelayOptions::default();
        let denied = tokio::select! {
            () = relay::relay_streams(&mut stream, &mut application, &options, &mut relayed) => false,
            () = self.denied_later(&caller, binding) => true,
        };
        access.bytes = (relayed.a_to_b, relayed.b_to_a);
        access.end = if denied { "denied" } else { relayed.end.label() };
        let bytes = relayed.a_to_b + relayed.b_to_a;
        self.metrics.bytes.get_or_create(&Direction { direction: "inbound" }).inc_by(bytes);
        if denied {
            // Both ends are to see that it broke off, not that it was finished.
            drop(relay::reset_on_close(stream.inner().get_ref().0));
            drop(relay::reset_on_close(&application));
        }
        let socket = match relayed.end.to_reset() {
            Some(Side::A) => Some(stream.inner().get_ref().0),
            Some(Side::B) => Some(&application),
            None => None,
        };
        if let Some(socket) = socket {
            // A socket that takes no option any more is closed already.
            drop(relay::reset_on_close(socket));
        }
    }

    /// Ends when the policies no longer let an open connection be: each change of them judges it again.
    async fn denied_later(&self, caller: &Caller, binding: &Binding) {
        let mut changes = self.serving.changes();
        loop {
            // What changed between the first judgement and the subscription counts as well.
            if self.permits(&self.serving.load_full(), caller, binding, None).is_err() {
                return;
            }
            // The sender lives in `self`.
            let _ = changes.changed().await;
        }
    }

    fn count(&self, caller: &str, result: &'static str) {
        let labels = Answered { service: "none".to_owned(), cluster: caller.to_owned(), result };
        self.metrics.inbound_connections.get_or_create(&labels).inc();
    }
}

const fn verdict_label(code: Code) -> &'static str {
    match code {
        Code::Unspecified => "unspecified",
        Code::Ok => "ok",
        Code::UnknownService => "unknown_service",
        Code::Denied => "denied",
        Code::Draining => "draining",
        Code::Overloaded => "overloaded",
        Code::ApplicationUnreachable => "application_unreachable",
    }
}
