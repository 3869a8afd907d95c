//! SOCKS version 5 (RFC 1928): no authentication, CONNECT only, names or addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use federation::export::ApplicationProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::debug;

use crate::outbound::destination::Destination;
use crate::outbound::refusal::Refusal;
use crate::outbound::tunnel::Tunnel;
use crate::outbound::{Outbound, proxy};

/// The local application needs no longer than this to say where it wants to go.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const SUCCEEDED: u8 = 0;
const GENERAL_FAILURE: u8 = 1;
const COMMAND_NOT_SUPPORTED: u8 = 7;
const ADDRESS_TYPE_NOT_SUPPORTED: u8 = 8;

/// What the handshake asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Destination {
        host: String,
        port: u16,
    },
    /// Answered with this reply, then closed.
    Nothing(u8),
}

/// Serves a connection that speaks SOCKS5.
pub(crate) async fn serve(outbound: &Arc<Outbound>, mut stream: TcpStream) -> io::Result<()> {
    let handshake = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake(&mut stream));
    let (host, port) = match handshake.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
        Some(Asked::Destination { host, port }) => (host, port),
        Some(Asked::Nothing(reply)) => return answer(&mut stream, reply).await,
        None => return Ok(()),
    };
    let refusal = match Destination::new(&host, port) {
        Ok(destination) => match outbound.router.route(&destination).await {
            Ok(route) if route.protocol == ApplicationProtocol::Tcp => match Tunnel::open(outbound, &route).await {
                Ok(tunnel) => {
                    let _hold = outbound.drain.hold();
                    answer(&mut stream, SUCCEEDED).await?;
                    if tunnel.relay(outbound, &route, &mut stream).await {
                        relay::reset_on_close(&stream)?;
                    }
                    return Ok(());
                }
                Err(refusal) => refusal,
            },
            Ok(route) => {
                answer(&mut stream, SUCCEEDED).await?;
                proxy::serve_tunnel(outbound, &route, stream).await;
                return Ok(());
            }
            Err(refusal) => refused(outbound, refusal),
        },
        Err(refusal) => refused(outbound, refusal),
    };
    debug!(%refusal, "SOCKS5 refused");
    answer(&mut stream, refusal.socks_reply()).await
}

fn refused(outbound: &Outbound, refusal: Refusal) -> Refusal {
    outbound.count_refusal(&refusal);
    refusal
}

/// Reads the greeting and the request. `None`: the greeting was answered with a refusal.
async fn handshake(stream: &mut TcpStream) -> io::Result<Option<Asked>> {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await?;
    let mut methods = vec![0; usize::from(greeting[1])];
    stream.read_exact(&mut methods).await?;
    if greeting[0] != VERSION || !methods.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await?;
        return Ok(None);
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let mut request = [0; 4];
    stream.read_exact(&mut request).await?;
    let [version, command, _, address_type] = request;
    let host = match address_type {
        1 => {
            let mut octets = [0; 4];
            stream.read_exact(&mut octets).await?;
            IpAddr::V4(Ipv4Addr::from(octets)).to_string()
        }
        3 => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8_lossy(&name).into_owned()
        }
        4 => {
            let mut octets = [0; 16];
            stream.read_exact(&mut octets).await?;
            IpAddr::V6(Ipv6Addr::from(octets)).to_string()
        }
        _ => return Ok(Some(Asked::Nothing(ADDRESS_TYPE_NOT_SUPPORTED))),
    };
    let port = stream.read_u16().await?;
    Ok(Some(match (version, command) {
        (VERSION, CONNECT) => Asked::Destination { host, port },
        (VERSION, _) => Asked::Nothing(COMMAND_NOT_SUPPORTED),
        _ => Asked::Nothing(GENERAL_FAILURE),
    }))
}

/// A reply without a bound address: nobody needs it.
async fn answer(stream: &mut TcpStream, reply: u8) -> io::Result<()> {
    stream.write_all(&[VERSION, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await
}
