//! The accept loop: handshakes run beside each other and outside of the stream they feed, bounded and with a deadline.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

use super::ConnectionInfo;
use crate::{
    Guarded, Peer, TrustStore,
    handshake::{HandshakeError, accept},
};

/// How long the loop rests after the system refused to accept, mostly for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Finished handshakes that may wait for the server to take them.
const FINISHED: usize = 16;

/// What an accept loop allows.
#[derive(Clone, Debug)]
pub struct AcceptLimits {
    /// How long a handshake may take.
    pub handshake_deadline: Duration,
    /// Handshakes at once; further connections wait in the kernel's backlog.
    pub handshakes: usize,
    /// Handshakes and connections without a client certificate at once from one address; further connections from it are
    /// closed at once.
    pub handshakes_per_source: usize,
    /// How long a connection without a client certificate may last: long enough for a call that needs none.
    pub anonymous_lifetime: Duration,
    /// Connections at once, handshakes included; further ones wait in the kernel's backlog.
    pub connections: usize,
    /// Ends live connections whose client this store no longer believes.
    pub close_when_distrusted: Option<TrustStore>,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            handshake_deadline: Duration::from_secs(10),
            handshakes: 256,
            handshakes_per_source: 64,
            anonymous_lifetime: Duration::from_secs(30),
            connections: 8192,
            close_when_distrusted: None,
        }
    }
}

/// Accepted connections whose handshake is done; dropping it closes the listener.
pub struct Incoming {
    finished: mpsc::Receiver<ServerStream>,
    accepting: JoinHandle<()>,
}

/// Accepts TLS on a listener. Must be called within a tokio runtime; never ends and never yields an error, as failed
/// handshakes are logged and forgotten.
pub fn incoming(listener: TcpListener, config: Arc<ServerConfig>, limits: AcceptLimits) -> Incoming {
    let (sender, finished) = mpsc::channel(FINISHED);
    let acceptor = Acceptor {
        config,
        connections: Arc::new(Semaphore::new(limits.connections)),
        limits,
        sources: Sources::default(),
        sender,
    };
    Incoming { finished, accepting: tokio::spawn(acceptor.run(listener)) }
}

impl Stream for Incoming {
    type Item = io::Result<ServerStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.finished.poll_recv(context).map(|stream| stream.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Acceptor {
    config: Arc<ServerConfig>,
    connections: Arc<Semaphore>,
    limits: AcceptLimits,
    sources: Sources,
    sender: mpsc::Sender<ServerStream>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                Some(ended) = handshakes.join_next() => {
                    if let Err(error) = ended {
                        warn!(%error, "a handshake task failed");
                    }
                }
                accepted = accept_one(&listener, &self.connections), if handshakes.len() < self.limits.handshakes => {
                    let Some((stream, remote, permit)) = accepted else { continue };
                    match self.sources.enter(remote.ip(), self.limits.handshakes_per_source) {
                        Some(source) => {
                            handshakes.spawn(self.clone().finish(stream, remote, permit, source));
                        }
                        None => debug!(src.addr = %remote, "too many handshakes from this address"),
                    }
                }
            }
        }
    }

    async fn finish(self, stream: TcpStream, remote: SocketAddr, permit: OwnedSemaphorePermit, source: Source) {
        match accept(stream, &self.config, self.limits.handshake_deadline).await {
            Ok(stream) => {
                if let Ok(stream) = ServerStream::new(stream, remote, (permit, source), &self.limits) {
                    // Nobody left to take it: the server is gone.
                    let _ = self.sender.send(stream).await;
                }
            }
            Err(HandshakeError::Stream(error)) => {
                debug!(src.addr = %remote, %error, "a client left during the handshake")
            }
            Err(error) => info!(src.addr = %remote, %error, "refused a TLS handshake"),
        }
    }
}

/// The next connection, when there is room for one.
async fn accept_one(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, remote)) => {
            // A refusal to set it costs latency only.
            let _ = stream.set_nodelay(true);
            Some((stream, remote, permit))
        }
        Err(error) => {
            warn!(%error, "accepting a connection failed");
            sleep(ACCEPT_REST).await;
            None
        }
    }
}

/// Handshakes under way by source address.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One handshake's place among its source's; given back on drop.
struct Source {
    sources: Sources,
    address: IpAddr,
}

impl Sources {
    fn enter(&self, address: IpAddr, limit: usize) -> Option<Source> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Source { sources: self.clone(), address })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// An accepted connection: readable, writable, and known by its client's identity.
pub struct ServerStream {
    stream: Guarded<TlsStream<TcpStream>>,
    info: ConnectionInfo,
    anonymous: Option<Anonymous>,
    _permit: OwnedSemaphorePermit,
}

/// What bounds a connection without a client certificate: it counts against its source like a handshake, and ends.
struct Anonymous {
    deadline: Pin<Box<Sleep>>,
    _source: Source,
}

impl ServerStream {
    fn new(
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        (permit, source): (OwnedSemaphorePermit, Source),
        limits: &AcceptLimits,
    ) -> io::Result<Self> {
        let (socket, connection) = stream.get_ref();
        let info = ConnectionInfo { peer: Peer::of_server(connection), local: socket.local_addr()?, remote };
        let anonymous = info
            .peer
            .is_none()
            .then(|| Anonymous { deadline: Box::pin(sleep(limits.anonymous_lifetime)), _source: source });
        let stream = match (&limits.close_when_distrusted, &info.peer) {
            (Some(trust), Some(peer)) => Guarded::new(stream, trust, peer.clone()),
            _ => Guarded::unguarded(stream),
        };
        Ok(Self { stream, info, anonymous, _permit: permit })
    }

    /// Who is connected, and from where.
    pub fn info(&self) -> &ConnectionInfo {
        &self.info
    }
}

impl Connected for ServerStream {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(anonymous) = &mut self.anonymous
            && anonymous.deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
