//! Leaving a port to another process that listens on it too (`SO_REUSEPORT`), without losing a connection.
//!
//! ```text
//!  predecessor   accepts ── SIGTERM ── drops SYNs ── accepts what was under way ── closes, drains
//!  successor     listens, accepts ──────────────────────────────────────────────────────────────►
//! ```
//!
//! The kernel gives each SYN to one listener of the group, and resets what a listener has not accepted when it is closed. So the
//! predecessor takes no new SYN (whose client sends it again, to the successor by then), and closes once handshakes under way have had
//! time to end. With `net.ipv4.tcp_migrate_req=1` the kernel moves them to the successor by itself, and no SYN need be sent twice.

use std::{fs, io, os::fd::AsFd, time::Duration};

use socket2::{SockFilter, SockRef};

/// How long handshakes under way have: above the round trip of most clients.
pub(crate) const HANDSHAKES: Duration = Duration::from_millis(250);

/// `LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Whether another process listens where the listener with this inode does. `own` are the inodes of all listeners of this process.
///
/// Reads the list of all connections of the network namespace: blocks for long where there are many.
pub(crate) fn has_successor(inode: u64, own: &[u64]) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().any(|table| {
        let Ok(text) = fs::read_to_string(table) else { return false };
        let listeners = || text.lines().skip(1).filter_map(listening);
        let Some((address, _)) = listeners().find(|(_, found)| *found == inode) else { return false };
        listeners().any(|(other, inode)| other == address && !own.contains(&inode))
    })
}

/// Local address and inode of a line that is a listener's.
fn listening(line: &str) -> Option<(&str, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let address = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    (state == LISTEN).then_some((address, inode))
}

/// The number by which `/proc/net/tcp` names a socket.
pub(crate) fn inode(socket: &impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

/// Whether the kernel moves connections that were not accepted to another listener of the group.
pub(crate) fn kernel_migrates() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|value| value.trim() == "1")
}

/// Lets a listener take no new connection; handshakes under way go on.
pub(crate) fn drop_new_connections(listener: &impl AsFd) -> io::Result<()> {
    // Classic BPF on a segment that begins with its TCP header: load the flags, keep SYN and ACK of them, drop when only SYN is set.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 0x02),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::{SocketAddr, TcpListener, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn shared_listener(address: SocketAddr) -> TcpListener {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    }

    #[test]
    fn another_listener_on_the_same_address_is_a_successor() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let one = shared_listener(address.parse().unwrap());
            let own = [inode(&one).unwrap()];
            assert!(!has_successor(own[0], &own), "{address}");
            let other = shared_listener(one.local_addr().unwrap());
            assert!(has_successor(own[0], &own), "{address}");
            assert!(!has_successor(own[0], &[own[0], inode(&other).unwrap()]), "{address}: both are ours");
        }
    }

    #[test]
    fn a_filtered_listener_takes_no_new_connection_and_keeps_the_old_ones() {
        let listener = shared_listener("127.0.0.1:0".parse().unwrap());
        let address = listener.local_addr().unwrap();
        let mut waiting = TcpStream::connect(address).unwrap();
        drop_new_connections(&listener).unwrap();
        let refused = TcpStream::connect_timeout(&address, Duration::from_millis(200)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        let (mut accepted, _) = listener.accept().unwrap();
        io::Write::write_all(&mut waiting, b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut accepted, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
