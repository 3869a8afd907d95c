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
/// Under load it mostly is when the connection is accepted. Read at once, it costs neither a wake-up nor a timer. Where the runtime has
/// heard of it already it is read through the runtime, which then knows that it is gone: else the relay would ask in vain.
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
            if self.stream.poll_read_ready(context)?.is_ready() {
                return Pin::new(&mut *self.stream).poll_read(context, buffer);
            }
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
