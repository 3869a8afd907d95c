//! Opening sessions.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balance::{EndpointId, Outcome};
use federation_api::mesh::v1::verdict::Code;
use federation_api::verdict::{self, VerdictError};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_runtime::DrainWatcher;
use mesh_tls::handshake::{self, HandshakeError};
use mesh_tls::{Guarded, TrustStore};
use prometheus_client::metrics::gauge::Gauge;
use relay::SocketOptions;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::debug;

use crate::config::InboundConfig;
use crate::hang_up::HangUp;
use crate::headers;
use crate::inbound::application::Application;
use crate::metrics::{Metrics, Result as ResultLabel};
use crate::session::path::{Path, Via};
use crate::session::peer::Peer;
use crate::session::pool::{Checkout, Lease, Opened, Opening, Session};
use crate::session::resolver::{ResolveError, Resolver};
use crate::session::stand_in::{self, StandIn};
use crate::session::stream::Stream;
use crate::tasks::Tasks;

/// The verdict follows the handshake at once; for opaque connections, after the application was reached.
const VERDICT_DEADLINE: Duration = Duration::from_secs(2);

/// A session with requests on it and nothing heard for this long gets a PING.
const PING_AFTER: Duration = Duration::from_millis(250);

/// A PING unanswered for this long means that the session is dead.
const PING_DEADLINE: Duration = Duration::from_millis(500);

/// HTTP/2 flow control windows: one stream may have this much on its way, and a session four times as much.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// What HTTP/2 carries of a body at a time, at most: with the frame's head it fills four whole TLS records, which are written and
/// read at once.
pub(crate) const MAX_FRAME: u32 = 4 * 16 * 1024 - 9;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The gateway's name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No TCP connection.
    #[error("connect: {0}")]
    Connect(io::Error),
    /// No TLS session, or the wrong peer.
    #[error("TLS: {0}")]
    Tls(HandshakeError),
    /// No connection in time.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// The peer's certificate has no SPIFFE ID.
    #[error("the peer showed no SPIFFE ID")]
    Anonymous,
    /// Nobody who may answer there is believed at present.
    #[error("what is known of other trust domains is older than maxTrustAge")]
    TrustTooOld,
    /// The server's sidecar said nothing that could be understood.
    #[error(transparent)]
    Verdict(#[from] VerdictError),
    /// The server's sidecar said no.
    #[error("refused by {}: {} {detail}", peer.endpoint_text(), code.as_str_name())]
    Refused {
        /// Its word.
        code: Code,
        /// For a person.
        detail: String,
        /// Who it was.
        peer: Peer,
    },
    /// HTTP/2 did not start.
    #[error("HTTP/2: {0}")]
    Http2(hyper::Error),
    /// This sidecar is going away.
    #[error("stopped")]
    Stopped,
}

impl DialError {
    /// As the balancer takes it.
    pub(crate) const fn outcome(&self) -> Outcome {
        match self {
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::TimedOut(_)
            | Self::Tls(HandshakeError::TimedOut(_) | HandshakeError::Stream(_)) => Outcome::ConnectFailure,
            Self::Tls(_) | Self::Anonymous | Self::Verdict(_) | Self::Http2(_) => Outcome::TlsFailure,
            Self::Refused { .. } => Outcome::GatewayError,
            // It says nothing about the way, which is good again at once when trust is confirmed.
            Self::Stopped | Self::TrustTooOld => Outcome::Abandoned,
        }
    }

    /// Who refused.
    pub(crate) const fn endpoint(&self) -> Option<&EndpointId> {
        match self {
            Self::Refused { peer, .. } => peer.endpoint.as_ref(),
            _ => None,
        }
    }

    /// One word for the metric.
    const fn label(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::TimedOut(_) | Self::Tls(HandshakeError::TimedOut(_)) => "timed_out",
            Self::Tls(_) | Self::Anonymous => "tls",
            Self::Verdict(_) => "verdict",
            Self::Refused { .. } => "refused",
            Self::Http2(_) => "http2",
            Self::Stopped => "stopped",
            Self::TrustTooOld => "trust_too_old",
        }
    }
}

/// Which of the two kinds of session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `isthmus-h2`
    Http,
    /// `isthmus-tcp`
    Tcp,
}

/// Opens sessions. Clones share everything.
#[derive(Clone)]
pub(crate) struct Dialer {
    resolver: Resolver,
    trust: TrustStore,
    tasks: Tasks,
    drain: DrainWatcher,
    metrics: Metrics,
}

impl Dialer {
    pub(crate) fn new(
        resolver: Resolver,
        trust: TrustStore,
        tasks: Tasks,
        drain: DrainWatcher,
        metrics: Metrics,
    ) -> Self {
        Self { resolver, trust, tasks, drain, metrics }
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// A place on an HTTP/2 session of the path: at once, or when one has been opened.
    pub(crate) fn lease(&self, path: &Path) -> Result<Lease, Opening> {
        let checkout = path.sessions().checkout();
        match checkout {
            Checkout::Ready { lease, open_more } => {
                if let Some(opened) = open_more {
                    self.open_in_background(path, opened);
                }
                Ok(lease)
            }
            Checkout::Wait(opening) => Err(opening),
            Checkout::Open(opened, opening) => {
                self.open_in_background(path, opened);
                Err(opening)
            }
        }
    }

    /// The session outlives the request that asked for it first: others may wait for it.
    fn open_in_background(&self, path: &Path, opened: watch::Sender<Opened>) {
        let (dialer, path) = (self.clone(), path.clone());
        self.tasks.spawn(async move {
            let result = dialer.open_http(&path).await;
            path.sessions().opened(result.as_ref().ok().cloned());
            // Nobody may be waiting any more.
            let _ = opened.send(Some(result.map_err(Arc::new)));
        });
    }

    async fn open_http(&self, path: &Path) -> Result<Arc<Session>, DialError> {
        let (stream, peer) = self.dial(path, Kind::Http).await?;
        match stream {
            Stream::Mesh(stream) => {
                let hang_up = HangUp::of(stream.inner().get_ref().0).map_err(DialError::Connect)?;
                self.session(stream, peer, Some(hang_up)).await
            }
            Stream::Plain(stream) => {
                let address = stream.peer_addr().map_err(DialError::Connect)?;
                let config = InboundConfig { connect_timeout: path.give_up_after(), ..InboundConfig::default() };
                let application = Application::new(address.ip(), config, self.tasks.clone()).with_first(stream);
                let stand_in = StandIn {
                    application,
                    port: address.port(),
                    http2: path.speaks_http2(),
                    tasks: self.tasks.clone(),
                    drain: self.drain.clone(),
                };
                let (near, far) = tokio::io::duplex(stand_in::BUFFER);
                self.tasks.spawn(stand_in.serve(far));
                self.session(near, peer, None).await
            }
        }
    }

    async fn session<S>(&self, stream: S, peer: Peer, hang_up: Option<HangUp>) -> Result<Arc<Session>, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_DEADLINE)
            .keep_alive_while_idle(false)
            .max_header_list_size(headers::MAX_LIST)
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(4 * STREAM_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(DialError::Http2)?;
        let counted = Counted::new(&self.metrics.sessions);
        let peer = Arc::new(peer);
        let of = Arc::clone(&peer);
        self.tasks.spawn(async move {
            let _counted = counted;
            if let Err(error) = connection.await {
                debug!(endpoint = &**of.endpoint_text(), %error, "session ended");
            }
        });
        Ok(Session::new(sender, peer, hang_up))
    }

    /// A connection to a sidecar whose verdict was good; where there is no sidecar, to the application.
    pub(crate) async fn dial(&self, path: &Path, kind: Kind) -> Result<(Stream, Peer), DialError> {
        let result = self.dial_uncounted(path, kind).await;
        let label = result.as_ref().map_or_else(DialError::label, |_| "ok");
        self.metrics.session_attempts.get_or_create(&ResultLabel { result: label }).inc();
        result
    }

    async fn dial_uncounted(&self, path: &Path, kind: Kind) -> Result<(Stream, Peer), DialError> {
        let identities = &path.id().identities;
        if !identities.is_empty() && identities.iter().all(|id| self.trust.has_lapsed(id.trust_domain())) {
            return Err(DialError::TrustTooOld);
        }
        let limit = path.give_up_after();
        let started = Instant::now();
        let stream =
            tokio::time::timeout(limit, self.connect(path)).await.map_err(|_| DialError::TimedOut(limit))??;
        let tls = match (path.tls(), kind) {
            (Some(tls), Kind::Http) => &tls.http,
            (Some(tls), Kind::Tcp) => &tls.tcp,
            (None, _) => return Ok((Stream::Plain(stream), Peer::plain(path.endpoint().unwrap_or("-")))),
        };
        let left = limit.saturating_sub(started.elapsed());
        let stream = handshake::connect(stream, tls, path.server_name(), left).await.map_err(DialError::Tls)?;
        let server = mesh_tls::Peer::of_client(stream.get_ref().1).ok_or(DialError::Anonymous)?;
        let identity = server.id().clone();
        let mut stream = Box::new(Guarded::new(stream, &self.trust, server));
        let verdict = verdict::read(&mut stream, VERDICT_DEADLINE).await?;
        let code = verdict.code();
        let peer = Peer::new(&identity, &verdict.endpoint);
        if code != Code::Ok {
            return Err(DialError::Refused { code, detail: verdict.detail, peer });
        }
        Ok((Stream::Mesh(stream), peer))
    }

    async fn connect(&self, path: &Path) -> Result<TcpStream, DialError> {
        let addresses = match &path.id().via {
            Via::Endpoint { address, .. } | Via::Plain { address, .. } => vec![*address],
            Via::Gateway { address, port, .. } => self.resolver.resolve(address, *port).await?,
        };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            let started = Instant::now();
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    path.observe_round_trip(started.elapsed());
                    relay::configure(&stream, &SocketOptions::default()).map_err(DialError::Connect)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(DialError::Connect(last))
    }
}

/// Counts one open session until dropped.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
