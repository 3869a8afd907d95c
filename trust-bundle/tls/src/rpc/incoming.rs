//! The accept loop: handshakes run beside each other and outside of the stream they feed, bounded and with a deadline.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::ServerConfig;
use spiffe_identity::SpiffeId;
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

use super::{ConnectionInfo, ending::Ending};
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
    /// Handshakes and connections without a client certificate at once from one address, or from one IPv6 network of 64 bits,
    /// which is what one host may be given; further connections from it are closed at once.
    pub handshakes_per_source: usize,
    /// Connections without a client certificate at once, from wherever; further ones are closed after their handshake.
    pub anonymous: usize,
    /// How long a connection without a client certificate may last: long enough for a call that needs none.
    pub anonymous_lifetime: Duration,
    /// The bytes that such a connection may send in all, its calls together: more than a call that needs no certificate takes,
    /// and all of the memory that its requests can hold.
    pub anonymous_bytes: usize,
    /// Connections of one client identity at once; further ones are closed after their handshake. As many as there may be in
    /// all, unless every identity is one program's: then no single one can take the place of all others.
    pub connections_per_peer: usize,
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
            anonymous: 1024,
            anonymous_lifetime: Duration::from_secs(30),
            anonymous_bytes: 512 * 1024,
            connections_per_peer: 8192,
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
        shares: Shares::default(),
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
    shares: Shares,
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
                    let network = Holder::Network(network_of(remote.ip()));
                    match self.shares.enter(network, self.limits.handshakes_per_source) {
                        Some(source) => {
                            handshakes.spawn(self.clone().finish(stream, remote, permit, source));
                        }
                        None => debug!(src.addr = %remote, "too many handshakes from this address"),
                    }
                }
            }
        }
    }

    async fn finish(self, stream: TcpStream, remote: SocketAddr, permit: OwnedSemaphorePermit, source: Share) {
        match accept(stream, &self.config, self.limits.handshake_deadline).await {
            Ok(stream) => {
                let peer = Peer::of_server(stream.get_ref().1);
                let Some(share) = self.share_of(peer.as_ref(), source) else {
                    let peer = peer.as_ref().map(|peer| tracing::field::display(peer.id()));
                    info!(src.addr = %remote, peer.id = peer, "too many connections of this client");
                    return;
                };
                if let Ok(stream) = ServerStream::new(stream, remote, peer, (permit, share), &self.limits) {
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

    /// What a connection counts as once its handshake is done: one of its client's, or still one of its source's.
    fn share_of(&self, peer: Option<&Peer>, source: Share) -> Option<Vec<Share>> {
        let AcceptLimits { anonymous, connections_per_peer, .. } = self.limits;
        Some(match peer {
            Some(peer) => vec![self.shares.enter(Holder::Peer(peer.id().clone()), connections_per_peer)?],
            None => vec![source, self.shares.enter(Holder::Anonymous, anonymous)?],
        })
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

/// Who has a share of what is allowed.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Holder {
    /// Where handshakes, and connections without a client certificate, come from.
    Network(IpAddr),
    /// A client, wherever it comes from.
    Peer(SpiffeId),
    /// All clients without a certificate together.
    Anonymous,
}

/// What counts as one source: an IPv4 address, or the network of 64 bits that an IPv6 address is in.
fn network_of(address: IpAddr) -> IpAddr {
    const NETWORK: u128 = !0 << 64;
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & NETWORK).into()),
        address => address,
    }
}

/// How many each has.
#[derive(Clone, Default)]
struct Shares(Arc<Mutex<HashMap<Holder, usize>>>);

/// One of a holder's; given back on drop.
struct Share {
    shares: Shares,
    holder: Holder,
}

impl Shares {
    fn enter(&self, holder: Holder, limit: usize) -> Option<Share> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(holder.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), holder })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.holder);
            }
        }
    }
}

/// An accepted connection: readable, writable, and known by its client's identity.
pub struct ServerStream {
    stream: Guarded<TlsStream<TcpStream>>,
    info: ConnectionInfo,
    /// When it ends whatever is said on it.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whether that is since somebody wished for its end.
    ends: bool,
    /// The bytes that a client without a certificate may still send.
    bytes_left: Option<usize>,
    _places: (OwnedSemaphorePermit, Vec<Share>),
}

impl ServerStream {
    fn new(
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        peer: Option<Peer>,
        places: (OwnedSemaphorePermit, Vec<Share>),
        limits: &AcceptLimits,
    ) -> io::Result<Self> {
        let local = stream.get_ref().0.local_addr()?;
        let info = ConnectionInfo { peer, local, remote, ending: Ending::default() };
        let anonymous = info.peer.is_none();
        let deadline = anonymous.then(|| Box::pin(sleep(limits.anonymous_lifetime)));
        let bytes_left = anonymous.then_some(limits.anonymous_bytes);
        let stream = match (&limits.close_when_distrusted, &info.peer) {
            (Some(trust), Some(peer)) => Guarded::new(stream, trust, peer.clone()),
            _ => Guarded::unguarded(stream),
        };
        Ok(Self { stream, info, deadline, ends: false, bytes_left, _places: places })
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
        let stream = &mut *self;
        if !stream.ends
            && let Some(pause) = stream.info.ending.poll(context)
        {
            stream.ends = true;
            stream.deadline = Some(Box::pin(sleep(pause)));
        }
        if let Some(deadline) = &mut stream.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut stream.stream).poll_read(context, buffer))?;
        if let Some(left) = &mut stream.bytes_left {
            let rest = left.checked_sub(buffer.filled().len() - before);
            *left = rest.ok_or_else(|| io::Error::other("too much for a client without a certificate"))?;
        }
        Poll::Ready(Ok(()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_share_and_those_of_another_do_not() {
        let shares = Shares::default();
        let enter = |text: &str| {
            let address = text.parse().ok()?;
            shares.enter(Holder::Network(network_of(address)), 1)
        };
        let first = enter("2001:db8:0:1::1");
        assert!(first.is_some());
        assert!(enter("2001:db8:0:1:ffff::2").is_none(), "the same network");
        let others = [enter("2001:db8:0:2::1"), enter("192.0.2.1"), enter("192.0.2.2")];
        assert!(others.iter().all(Option::is_some));
        assert!(enter("::ffff:192.0.2.1").is_none(), "the same address in other words");
        drop(first);
        assert!(enter("2001:db8:0:1:ffff::2").is_some(), "the share is given back");
    }
}
