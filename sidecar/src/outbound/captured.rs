//! Connections that the kernel handed over: their original destination says where they go.
//!
//! ```text
//!  original destination ─┬─ a service's port ─┬─ declared HTTP ──► requests, balanced and retried one by one
//!                        │                    ├─ declared TCP ───► one session, bytes as they are
//!                        │                    └─ undeclared ─────► the first bytes decide
//!                        ├─ of the clusterset, but no service ──► reset
//!                        └─ captured for another reason ────────► passed on untouched: a local service's address that is
//!                                                                 none any more, or a port that the sidecar does not carry
//! ```

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use federation::export::ApplicationProtocol;
use relay::{RelayOptions, SocketOptions};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tracing::{debug, info};

use crate::outbound::destination::{Destination, Name};
use crate::outbound::detect::{self, Spoken};
use crate::outbound::refusal::Refusal;
use crate::outbound::tunnel::Tunnel;
use crate::outbound::{Outbound, proxy};
use crate::routing::route::Route;

/// What the server may say in one go before its connection is known to be opaque.
const FIRST_WORDS: usize = 4096;

/// Serves a captured connection.
pub(crate) async fn serve(outbound: &Arc<Outbound>, stream: TcpStream, original: SocketAddr) {
    if !outbound.router.may_be_vip(original.ip()) {
        pass_on(stream, original).await;
        return;
    }
    let destination = Destination { name: Name::Address(original.ip()), port: original.port() };
    match outbound.router.route(&destination).await {
        Ok(route) if route.is_undeclared() => undeclared(outbound, &route, stream).await,
        Ok(route) if route.protocol == ApplicationProtocol::Tcp => opaque(outbound, &route, stream).await,
        Ok(route) => proxy::serve_captured(outbound, &route, stream).await,
        Err(refusal) if outbound.router.is_of_clusterset(original.ip()) => {
            refuse(outbound, original, &stream, &refusal);
        }
        Err(refusal) => {
            debug!(dst.addr = %original, %refusal, "captured connection, passed on");
            pass_on(stream, original).await;
        }
    }
}

/// Bytes have no way to say why they go nowhere, so the log does.
fn refuse(outbound: &Outbound, original: SocketAddr, stream: &TcpStream, refusal: &Refusal) {
    outbound.count_refusal(refusal);
    info!(dst.addr = %original, %refusal, "captured connection refused");
    reset(stream);
}

fn reset(stream: &TcpStream) {
    // A socket that takes no option any more is closed already.
    drop(relay::reset_on_close(stream));
}

/// Captured, but not of the clusterset: the bytes go where they would have gone.
pub(crate) async fn pass_on(mut stream: TcpStream, original: SocketAddr) {
    let mut server = match TcpStream::connect(original).await {
        Ok(server) => server,
        Err(error) => {
            debug!(dst.addr = %original, %error, "captured connection, passed on");
            reset(&stream);
            return;
        }
    };
    if relay::configure(&server, &SocketOptions::default()).is_ok() {
        relay::relay(&mut stream, &mut server, &RelayOptions::default()).await;
    }
}

async fn opaque(outbound: &Arc<Outbound>, route: &Arc<Route>, stream: TcpStream) {
    match Box::pin(Tunnel::open(outbound, route)).await {
        Ok(tunnel) => Box::pin(carry(outbound, route, stream, tunnel)).await,
        Err(refusal) => {
            info!(service = &*route.label, %refusal, "captured connection refused");
            reset(&stream);
        }
    }
}

async fn carry(outbound: &Arc<Outbound>, route: &Arc<Route>, mut stream: TcpStream, tunnel: Tunnel) {
    let _hold = outbound.drain.hold();
    if tunnel.relay(outbound, route, &mut stream).await {
        reset(&stream);
    }
}

/// How the connection to an undeclared port goes on.
enum Decided {
    Http,
    /// With what the server has said already.
    Opaque(Box<Result<(Tunnel, Vec<u8>), Refusal>>),
}

async fn undeclared(outbound: &Arc<Outbound>, route: &Arc<Route>, mut stream: TcpStream) {
    match Box::pin(decide(outbound, route, &stream)).await {
        Decided::Http => proxy::serve_captured(outbound, route, stream).await,
        Decided::Opaque(opened) => match *opened {
            Ok((tunnel, said)) => {
                if said.is_empty() || stream.write_all(&said).await.is_ok() {
                    Box::pin(carry(outbound, route, stream, tunnel)).await;
                }
            }
            Err(refusal) => {
                info!(service = &*route.label, %refusal, "captured connection refused");
                reset(&stream);
            }
        },
    }
}

/// The client's first bytes decide, or the server's when they come first, or [`detect::WINDOW`].
async fn decide(outbound: &Outbound, route: &Arc<Route>, stream: &TcpStream) -> Decided {
    let opened = |opened: Result<Tunnel, Refusal>| Decided::Opaque(Box::new(opened.map(|tunnel| (tunnel, Vec::new()))));
    let mut speaking = pin!(detect::first_bytes(stream));
    match tokio::time::timeout(detect::HEAD_START, speaking.as_mut()).await {
        Ok(Spoken::Http) => return Decided::Http,
        Ok(Spoken::Opaque) => return opened(Tunnel::open(outbound, route).await),
        Err(_) => {}
    }
    let mut opening = pin!(Tunnel::open(outbound, route));
    let mut tunnel = tokio::select! {
        spoken = speaking.as_mut() => match spoken {
            Spoken::Http => return Decided::Http,
            Spoken::Opaque => return opened(opening.await),
        },
        result = opening.as_mut() => match result {
            Ok(tunnel) => tunnel,
            Err(refusal) => return opened(Err(refusal)),
        },
    };
    let mut words = vec![0; FIRST_WORDS];
    tokio::select! {
        spoken = speaking => match spoken {
            Spoken::Http => Decided::Http,
            Spoken::Opaque => opened(Ok(tunnel)),
        },
        // An end, or an error, is found again by whoever carries the bytes.
        said = tunnel.read_first(&mut words) => {
            words.truncate(said.unwrap_or(0));
            Decided::Opaque(Box::new(Ok((tunnel, words))))
        }
    }
}
