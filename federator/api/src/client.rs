//! One resumable client per stream.
//!
//! ```text
//!   connect ──► open, resume from what the user has applied ──► events … ──► lost ──► Disconnected ──► wait ─┐
//!      ▲                                                                                                    │
//!      └────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Each client is one task that lives as long as its [`Events`]: dropping these ends the call and the task. Events come
//! through a bounded queue, so a slow user slows the stream down. Losing the connection deletes nothing: the user hears of
//! it, keeps what it has, and gets what changed since after the next connection.
//!
//! HTTP/2 keepalive is the channel's: it finds dead peers on streams that are quiet by nature.

mod backoff;
pub mod discovery;
pub mod federation;
pub mod trust;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use backoff::Backoff;

/// The version of every protocol here.
pub const VERSION: u32 = 1;
/// The largest message that a client takes: a whole trust state of a thousand clusters fits.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// How long a call that is not a stream may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Events that wait for the user before the stream is slowed down.
const EVENTS: usize = 16;
/// Requests that wait for the connection.
const REQUESTS: usize = 4;

/// How a client connects again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// The first wait is anything up to this; each further one up to twice as much (full jitter).
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
    /// Without the server's first words after this time the connection is given up.
    pub opening_deadline: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(5),
            opening_deadline: Duration::from_secs(10),
        }
    }
}

/// Why a stream ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Disconnect {
    /// It could not be opened, or the server ended it with an error.
    #[error("{}: {}", .0.code(), .0.message())]
    Failed(Box<Status>),
    /// The server ended it without an error.
    #[error("ended by the server")]
    Ended,
    /// Nothing came for so long.
    #[error("silent for {0:?}")]
    Silent(Duration),
    /// The server drains.
    #[error("the server is going away: {0}")]
    GoingAway(String),
    /// The server speaks a version that this client does not.
    #[error("the server speaks version {0}, this client {VERSION}")]
    Version(u32),
    /// The server did not keep to the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The client wants another session, for example as a publisher.
    #[error("starting another session")]
    Renewed,
}

impl From<Status> for Disconnect {
    fn from(status: Status) -> Self {
        Self::Failed(Box::new(status))
    }
}

/// What happens on a stream, in order. It does not end by itself; dropping it ends the client.
#[derive(Debug)]
pub struct Events<E> {
    events: mpsc::Receiver<E>,
    _tasks: Vec<OwnedTask>,
}

impl<E> Events<E> {
    /// The next event. Safe to cancel.
    pub async fn recv(&mut self) -> Option<E> {
        self.events.recv().await
    }
}

impl<E> Stream for Events<E> {
    type Item = E;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<E>> {
        self.events.poll_recv(context)
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
struct OwnedTask(JoinHandle<()>);

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How one connection ended.
struct End {
    reason: Disconnect,
    /// Whether the server had said anything.
    heard: bool,
    /// The server's or the client's own wish; `None`: back off.
    wait: Option<Duration>,
}

impl End {
    fn new(reason: impl Into<Disconnect>, heard: bool) -> Self {
        Self { reason: reason.into(), heard, wait: None }
    }
}

/// One stream's protocol: what differs between the clients.
trait Connection: Send + 'static {
    type Event: Send + 'static;

    /// Connects once and runs the stream to its end; `None` when nobody listens to the events any more.
    fn run(&mut self, events: &mpsc::Sender<Self::Event>) -> impl Future<Output = Option<End>> + Send;

    fn disconnected(reason: Disconnect, retry_in: Duration) -> Self::Event;
}

fn start<C: Connection>(connection: C, reconnect: Reconnect) -> Events<C::Event> {
    let (sender, events) = mpsc::channel(EVENTS);
    let task = tokio::spawn(keep_connected(connection, reconnect, sender));
    Events { events, _tasks: vec![OwnedTask(task)] }
}

async fn keep_connected<C: Connection>(mut connection: C, reconnect: Reconnect, events: mpsc::Sender<C::Event>) {
    let mut backoff = Backoff::new(reconnect.first, reconnect.longest);
    loop {
        let started = Instant::now();
        let Some(end) = connection.run(&events).await else { return };
        let drawn = backoff.after(end.heard, started.elapsed(), &mut rand::rng());
        let wait = end.wait.map_or(drawn, |wait| wait.min(reconnect.longest));
        tracing::debug!(reason = %end.reason, retry_in = ?wait, "stream ended");
        if events.send(C::disconnected(end.reason, wait)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// A call that must answer in time.
async fn opened<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Disconnect> {
    match tokio::time::timeout(deadline, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Disconnect::Silent(deadline)),
    }
}

/// A unary call with [`CALL_DEADLINE`].
async fn within_deadline<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(result) => Ok(result?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {CALL_DEADLINE:?}"))),
    }
}
