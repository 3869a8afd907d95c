//! A stream that ends when its peer is no longer believed.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Peer, PeerError, TrustStore};

/// Wraps a stream so that a quarantine, or the loss of its peer's root, ends it: reading then fails with
/// [`io::ErrorKind::ConnectionAborted`], and so does every later use.
///
/// The change is noticed while somebody reads, as the driver of an HTTP/2 connection always does.
pub struct Guarded<S> {
    stream: S,
    distrusted: Option<Pin<Box<dyn Future<Output = PeerError> + Send>>>,
    reason: Option<PeerError>,
}

impl<S> Guarded<S> {
    /// Ends `stream` when `trust` no longer believes `peer`.
    pub fn new(stream: S, trust: &TrustStore, peer: Peer) -> Self {
        Self { stream, distrusted: Some(Box::pin(trust.distrusted(peer))), reason: None }
    }

    /// The stream as it is, for peers without a certificate or owners that watch by themselves.
    pub fn unguarded(stream: S) -> Self {
        Self { stream, distrusted: None, reason: None }
    }

    /// The wrapped stream.
    pub fn inner(&self) -> &S {
        &self.stream
    }

    fn check(&self) -> io::Result<()> {
        match &self.reason {
            Some(reason) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason.clone())),
            None => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(distrusted) = &mut self.distrusted
            && let Poll::Ready(reason) = distrusted.as_mut().poll(context)
        {
            self.distrusted = None;
            self.reason = Some(reason);
        }
        self.check()?;
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
