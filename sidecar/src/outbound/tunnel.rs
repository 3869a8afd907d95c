//! What goes through a CONNECT or SOCKS5 tunnel.
//!
//! The port's declared protocol decides: HTTP is served inside the tunnel, request by request, so that it is balanced
//! and retried like any other; everything else is carried as it is, one mesh session per connection.

use std::sync::Arc;

use balance::Outcome;
use relay::{RelayOptions, Relayed, Side};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::metrics::{Answered, Direction};
use crate::outbound::Outbound;
use crate::outbound::open::Trying;
use crate::outbound::refusal::Refusal;
use crate::routing::route::{Attempt, Route};
use crate::session::path::Path;
use crate::session::peer::Peer;
use crate::session::stream::Stream;
use crate::telemetry::Access;

/// An opaque connection whose other side is up.
pub(crate) struct Tunnel {
    stream: Stream,
    path: Path,
    peer: Peer,
    access: Box<Access>,
}

impl Tunnel {
    /// Connects to the route's service; nothing of the application was read yet, so every failure can go elsewhere.
    pub(crate) async fn open(outbound: &Outbound, route: &Arc<Route>) -> Result<Self, Refusal> {
        let mut access = Box::new(Access::new("outbound", "tcp", Arc::clone(&route.label)));
        let mut trying = Trying::new(Arc::clone(route));
        match trying.connection(&outbound.dialer).await {
            Ok((attempt, (stream, peer))) => {
                let path = connected(attempt, &peer);
                access.cluster = Arc::clone(path.cluster_text());
                access.endpoint = Arc::clone(peer.endpoint_text());
                access.gateway = path.id().gateway().cloned();
                access.peer = Arc::clone(&peer.identity);
                access.attempts = trying.attempts();
                Ok(Self { stream, path, peer, access })
            }
            Err(refusal) => {
                access.end = refusal.code();
                access.attempts = trying.attempts();
                count(outbound, route, "none", refusal.code());
                Err(refusal)
            }
        }
    }

    /// The path taken, for the caller who asked.
    pub(crate) fn path_taken(&self, client: &str) -> String {
        format!(
            "client={client}; server={}; cluster={}; gateway={}; endpoint={}; attempts={}",
            self.peer.identity,
            self.path.id().cluster,
            self.path.id().gateway().map_or("-", |gateway| &**gateway),
            self.peer.endpoint_text(),
            self.access.attempts,
        )
    }

    /// Sends bytes that came before the tunnel was handed over.
    pub(crate) async fn write_first(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream.write_all(bytes).await
    }

    /// Takes what the server says before the application has said anything.
    pub(crate) async fn read_first(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(bytes).await
    }

    /// Copies until both sides have ended. `true` if the application's side must be reset.
    pub(crate) async fn relay<S>(mut self, outbound: &Outbound, route: &Route, application: &mut S) -> bool
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut relayed = Relayed::default();
        relay::relay_streams(application, &mut self.stream, &RelayOptions::default(), &mut relayed).await;
        self.access.bytes = (relayed.a_to_b, relayed.b_to_a);
        self.access.end = relayed.end.label();
        count(outbound, route, self.path.id().cluster.as_str(), relayed.end.label());
        let bytes = relayed.a_to_b + relayed.b_to_a;
        outbound.metrics.bytes.get_or_create(&Direction { direction: "outbound" }).inc_by(bytes);
        relayed.end.to_reset() == Some(Side::A)
    }
}

fn connected(attempt: Attempt, peer: &Peer) -> Path {
    let path = attempt.path().clone();
    attempt.finish(Outcome::Success, peer.endpoint.as_ref());
    path
}

fn count(outbound: &Outbound, route: &Route, cluster: &str, result: &'static str) {
    let labels = Answered { service: route.label.to_string(), cluster: cluster.to_owned(), result };
    outbound.metrics.outbound_connections.get_or_create(&labels).inc();
}
