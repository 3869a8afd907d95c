//! One direction between TCP streams: a buffer for messages, a pipe for bulk.
//!
//! ```text
//!            128 KiB in a row, no read below 16 KiB
//!   buffer ──────────────────────────────────────────► pipe
//!     ▲                                                 │
//!     └─────────────────────────────────────────────────┘
//!            a wake-up that brought less than 16 KiB, or no pipe to be had
//! ```
//!
//! A message costs a read and a write. Through a pipe it would cost three splices, the last one finding nothing; from some 16 KiB on the copying
//! saved is worth more than that.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

use super::{
    direction::{Copied, Direction, Fault, Step, Way},
    pipe::Pipe,
};

/// The smallest read, and the smallest wake-up, that counts as bulk.
const BULK_READ: usize = 16 * 1024;
/// So much bulk in a row changes over to a pipe.
const BULK_RUN: usize = 128 * 1024;
/// How many buffers or pipes are filled before the other direction and other connections have their turn.
const FILLS_PER_TURN: usize = 4;

#[derive(Default)]
pub(super) struct TcpDirection {
    buffer: Direction,
    pub(super) max_pipes: usize,
    /// The other direction has ended: closing both sockets passes this one's end on too, and saves a system call.
    last: bool,
    /// Bytes of bulk seen in a row.
    run: usize,
    path: Path,
}

#[derive(Default)]
enum Path {
    #[default]
    Buffer,
    /// Bulk, with a pipe only while bytes are in it, and how many have come since the reader last had none.
    Pipe { pipe: Option<Pipe>, since_wake: usize },
}

impl TcpDirection {
    /// One buffer.
    fn poll_buffer(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut TcpStream,
        writer: &mut TcpStream,
    ) -> Poll<Result<Step, Fault>> {
        if self.last && ready!(self.buffer.poll_ended(context, Pin::new(&mut *writer)))? {
            return Poll::Ready(Ok(Step::Ended));
        }
        let step = ready!(self.buffer.poll_step(context, Pin::new(reader), Pin::new(writer)))?;
        match step {
            Step::Read(bytes) if bytes >= BULK_READ => self.run += bytes,
            _ => self.run = 0,
        }
        Poll::Ready(Ok(step))
    }

    /// One pipe: what is in it is sent, then it is filled once.
    fn poll_pipe(
        &mut self,
        context: &mut Context<'_>,
        reader: &TcpStream,
        writer: &mut TcpStream,
    ) -> Poll<Result<(), Fault>> {
        let Path::Pipe { pipe: lent, since_wake } = &mut self.path else { return Poll::Ready(Ok(())) };
        // What was read before the change of paths.
        ready!(self.buffer.poll_write(context, Pin::new(&mut *writer)))?;
        if let Some(pipe) = lent {
            while pipe.held() > 0 {
                ready!(writer.poll_write_ready(context)).map_err(Fault::Writing)?;
                match pipe.empty(writer) {
                    Ok(sent) => self.buffer.count(sent),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(Fault::Writing(error))),
                }
            }
        }
        loop {
            if reader.poll_read_ready(context).map_err(Fault::Reading)?.is_pending() {
                lent.take().into_iter().for_each(Pipe::give_back);
                if *since_wake < BULK_READ {
                    self.path = Path::Buffer;
                } else {
                    *since_wake = 0;
                }
                return Poll::Pending;
            }
            let Some(pipe) = lent.take().or_else(|| Pipe::take(self.max_pipes)) else {
                self.path = Path::Buffer;
                return Poll::Ready(Ok(()));
            };
            match lent.insert(pipe).fill(reader) {
                Ok(0) => {
                    self.buffer.reader_ended();
                    lent.take().into_iter().for_each(Pipe::give_back);
                    self.path = Path::Buffer;
                    return Poll::Ready(Ok(()));
                }
                Ok(filled) => {
                    *since_wake += filled;
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Fault::Reading(error))),
            }
        }
    }
}

impl Copied for TcpDirection {
    fn buffered(&mut self) -> &mut Direction {
        &mut self.buffer
    }

    fn is_last(&mut self) {
        self.last = true;
    }
}

impl Way<TcpStream, TcpStream> for TcpDirection {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut TcpStream,
        writer: &mut TcpStream,
    ) -> Poll<Result<(), Fault>> {
        for _ in 0..FILLS_PER_TURN {
            if let Path::Pipe { .. } = self.path {
                ready!(self.poll_pipe(context, reader, writer))?;
            } else if let Step::Ended = ready!(self.poll_buffer(context, reader, writer))? {
                return Poll::Ready(Ok(()));
            }
            if self.run >= BULK_RUN && self.max_pipes > 0 {
                self.run = 0;
                self.path = Path::Pipe { pipe: None, since_wake: BULK_RUN };
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
