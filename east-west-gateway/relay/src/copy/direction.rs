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

/// What one step has done.
pub(super) enum Step {
    /// So many bytes were read and are to be written; none at the reader's end.
    Read(usize),
    /// The reader's end was passed on.
    Ended,
}

/// A direction of any kind between a reader and a writer.
pub(super) trait Way<R: ?Sized, W: ?Sized> {
    /// Copies what can be copied now; ready when the reader's end was passed on, or at the first failure.
    fn poll(&mut self, context: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Fault>>;
}

/// What is common to both kinds.
pub(super) trait Copied: Default {
    /// The direction's own buffer and counts.
    fn buffered(&mut self) -> &mut Direction;

    /// Says that the other direction has ended.
    fn is_last(&mut self) {}
}

#[derive(Default)]
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

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Open,
    /// The reader ended; the writer is being shut down.
    Ending,
    Ended(Instant),
}

impl Direction {
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

    /// Counts bytes that went another way than through the buffer.
    pub(super) const fn count(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        self.unflushed = false;
    }

    /// Says that the reader was found at its end.
    pub(super) const fn reader_ended(&mut self) {
        self.state = State::Ending;
    }

    /// Writes what was read before; whether the reader has ended, which is then as good as passed on.
    pub(super) fn poll_ended<W: AsyncWrite + ?Sized>(
        &mut self,
        context: &mut Context<'_>,
        writer: Pin<&mut W>,
    ) -> Poll<Result<bool, Fault>> {
        ready!(self.poll_write(context, writer))?;
        if let State::Ending = self.state {
            self.state = State::Ended(Instant::now());
        }
        Poll::Ready(Ok(matches!(self.state, State::Ended(_))))
    }

    /// Writes what was read before, then reads once.
    pub(super) fn poll_step<R, W>(
        &mut self,
        context: &mut Context<'_>,
        reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<Result<Step, Fault>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        ready!(self.poll_write(context, writer.as_mut()))?;
        match self.state {
            State::Open => {}
            State::Ending => {
                ready!(writer.as_mut().poll_shutdown(context)).map_err(Fault::Writing)?;
                self.state = State::Ended(Instant::now());
                return Poll::Ready(Ok(Step::Ended));
            }
            State::Ended(_) => return Poll::Ready(Ok(Step::Ended)),
        }
        if self.poll_read(context, reader)?.is_pending() {
            if self.unflushed {
                ready!(writer.as_mut().poll_flush(context)).map_err(Fault::Writing)?;
                self.unflushed = false;
            }
            return Poll::Pending;
        }
        Poll::Ready(Ok(Step::Read(self.unwritten.len())))
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

    /// Writes what was read.
    pub(super) fn poll_write<W: AsyncWrite + ?Sized>(
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

impl Copied for Direction {
    fn buffered(&mut self) -> &mut Direction {
        self
    }
}

impl<R, W> Way<R, W> for Direction
where
    R: AsyncRead + Unpin + ?Sized,
    W: AsyncWrite + Unpin + ?Sized,
{
    fn poll(&mut self, context: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Fault>> {
        for _ in 0..READS_PER_TURN {
            if let Step::Ended = ready!(self.poll_step(context, Pin::new(&mut *reader), Pin::new(&mut *writer)))? {
                return Poll::Ready(Ok(()));
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            pool::give_back(buffer);
        }
    }
}
