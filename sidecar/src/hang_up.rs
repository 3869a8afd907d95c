//! Whether the other end of a kept connection has hung up.
//!
//! When a process is killed, the kernel closes its connections at once, and the word of it lies in our socket before the
//! task that drives the connection has run. A request that is sent in between is lost with the connection, and one that
//! must not be repeated would be an error to the caller. So the kernel is asked before a kept connection is used again:
//! one system call, no lock, and nothing is read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;

/// A second handle to a connection's socket, for looking only. It must not outlive the connection's use: the socket stays
/// open as long as it is held.
#[derive(Debug)]
pub(crate) struct HangUp(OwnedFd);

impl HangUp {
    /// Watches a connected socket.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn of(stream: &TcpStream) -> io::Result<Self> {
        stream.as_fd().try_clone_to_owned().map(Self)
    }

    /// Whether the peer has ended or reset the connection and everything before that was read. Unread bytes say nothing:
    /// their reader will find out.
    pub(crate) fn seen(&self) -> bool {
        match recv(&self.0, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, length)) => length == 0,
            Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_end_is_seen_once_everything_before_it_was_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kept = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let hang_up = HangUp::of(&kept).unwrap();
        assert!(!hang_up.seen(), "a quiet connection is open");
        peer.write_all(b"x").await.unwrap();
        kept.readable().await.unwrap();
        assert!(!hang_up.seen(), "bytes are no end");
        kept.try_read(&mut [0; 1]).unwrap();
        drop(peer);
        kept.readable().await.unwrap();
        assert!(hang_up.seen());
    }

    #[tokio::test]
    async fn a_reset_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kept = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let hang_up = HangUp::of(&kept).unwrap();
        relay::reset_on_close(&peer).unwrap();
        drop(peer);
        kept.readable().await.unwrap();
        assert!(hang_up.seen());
    }
}
