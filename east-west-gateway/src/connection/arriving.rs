//! A connection that was accepted a moment ago.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

/// A client whose hello may be there already.
///
/// Under load it mostly is when the connection is accepted. Read at once, before the runtime has heard of it, it costs neither a wake-up
/// nor a timer.
pub(super) struct Arriving<'a> {
    stream: &'a mut TcpStream,
    asked: bool,
}

impl<'a> Arriving<'a> {
    pub(super) const fn new(stream: &'a mut TcpStream) -> Self {
        Self { stream, asked: false }
    }
}

impl AsyncRead for Arriving<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asked {
            self.asked = true;
            match rustix::io::read(&*self.stream, buffer.initialize_unfilled()) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                outcome => {
                    buffer.advance(outcome?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}
