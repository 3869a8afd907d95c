//! A tonic channel that finds a replica which answers.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::{
    Guarded, Peer, TrustStore,
    handshake::{HandshakeError, connect},
};

/// How a channel connects and notices that it is no longer connected.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// The time for one attempt at one address: resolving, TCP and TLS each.
    pub connect_timeout: Duration,
    /// How long a connection may be silent before the peer is asked for a sign of life, idle connections included.
    pub keepalive: Duration,
    /// How long to wait for that sign. Silence is noticed after both together.
    pub keepalive_timeout: Duration,
    /// The place in the list of endpoints to start at; at random when `None`, so that clients spread over replicas.
    pub start: Option<usize>,
    /// Ends the connection when this store no longer believes the server.
    pub close_when_distrusted: Option<TrustStore>,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            keepalive: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(3),
            start: None,
            close_when_distrusted: None,
        }
    }
}

/// A lazy channel to one of `endpoints`, each an address or `host:port`.
///
/// It connects with the first call, trying the endpoints in turn until one completes the handshake, and connects again,
/// with a new handshake, to the *next* one when the connection is lost. A call that finds no endpoint fails with
/// `Unavailable`; when to call again is up to the caller. Must be called within a tokio runtime.
pub fn channel<I>(endpoints: I, config: Arc<ClientConfig>, options: ChannelOptions) -> Channel
where
    I: IntoIterator,
    I::Item: ToString,
{
    let endpoints: Vec<String> = endpoints.into_iter().map(|endpoint| endpoint.to_string()).collect();
    // The connector brings TLS, so tonic must not; calls still say that they are encrypted.
    let endpoint = Endpoint::from_static("http://mesh.invalid")
        .origin(Uri::from_static("https://mesh.invalid"))
        .http2_keep_alive_interval(options.keepalive)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true);
    let next = AtomicUsize::new(options.start.unwrap_or_else(random));
    let dialer = Dialer { endpoints, config, options, next };
    endpoint.connect_with_connector_lazy(Connector(Arc::new(dialer)))
}

/// Where to start among the endpoints. Without randomness every client starts at the first: worse spread, no failure.
fn random() -> usize {
    let mut bytes = [0; size_of::<usize>()];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => usize::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

/// No endpoint could be reached; says of each why.
#[derive(Debug)]
pub struct ConnectError {
    /// The endpoints in the order they were tried.
    pub attempts: Vec<(String, AttemptError)>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("there is no endpoint to connect to");
        }
        for (index, (endpoint, error)) in self.attempts.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

/// Why one endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// It is not `host:port`.
    #[error("not an address or host:port")]
    Endpoint,
    /// Its name does not resolve.
    #[error("the name does not resolve: {0}")]
    Resolve(#[source] io::Error),
    /// TCP failed.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// Resolving or TCP took too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// TLS failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

type ClientStream = Guarded<TlsStream<TcpStream>>;

struct Dialer {
    endpoints: Vec<String>,
    config: Arc<ClientConfig>,
    options: ChannelOptions,
    /// Where the next attempt starts, modulo the number of endpoints.
    next: AtomicUsize,
}

impl Dialer {
    async fn dial(&self) -> Result<ClientStream, ConnectError> {
        let mut attempts = Vec::new();
        for _ in &self.endpoints {
            let place = self.next.fetch_add(1, Ordering::Relaxed) % self.endpoints.len();
            let Some(endpoint) = self.endpoints.get(place) else { break };
            match self.attempt(endpoint).await {
                Ok(stream) => return Ok(stream),
                Err(error) => attempts.push((endpoint.clone(), error)),
            }
        }
        Err(ConnectError { attempts })
    }

    async fn attempt(&self, endpoint: &str) -> Result<ClientStream, AttemptError> {
        let limit = self.options.connect_timeout;
        let server_name = server_name(endpoint)?;
        let addresses = match timeout(limit, lookup_host(endpoint)).await {
            Ok(addresses) => addresses.map_err(AttemptError::Resolve)?,
            Err(_) => return Err(AttemptError::TimedOut(limit)),
        };
        let mut last = AttemptError::Resolve(io::ErrorKind::NotFound.into());
        for address in addresses {
            match self.attempt_address(address, server_name.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn attempt_address(
        &self,
        address: SocketAddr,
        name: ServerName<'static>,
    ) -> Result<ClientStream, AttemptError> {
        let limit = self.options.connect_timeout;
        let socket = match timeout(limit, TcpStream::connect(address)).await {
            Ok(socket) => socket.map_err(AttemptError::Connect)?,
            Err(_) => return Err(AttemptError::TimedOut(limit)),
        };
        // A refusal to set it costs latency only.
        let _ = socket.set_nodelay(true);
        let stream = connect(socket, &self.config, name, limit).await?;
        let peer = Peer::of_client(stream.get_ref().1);
        Ok(match (&self.options.close_when_distrusted, peer) {
            (Some(trust), Some(peer)) => Guarded::new(stream, trust, peer),
            _ => Guarded::unguarded(stream),
        })
    }
}

/// The host part of an endpoint, for the SNI; it plays no part in whom we believe.
fn server_name(endpoint: &str) -> Result<ServerName<'static>, AttemptError> {
    let (host, _port) = endpoint.rsplit_once(':').ok_or(AttemptError::Endpoint)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| AttemptError::Endpoint)
}

#[derive(Clone)]
struct Connector(Arc<Dialer>);

impl Service<Uri> for Connector {
    type Response = TokioIo<ClientStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.0.clone();
        Box::pin(async move { dialer.dial().await.map(TokioIo::new) })
    }
}
