//! tonic over the mesh's TLS: an accept loop of our own, a channel that tries addresses in turn, and the caller's identity.
//!
//! tonic's own TLS settings know one fixed root, so both directions bring their own streams instead.

mod channel;
mod ending;
mod incoming;

use std::{net::SocketAddr, time::Duration};

use spiffe_identity::SpiffeId;
use tonic::{Request, Status, transport::Server};

use self::ending::Ending;
pub use self::{
    channel::{AttemptError, ChannelOptions, ConnectError, channel},
    incoming::{AcceptLimits, Incoming, ServerStream, incoming},
};
use crate::Peer;

/// The application protocol of gRPC, for `server_config` and `client_config`.
pub const ALPN: &[u8] = b"h2";

/// How often a server asks a silent connection for a sign of life, and how long it waits for it: a vanished peer is
/// noticed within the sum.
const SERVER_KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// The most calls one connection may have open at once; watches are long-lived, a few per client.
const STREAMS_PER_CONNECTION: u32 = 256;

/// What a request's extensions say about its connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The client, when it showed a certificate.
    pub peer: Option<Peer>,
    /// The address the client reached.
    pub local: SocketAddr,
    /// The address the client came from.
    pub remote: SocketAddr,
    ending: Ending,
}

impl ConnectionInfo {
    /// Ends the connection after a while, in which answers under way reach the client: it connects again, to another replica
    /// where there is one.
    pub fn end_after(&self, pause: Duration) {
        self.ending.begin(pause);
    }
}

/// A tonic server with HTTP/2 keepalive and bounded streams; add services to it and serve it on [`incoming`].
pub fn server() -> Server {
    let (interval, timeout) = SERVER_KEEPALIVE;
    Server::builder()
        .http2_keepalive_interval(Some(interval))
        .http2_keepalive_timeout(Some(timeout))
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION))
}

/// Who calls.
///
/// # Errors
/// `Unauthenticated` when the connection has no client certificate.
pub fn peer<T>(request: &Request<T>) -> Result<SpiffeId, Status> {
    let connection = request.extensions().get::<ConnectionInfo>();
    match connection.and_then(|connection| connection.peer.as_ref()) {
        Some(peer) => Ok(peer.id().clone()),
        None => Err(Status::unauthenticated("this call needs a client certificate")),
    }
}

/// The address a request came from, for logs.
pub fn remote<T>(request: &Request<T>) -> Option<SocketAddr> {
    request.extensions().get::<ConnectionInfo>().map(|connection| connection.remote)
}
