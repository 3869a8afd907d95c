//! Reaching an endpoint, or another one, within the budget.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, connect, send, socket_with,
        sockopt::{set_tcp_nodelay, set_tcp_quickack},
    },
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use tracing::debug;

use super::DataPath;
use crate::{
    close_reason::Refusal,
    routes::{Candidates, Endpoint, Engaged},
};

/// The generator may not live across a wait, since it belongs to the thread.
fn next<'a>(candidates: &mut Candidates<'a>) -> Option<&'a Arc<Endpoint>> {
    candidates.next(std::time::Instant::now(), &mut rand::rng())
}

/// A connection on which the bytes are under way. Keepalive and time-outs are set when it has lasted: see [`relay::SETTLED`].
async fn connect_and_send(address: SocketAddr, bytes: &[u8]) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    set_tcp_nodelay(&socket, true)?;
    // The handshake's last acknowledgement goes with the bytes, not before them: a segment less.
    set_tcp_quickack(&socket, false)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // An endpoint on the same node has answered by now: then nothing has to be waited for, and nobody asked how it went.
    let sent = match send(&socket, bytes, SendFlags::NOSIGNAL) {
        Ok(sent) => sent,
        Err(Errno::AGAIN) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut stream = TcpStream::from_std(socket.into())?;
    // The first write of all tells, instead of `SO_ERROR`, if the connection failed.
    stream.write_all(&bytes[sent..]).await?;
    Ok(stream)
}

impl DataPath {
    /// Tries candidates in turn until one is connected and has got the hello.
    pub(super) async fn dial(
        &self,
        mut candidates: Candidates<'_>,
        hello: &[u8],
    ) -> Result<(TcpStream, Engaged), Refusal> {
        if candidates.is_empty() {
            return Err(Refusal::NoReadyEndpoint);
        }
        let deadline = Instant::now() + self.connect.budget;
        while let Some(endpoint) = next(&mut candidates) {
            // Counted while it is being dialled: a burst spreads.
            let engaged = endpoint.engage();
            let left = deadline.saturating_duration_since(Instant::now());
            // The last one may take all that is left.
            let patience = if candidates.is_empty() { left } else { left.min(self.connect.attempt) };
            match Self::attempt(endpoint, hello, patience).await {
                Ok(stream) => {
                    endpoint.reached();
                    return Ok((stream, engaged));
                }
                Err(error) => self.note_failure(endpoint, &error),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(Refusal::Unreachable)
    }

    async fn attempt(endpoint: &Endpoint, hello: &[u8], patience: Duration) -> io::Result<TcpStream> {
        timeout(patience, connect_and_send(endpoint.address, hello))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn note_failure(&self, endpoint: &Endpoint, error: &io::Error) {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => "refused",
            io::ErrorKind::TimedOut => "timed_out",
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset",
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
            // Such as no descriptor or no port left: nothing that the endpoint has done.
            _ => "local",
        };
        if kind != "local" {
            endpoint.failed(std::time::Instant::now());
        }
        self.metrics.connect_failures.add(kind, 1);
        debug!(endpoint = endpoint.id, dst.addr = %endpoint.address, %error, "could not reach an endpoint");
    }
}
