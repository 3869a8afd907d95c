//! Connections to the socket, a bounded number of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, stream};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;
use tracing::warn;

use super::authority::Authority;
use super::socket::Socket;
use crate::outbound::ACCEPT_PAUSE;

/// The process at the other end, as the kernel says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) process: Option<i32>,
    pub(super) user: u32,
}

/// A connection with its place among the few.
pub(super) struct Connection {
    stream: UnixStream,
    authority: Authority,
    _permit: OwnedSemaphorePermit,
}

/// Connections for ever, closing those for which there is no place. The socket lives as long as the stream.
pub(super) fn incoming(
    socket: Socket,
    places: Arc<Semaphore>,
    shed: Counter,
) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((socket, places, shed), |(socket, places, shed)| async move {
        loop {
            match socket.accept().await {
                Ok(stream) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(permit) => {
                        return Some((Ok(Connection::new(stream, permit)), (socket, places, shed)));
                    }
                    Err(_) => {
                        shed.inc();
                    }
                },
                Err(error) => {
                    warn!(%error, "workload API accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

impl Connection {
    fn new(stream: UnixStream, permit: OwnedSemaphorePermit) -> Self {
        Self { stream, authority: Authority::new(), _permit: permit }
    }
}

impl Connected for Connection {
    type ConnectInfo = Option<Caller>;

    fn connect_info(&self) -> Option<Caller> {
        let credentials = self.stream.peer_cred().ok()?;
        Some(Caller { process: credentials.pid(), user: credentials.uid() })
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.authority.pass(&mut buffer.filled_mut()[before..]);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
