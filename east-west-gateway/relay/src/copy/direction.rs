//! One direction of a relay, as a state machine that is polled.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::pool;

/// How often one direction reads before the other has its turn: with full buffers 1 MiB.
const READS_PER_TURN: usize = 16;

/// Which of the two streams failed.
pub(super) enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

pub(super) struct Direction {
    state: State,
    /// Lent by the pool while bytes are in it.
    buffer: Option<Box<[u8]>>,
    /// The part of the buffer that is still to be written.
    unwritten: Range<usize>,
    /// Whether the writer may hold bytes back that only a flush sends.
    unflushed: bool,
    moved: u64,
}

#[derive(Clone, Copy)]
enum State {
    Open,
    /// The reader ended; the writer is being shut down.
    Ending,
    Ended(Instant),
}

impl Direction {
    pub(super) const fn new() -> Self {
        Self { state: State::Open, buffer: None, unwritten: 0..0, unflushed: false, moved: 0 }
    }

    /// Bytes written.
    pub(super) const fn moved(&self) -> u64 {
        self.moved
    }

    /// When the reader's end was passed on.
    pub(super) const fn ended(&self) -> Option<Instant> {
        match self.state {
            State::Open | State::Ending => None,
            State::Ended(at) => Some(at),
        }
    }

    /// Copies what can be copied now; ready when the reader's end was passed on, or at the first failure.
    pub(super) fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        for _ in 0..READS_PER_TURN {
            ready!(self.poll_write(context, writer.as_mut()))?;
            match self.state {
                State::Open => {}
                State::Ending => {
                    ready!(writer.as_mut().poll_shutdown(context)).map_err(Fault::Writing)?;
                    self.state = State::Ended(Instant::now());
                    return Poll::Ready(Ok(()));
                }
                State::Ended(_) => return Poll::Ready(Ok(())),
            }
            if self.poll_read(context, reader.as_mut())?.is_pending() {
                if self.unflushed {
                    ready!(writer.as_mut().poll_flush(context)).map_err(Fault::Writing)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads and drops what comes; ready at the end or a failure of the reader.
    pub(super) fn poll_discard<R: AsyncRead + ?Sized>(
        &mut self,
        context: &mut Context<'_>,
        mut reader: Pin<&mut R>,
    ) -> Poll<()> {
        for _ in 0..READS_PER_TURN {
            self.unwritten = 0..0;
            match self.poll_read(context, reader.as_mut()) {
                Poll::Ready(Ok(())) if matches!(self.state, State::Open) => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write<W: AsyncWrite + ?Sized>(
        &mut self,
        context: &mut Context<'_>,
        mut writer: Pin<&mut W>,
    ) -> Poll<Result<(), Fault>> {
        let Some(buffer) = &self.buffer else { return Poll::Ready(Ok(())) };
        while !self.unwritten.is_empty() {
            let written =
                ready!(writer.as_mut().poll_write(context, &buffer[self.unwritten.clone()])).map_err(Fault::Writing)?;
            if written == 0 {
                return Poll::Ready(Err(Fault::Writing(io::ErrorKind::WriteZero.into())));
            }
            self.unwritten.start += written;
            self.moved += written as u64;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read<R: AsyncRead + ?Sized>(
        &mut self,
        context: &mut Context<'_>,
        reader: Pin<&mut R>,
    ) -> Poll<Result<(), Fault>> {
        let mut buffer = self.buffer.take().unwrap_or_else(pool::take);
        let mut target = ReadBuf::new(&mut buffer);
        let outcome = reader.poll_read(context, &mut target);
        let filled = target.filled().len();
        match outcome {
            Poll::Ready(Ok(())) if filled > 0 => {
                self.unwritten = 0..filled;
                self.buffer = Some(buffer);
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(())) => self.state = State::Ending,
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        pool::give_back(buffer);
        outcome.map_err(Fault::Reading)
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            pool::give_back(buffer);
        }
    }
}
