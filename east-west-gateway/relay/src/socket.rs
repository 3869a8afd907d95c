//! Options of the sockets on both sides of a relay.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// When a silent or unreachable peer is given up, so that its connection does not stay for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Silence before the first keepalive probe (`TCP_KEEPIDLE`); whole seconds.
    pub keepalive_idle: Duration,
    /// Time between probes (`TCP_KEEPINTVL`); whole seconds.
    pub keepalive_interval: Duration,
    /// Unanswered probes before the connection is ended (`TCP_KEEPCNT`).
    pub keepalive_probes: u32,
    /// How long sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`); `None` leaves it to the kernel, about 15 minutes.
    pub user_timeout: Option<Duration>,
}

impl Default for SocketOptions {
    /// A peer that vanished is noticed after half a minute, with bytes under way or without.
    fn default() -> Self {
        Self {
            keepalive_idle: Duration::from_secs(15),
            keepalive_interval: Duration::from_secs(5),
            keepalive_probes: 3,
            user_timeout: Some(Duration::from_secs(30)),
        }
    }
}

/// Sets `TCP_NODELAY`, keepalive and `TCP_USER_TIMEOUT` on a connection, or on a listener, whose connections inherit them on Linux.
///
/// # Errors
/// The kernel refused an option.
pub fn configure(socket: &impl AsFd, options: &SocketOptions) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(options.keepalive_idle)
            .with_interval(options.keepalive_interval)
            .with_retries(options.keepalive_probes),
    )?;
    socket.set_tcp_user_timeout(options.user_timeout)
}
