//! The relay: two directions, polled by one task.
//!
//! ```text
//!        ┌── Direction a→b: read a, write b; a's end becomes b's shutdown ──┐
//!   a ◄─►│                                                                  │◄─► b
//!        └── Direction b→a: read b, write a; b's end becomes a's shutdown ──┘
//! ```
//!
//! A direction between TCP streams begins with a buffer, and goes over to a pipe once its traffic is bulk: see `tcp`.

mod direction;
mod pipe;
mod pool;
mod tcp;

pub use pipe::pipes;

use std::{
    future::poll_fn,
    io,
    os::fd::AsFd,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep},
};

use crate::{SocketOptions, configure};
use direction::{Copied, Direction, Fault, Way};
use tcp::TcpDirection;

/// How a relay behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayOptions {
    /// After a side has ended its own direction in order, a reset by it is passed on no sooner than this: a reset discards what the
    /// other side has not read yet, and the last bytes of an answer may still be on their way. What the other side sends
    /// meanwhile is read and dropped.
    pub reset_delay: Duration,
    /// How many pipes of 1 MiB the process may have for bulk between TCP streams; each takes two descriptors. A connection has one only
    /// while bytes are in it: fast ones share a few, and slow ones beyond the limit get buffers. 0: bulk is copied too.
    pub max_pipes: usize,
    /// Options for `b`, the stream that the caller has opened, once the relay has lasted [`SETTLED`]: of keepalive and time-outs, which
    /// take longer anyway, a short connection need not pay the system calls. Between TCP streams only.
    pub settle_b: Option<SocketOptions>,
}

/// When a relay is no short one any more.
pub const SETTLED: Duration = Duration::from_secs(5);

impl Default for RelayOptions {
    /// A second: several round trips between continents. 64 pipes: what the kernel lets an unprivileged user have
    /// (`fs.pipe-user-pages-soft`).
    fn default() -> Self {
        Self { reset_delay: Duration::from_secs(1), max_pipes: 64, settle_b: None }
    }
}

/// One of the two streams, by the argument's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first stream: who called.
    A,
    /// The second stream: who was called.
    B,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// What a relay has moved, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes written to `b`.
    pub a_to_b: u64,
    /// Bytes written to `a`.
    pub b_to_a: u64,
    /// From the relay's start to the first byte that came from `b`.
    pub first_byte: Option<Duration>,
    /// How it ended.
    pub end: RelayEnd,
}

impl Default for Relayed {
    /// A relay that has not begun.
    fn default() -> Self {
        Self { a_to_b: 0, b_to_a: 0, first_byte: None, end: RelayEnd::Unfinished }
    }
}

/// A record of a relay, kept up to date while it runs.
pub trait Record {
    /// The record proper.
    fn relayed(&mut self) -> &mut Relayed;

    /// Called when so many bytes more have been written to `b` and to `a`, for counters that others read meanwhile.
    fn progressed(&mut self, to_b: u64, to_a: u64) {
        let _ = (to_b, to_a);
    }
}

impl Record for Relayed {
    fn relayed(&mut self) -> &mut Relayed {
        self
    }
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RelayEnd {
    /// It has not: what is left in a record when the relay's future was dropped.
    Unfinished,
    /// Both sides ended their direction in order.
    Closed,
    /// This side reset the connection, or closed it while bytes for it were under way.
    Reset(Side),
    /// This side stopped answering: keepalive or `TCP_USER_TIMEOUT` gave it up.
    TimedOut(Side),
    /// This side's stream ended where its protocol forbids it: TLS without `close_notify`.
    Truncated(Side),
    /// This side's stream failed in another way.
    Failed(Side, io::ErrorKind),
}

impl RelayEnd {
    /// A fixed word for logs and metric labels.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unfinished => "unfinished",
            Self::Closed => "closed",
            Self::Reset(Side::A) => "reset_by_a",
            Self::Reset(Side::B) => "reset_by_b",
            Self::TimedOut(Side::A) => "a_timed_out",
            Self::TimedOut(Side::B) => "b_timed_out",
            Self::Truncated(Side::A) => "truncated_by_a",
            Self::Truncated(Side::B) => "truncated_by_b",
            Self::Failed(Side::A, _) => "a_failed",
            Self::Failed(Side::B, _) => "b_failed",
        }
    }

    /// The side that must be told by a reset that the connection broke: the one that is still whole.
    #[must_use]
    pub const fn to_reset(self) -> Option<Side> {
        match self {
            Self::Unfinished | Self::Closed => None,
            Self::Reset(side) | Self::TimedOut(side) | Self::Truncated(side) | Self::Failed(side, _) => {
                Some(side.other())
            }
        }
    }

    fn from_error(side: Side, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::Reset(side),
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Self::TimedOut(side)
            }
            io::ErrorKind::UnexpectedEof => Self::Truncated(side),
            kind => Self::Failed(side, kind),
        }
    }
}

/// Makes the closing of a socket a reset (`SO_LINGER` of zero); what is not yet sent is discarded.
///
/// # Errors
/// The kernel refused the option.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Copies bytes both ways until both sides have ended or one has broken.
///
/// The end of one direction is passed on alone. When one side breaks, the other is set to be reset: dropping it sends the RST.
pub async fn relay(a: &mut TcpStream, b: &mut TcpStream, options: &RelayOptions) -> Relayed {
    let mut relayed = Relayed::default();
    relay_observed(a, b, options, &mut relayed).await;
    relayed
}

/// [`relay`], with a record that is up to date whenever the future rests, and so also after it was dropped.
///
/// Bulk goes through pipes (`splice`), everything else through buffers: see [`RelayOptions::max_pipes`]. The end that comes last is passed
/// on by dropping the streams, as the caller is expected to do.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn keeps its arguments twice, and this is what an idle connection takes"
)]
pub fn relay_observed<R: Record>(
    a: &mut TcpStream,
    b: &mut TcpStream,
    options: &RelayOptions,
    record: &mut R,
) -> impl Future<Output = ()> {
    async move {
        let mut settled =
            pin!(options.settle_b.map(|socket_options| Settling { time: tokio::time::sleep(SETTLED), socket_options }));
        let mut copying = Copying::<TcpDirection>::new();
        copying.a_to_b.max_pipes = options.max_pipes;
        copying.b_to_a.max_pipes = options.max_pipes;
        let end = poll_fn(|context| {
            if settled.as_mut().as_pin_mut().is_some_and(|settling| settling.poll(context, b)) {
                settled.set(None);
            }
            copying.poll(context, a, b, record)
        })
        .await;
        copying.end(end, a, b, options, record).await;
        let reset = match end.to_reset() {
            Some(Side::A) => reset_on_close(a),
            Some(Side::B) => reset_on_close(b),
            None => Ok(()),
        };
        // A socket that takes no option any more is closed already.
        drop(reset);
    }
}

/// [`relay_observed`] between streams of any kind, such as TLS and TCP. The caller passes a break on:
/// see [`RelayEnd::to_reset`] and [`reset_on_close`].
pub async fn relay_streams<A, B, R>(a: &mut A, b: &mut B, options: &RelayOptions, record: &mut R)
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
    R: Record,
{
    let mut copying = Copying::<Direction>::new();
    let end = poll_fn(|context| copying.poll(context, a, b, record)).await;
    copying.end(end, a, b, options, record).await;
}

pin_project! {
    /// What waits until a relay is no short one any more.
    struct Settling {
        #[pin]
        time: Sleep,
        socket_options: SocketOptions,
    }
}

impl Settling {
    /// Says whether it is done.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>, stream: &TcpStream) -> bool {
        let settling = self.project();
        let due = settling.time.poll(context).is_ready();
        if due {
            // A socket that takes no option any more is about to end.
            let _ = configure(stream, settling.socket_options);
        }
        due
    }
}

struct Copying<D> {
    started: Instant,
    a_to_b: D,
    b_to_a: D,
}

impl<D: Copied> Copying<D> {
    fn new() -> Self {
        Self { started: Instant::now(), a_to_b: D::default(), b_to_a: D::default() }
    }

    fn poll<A, B, R>(&mut self, context: &mut Context<'_>, a: &mut A, b: &mut B, record: &mut R) -> Poll<RelayEnd>
    where
        A: ?Sized,
        B: ?Sized,
        D: Way<A, B> + Way<B, A>,
        R: Record,
    {
        if self.b_to_a.buffered().ended().is_some() {
            self.a_to_b.is_last();
        }
        let forwards = self.a_to_b.poll(context, a, b);
        if forwards.is_ready() {
            self.b_to_a.is_last();
        }
        let backwards = self.b_to_a.poll(context, b, a);
        self.write_down(record);
        match (forwards, backwards) {
            (Poll::Ready(Err(fault)), _) => Poll::Ready(end_of(Side::A, Side::B, &fault)),
            (_, Poll::Ready(Err(fault))) => Poll::Ready(end_of(Side::B, Side::A, &fault)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(RelayEnd::Closed),
            _ => Poll::Pending,
        }
    }

    /// Writes the end down; before that, one by a reset may have to be passed on later.
    async fn end<A, B, R>(&mut self, end: RelayEnd, a: &mut A, b: &mut B, options: &RelayOptions, record: &mut R)
    where
        A: AsyncRead + Unpin + ?Sized,
        B: AsyncRead + Unpin + ?Sized,
        R: Record,
    {
        if let RelayEnd::Reset(by) = end {
            let (forwards, backwards) = match by {
                Side::A => (&mut self.a_to_b, &mut self.b_to_a),
                Side::B => (&mut self.b_to_a, &mut self.a_to_b),
            };
            if let Some(at) = forwards.buffered().ended() {
                let (until, backwards) = (at + options.reset_delay, backwards.buffered());
                // Rare, and so not worth a place in every relay.
                match by {
                    Side::A => Box::pin(discard(backwards, b, until)).await,
                    Side::B => Box::pin(discard(backwards, a, until)).await,
                }
            }
        }
        record.relayed().end = end;
    }

    fn write_down(&mut self, record: &mut impl Record) {
        let (to_b, to_a) = (self.a_to_b.buffered().moved(), self.b_to_a.buffered().moved());
        let relayed = record.relayed();
        let progress = (to_b - relayed.a_to_b, to_a - relayed.b_to_a);
        if progress == (0, 0) {
            return;
        }
        (relayed.a_to_b, relayed.b_to_a) = (to_b, to_a);
        if to_a > 0 && relayed.first_byte.is_none() {
            relayed.first_byte = Some(self.started.elapsed());
        }
        record.progressed(progress.0, progress.1);
    }
}

fn end_of(reader: Side, writer: Side, fault: &Fault) -> RelayEnd {
    match fault {
        Fault::Reading(error) => RelayEnd::from_error(reader, error),
        Fault::Writing(error) => RelayEnd::from_error(writer, error),
    }
}

/// Reads and drops what comes until the time is over. An end of the stream does not shorten it: its reader may still be behind.
async fn discard<S: AsyncRead + Unpin + ?Sized>(direction: &mut Direction, stream: &mut S, until: Instant) {
    let mut until = pin!(tokio::time::sleep_until(until));
    let mut ended = false;
    poll_fn(|context| {
        if until.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        ended = ended || direction.poll_discard(context, Pin::new(&mut *stream)).is_ready();
        Poll::Pending
    })
    .await;
}
