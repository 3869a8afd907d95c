//! Where a captured connection was going before the kernel handed it over.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The original destination; `None` for a connection that was made to this listener itself.
pub(crate) fn destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = canonical(stream.local_addr().ok()?);
    let socket = SockRef::from(stream);
    // The kernel's connection tracking answers, and only it knows; without it, or for a connection that was not redirected,
    // there is no answer or the listener's own address.
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = canonical(original.ok()?.as_socket()?);
    (original != local).then_some(original)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
