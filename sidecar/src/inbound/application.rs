//! Connections to the application itself.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use relay::SocketOptions;
use tokio::net::TcpStream;
use tracing::debug;

use crate::config::InboundConfig;
use crate::failure::{self, Failure};
use crate::hang_up::HangUp;
use crate::headers;
use crate::tasks::Tasks;

/// Idle HTTP/1.1 connections kept for one port.
const MAX_IDLE: usize = 128;

/// Header fields of one HTTP/1.1 response.
const MAX_FIELDS: usize = 256;

/// Header fields of one HTTP/2 response, read whole: its connection is shared by many requests, and too many would end it.
#[expect(clippy::cast_possible_truncation, reason = "a constant that fits")]
const READ_LIMIT: u32 = headers::READ_LIMIT as u32;

/// An HTTP/2 application that says nothing for this long while requests wait is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(5);

/// The application gave no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplicationError {
    /// It accepts no connection; it has seen nothing of the request.
    #[error("the application refuses connections: {0}")]
    Unreachable(io::Error),
    /// It is going away and said that it did not act on the request.
    #[error("the application refused the request: {0}")]
    Unprocessed(String),
    /// It broke the connection; it may have acted upon the request.
    #[error("the application ended the connection: {0}")]
    Broken(String),
}

impl ApplicationError {
    /// Whether the request may go elsewhere whatever its method.
    pub(crate) const fn unprocessed(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unprocessed(_))
    }

    /// One word for the header, the log and the metric.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "application-unreachable",
            Self::Unprocessed(_) => "application-refused",
            Self::Broken(_) => "application-broken",
        }
    }
}

/// The application behind this sidecar, with the connections kept to it. Clones share them.
#[derive(Clone)]
pub(crate) struct Application {
    shared: Arc<Shared>,
}

struct Shared {
    address: IpAddr,
    config: InboundConfig,
    tasks: Tasks,
    ports: Mutex<HashMap<u16, Kept>>,
    /// Open already, and not used.
    first: Mutex<Option<TcpStream>>,
}

/// Connections kept to one port.
#[derive(Default)]
struct Kept {
    http1: Vec<Idle>,
    http2: Option<Http2>,
}

/// A connection that speaks HTTP/2, with the same look.
#[derive(Clone)]
struct Http2 {
    sender: http2::SendRequest<Incoming>,
    hang_up: Arc<HangUp>,
}

struct Idle {
    connection: Http1,
    since: Instant,
}

/// A connection that speaks HTTP/1.1, and the look at its socket: an application that died has closed it, and the word of it
/// may lie in the socket before the connection's task has run.
struct Http1 {
    sender: http1::SendRequest<Incoming>,
    hang_up: HangUp,
}

impl Application {
    pub(crate) fn new(address: IpAddr, config: InboundConfig, tasks: Tasks) -> Self {
        let (ports, first) = Default::default();
        Self { shared: Arc::new(Shared { address, config, tasks, ports, first }) }
    }

    /// Uses this connection, too: the first one to the one port that is ever asked for.
    pub(crate) fn with_first(self, stream: TcpStream) -> Self {
        *self.shared.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        self
    }

    fn take_first(&self) -> Option<TcpStream> {
        let first = self.shared.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.filter(|stream| HangUp::of(stream).is_ok_and(|hang_up| !hang_up.seen()))
    }

    /// A new connection to a port.
    pub(crate) async fn connect(&self, port: u16) -> Result<TcpStream, ApplicationError> {
        if let Some(first) = self.take_first() {
            return Ok(first);
        }
        let address = SocketAddr::new(self.shared.address, port);
        let stream = tokio::time::timeout(self.shared.config.connect_timeout, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(ApplicationError::Unreachable)?;
        relay::configure(&stream, &SocketOptions::default()).map_err(ApplicationError::Unreachable)?;
        Ok(stream)
    }

    /// Sends a request as HTTP/1.1, on a kept connection if there is one.
    pub(crate) async fn http1(
        &self,
        port: u16,
        mut request: Request<Incoming>,
    ) -> Result<Response<ApplicationBody>, ApplicationError> {
        loop {
            let kept = self.take_idle(port);
            let reused = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.open_http1(port).await?,
            };
            match connection.sender.try_send_request(request).await {
                Ok(response) => {
                    let keep = Keep { application: self.clone(), port, connection };
                    return Ok(response.map(|body| ApplicationBody { body, keep: Some(keep) }));
                }
                Err(mut error) => match error.take_message() {
                    // It was closed while it lay there, and nothing was written.
                    Some(unsent) if reused => request = unsent,
                    Some(_) => return Err(ApplicationError::Unprocessed(failure::describe(error.error()))),
                    None => return Err(ApplicationError::Broken(failure::describe(error.error()))),
                },
            }
        }
    }

    /// Sends a request as HTTP/2 with prior knowledge.
    pub(crate) async fn http2(
        &self,
        port: u16,
        mut request: Request<Incoming>,
    ) -> Result<Response<ApplicationBody>, ApplicationError> {
        loop {
            let kept = self.ports().get(&port).and_then(|kept| kept.http2.clone());
            let kept = kept.filter(|kept| kept.sender.is_ready() && !kept.hang_up.seen()).map(|kept| kept.sender);
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.open_http2(port).await?,
            };
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| ApplicationBody { body, keep: None })),
                Err(error) => error,
            };
            let unsent = error.take_message();
            let text = failure::describe(error.error());
            match (failure::classify(error.error(), unsent.is_some()), unsent) {
                (_, Some(unsent)) if reused => request = unsent,
                (Failure::NeverSent | Failure::GoneAway, _) => return Err(ApplicationError::Unprocessed(text)),
                (Failure::Broken | Failure::Caller, _) => return Err(ApplicationError::Broken(text)),
            }
        }
    }

    /// Sends a request that asks for another protocol, on a connection of its own.
    pub(crate) async fn upgrade(
        &self,
        port: u16,
        request: Request<Incoming>,
    ) -> Result<Response<Incoming>, ApplicationError> {
        let stream = self.connect(port).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .max_buf_size(headers::READ_LIMIT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ApplicationError::Unprocessed(failure::describe(&error)))?;
        self.shared.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "connection to the application");
            }
        });
        sender.send_request(request).await.map_err(|error| ApplicationError::Broken(failure::describe(&error)))
    }

    async fn open_http1(&self, port: u16) -> Result<Http1, ApplicationError> {
        let stream = self.connect(port).await?;
        let hang_up = HangUp::of(&stream).map_err(ApplicationError::Unreachable)?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_FIELDS)
            .max_buf_size(headers::READ_LIMIT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ApplicationError::Unprocessed(failure::describe(&error)))?;
        self.drive(connection, port);
        Ok(Http1 { sender, hang_up })
    }

    async fn open_http2(&self, port: u16) -> Result<http2::SendRequest<Incoming>, ApplicationError> {
        let stream = self.connect(port).await?;
        let hang_up = Arc::new(HangUp::of(&stream).map_err(ApplicationError::Unreachable)?);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .max_header_list_size(READ_LIMIT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ApplicationError::Unprocessed(failure::describe(&error)))?;
        self.drive(connection, port);
        self.ports().entry(port).or_default().http2 = Some(Http2 { sender: sender.clone(), hang_up });
        Ok(sender)
    }

    /// Drives a connection to its end, and keeps nothing alive for that: kept connections end with the last user of this.
    fn drive(&self, connection: impl Future<Output = hyper::Result<()>> + Send + 'static, port: u16) {
        let shared = Arc::downgrade(&self.shared);
        self.shared.tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to the application");
            }
            if let Some(shared) = shared.upgrade() {
                Self { shared }.forget_closed(port);
            }
        });
    }

    /// Lets connections go that have ended: the look at a socket keeps it open.
    fn forget_closed(&self, port: u16) {
        if let Some(kept) = self.ports().get_mut(&port) {
            kept.http1.retain(|idle| !idle.connection.sender.is_closed());
            kept.http2.take_if(|kept| kept.sender.is_closed());
        }
    }

    /// The connection used last that is ready for another request.
    fn take_idle(&self, port: u16) -> Option<Http1> {
        let mut ports = self.ports();
        let kept = ports.get_mut(&port)?;
        let keep_alive = self.shared.config.keep_alive;
        kept.http1.retain(|idle| !idle.connection.sender.is_closed() && idle.since.elapsed() < keep_alive);
        while let Some(place) = kept.http1.iter().rposition(|idle| idle.connection.sender.is_ready()) {
            let connection = kept.http1.remove(place).connection;
            if !connection.hang_up.seen() {
                return Some(connection);
            }
        }
        None
    }

    /// Held for a few comparisons, never across an await.
    fn ports(&self) -> MutexGuard<'_, HashMap<u16, Kept>> {
        self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings an HTTP/1.1 connection back when its response has ended.
struct Keep {
    application: Application,
    port: u16,
    connection: Http1,
}

impl Keep {
    fn done(self) {
        if self.connection.sender.is_closed() {
            return;
        }
        let mut ports = self.application.ports();
        let kept = &mut ports.entry(self.port).or_default().http1;
        if kept.len() < MAX_IDLE {
            kept.push(Idle { connection: self.connection, since: Instant::now() });
        }
    }
}

/// A response's body, which gives its connection back when it has ended.
pub(crate) struct ApplicationBody {
    body: Incoming,
    keep: Option<Keep>,
}

impl ApplicationBody {
    /// Of a connection that nobody else uses.
    pub(crate) const fn once(body: Incoming) -> Self {
        Self { body, keep: None }
    }
}

impl Body for ApplicationBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none()
            && let Some(keep) = self.keep.take()
        {
            keep.done();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ApplicationBody {
    fn drop(&mut self) {
        // A body that says that it has ended is not always polled to its end.
        if self.body.is_end_stream()
            && let Some(keep) = self.keep.take()
        {
            keep.done();
        }
    }
}
