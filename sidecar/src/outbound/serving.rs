//! HTTP connections of the application.
//!
//! hyper keeps two buffers and a state machine for each connection, 20 KiB and more, and applications keep connections for
//! hours between requests. So an HTTP/1.1 connection that is idle is taken apart, down to its socket, and put together again
//! when the next bytes come:
//!
//! ```text
//!             first bytes ─┬─ HTTP/2's preface ──────────────────────────► hyper, to its end
//!                          └─ anything else ──► hyper ── idle ──► socket ─┐
//!                                                 ▲                       │
//!                                                 └────── next bytes ─────┘
//! ```

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_runtime::DrainWatcher;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

use crate::headers;
use crate::outbound::detect::PREFACE;
use crate::outbound::response::ResponseBody;

/// Requests of one HTTP/2 connection of the application at a time.
const MAX_STREAMS: u32 = 1000;

/// Header fields of one HTTP/1.1 request: what fits into [`headers::LIST_LIMIT`] is seldom more.
const MAX_FIELDS: usize = 256;

/// An HTTP/1.1 connection without a request for this long is taken apart. A busy one never is: that would cost each request
/// its buffers anew.
const IDLE: Duration = Duration::from_millis(20);

/// The most that is read before a connection is put together: most requests, whole.
const FIRST_READ: usize = 2048;

/// Serves a connection until it ends, or until it has nothing under way while the sidecar drains.
pub(crate) async fn serve<S, F, R>(drain: &DrainWatcher, stream: S, respond: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let mut connection = Connection::new(stream);
    let ended = match connection.speaks_http2().await {
        Ok(true) => Box::pin(http2(drain, connection, respond)).await,
        Ok(false) => http1(drain, connection, respond).await,
        Err(error) => return debug!(%error, "connection of the application"),
    };
    if let Err(error) = ended {
        debug!(%error, "HTTP of the application");
    }
}

async fn http2<S, F, R>(drain: &DrainWatcher, connection: Connection<S>, respond: F) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(headers::MAX_LIST)
        .adaptive_window(true);
    let service = service_fn(|request| {
        let answer = respond(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut served = pin!(builder.serve_connection(TokioIo::new(connection), service));
    tokio::select! {
        result = served.as_mut() => result,
        () = drain.signaled() => {
            // Until what the application has asked for is answered.
            let _hold = drain.hold();
            served.as_mut().graceful_shutdown();
            served.await
        }
    }
}

async fn http1<S, F, R>(drain: &DrainWatcher, mut connection: Connection<S>, respond: F) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    loop {
        match Box::pin(requests(drain, connection, &respond)).await? {
            Some(idle) => connection = idle,
            None => return Ok(()),
        }
        tokio::select! {
            more = connection.read_more() => match more {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            },
            () = drain.signaled() => return Ok(()),
        }
    }
}

/// Serves requests of HTTP/1.1 until the connection is idle, and returns it, or until it has ended.
async fn requests<S, F, R>(
    drain: &DrainWatcher,
    connection: Connection<S>,
    respond: &F,
) -> hyper::Result<Option<Connection<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ResponseBody>>,
{
    let activity = Arc::clone(&connection.activity);
    let service = service_fn(|request| {
        let sent = activity.begin(&request);
        let answer = respond(request);
        async move { Ok::<_, Infallible>(answer.await.map(|body| until_sent(body, sent))) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The application may keep a connection idle for as long as it likes.
        .header_read_timeout(None)
        .half_close(true)
        .max_headers(MAX_FIELDS)
        .max_buf_size(headers::READ_LIMIT);
    let mut served = builder.serve_connection(TokioIo::new(connection), service).with_upgrades();
    let mut draining = pin!(drain.signaled());
    let mut hold = None;
    let mut idle = Idle::default();
    let ended = poll_fn(|context| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut served).poll(context) {
                return Poll::Ready(Some(result));
            }
            if hold.is_some() || draining.as_mut().poll(context).is_pending() {
                break;
            }
            // Until what the application has asked for is answered.
            hold = Some(drain.hold());
            Pin::new(&mut served).graceful_shutdown();
        }
        idle.poll(activity.quiet(), context).map(|()| None)
    })
    .await;
    match ended {
        Some(result) => result.map(|()| None),
        None => Ok(served.into_parts().map(|parts| parts.io.into_inner().taken_back(&parts.read_buf))),
    }
}

/// The body, which keeps the connection from being idle until it is gone.
fn until_sent(body: ResponseBody, sent: Sent) -> impl Body<Data = Bytes, Error = hyper::Error> {
    body.map_err(move |error| {
        let _held = &sent;
        error
    })
}

/// The bare connection under an upgrade of a connection that [`serve`] has served, with what was read of it already.
///
/// # Errors
/// It is not one of `S`, or a stream of HTTP/2: it is returned as it is.
pub(crate) fn bare<S>(upgraded: Upgraded) -> Result<(S, BytesMut), Upgraded>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let parts = upgraded.downcast::<TokioIo<Connection<S>>>()?;
    let Connection { stream, read, .. } = parts.io.into_inner().taken_back(&parts.read_buf);
    Ok((stream, read))
}

/// What a connection is doing.
#[derive(Debug, Default)]
struct Activity {
    /// From a request's head to its response's end.
    under_way: AtomicBool,
    /// Bytes wait for the application to take them.
    stuck: AtomicBool,
}

impl Activity {
    /// A request with a body, or one that the connection is handed over with, may leave more than its response to wait for:
    /// its end makes nothing idle.
    fn begin(self: &Arc<Self>, request: &Request<Incoming>) -> Sent {
        self.under_way.store(true, Ordering::Relaxed);
        let simple = request.body().is_end_stream()
            && request.method() != Method::CONNECT
            && !request.headers().contains_key(http::header::UPGRADE);
        Sent(simple.then(|| Arc::clone(self)))
    }

    fn quiet(&self) -> bool {
        !self.under_way.load(Ordering::Relaxed) && !self.stuck.load(Ordering::Relaxed)
    }
}

/// Dropped when a response has been sent.
struct Sent(Option<Arc<Activity>>);

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(activity) = &self.0 {
            activity.under_way.store(false, Ordering::Relaxed);
        }
    }
}

/// Tells when a connection has been quiet for [`IDLE`]. A busy one sets the timer once in that time, not with every request.
#[derive(Default)]
struct Idle {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn poll(&mut self, quiet: bool, context: &mut Context<'_>) -> Poll<()> {
        if !quiet {
            self.since = None;
            return Poll::Pending;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(since + IDLE)));
        while since.elapsed() < IDLE {
            ready!(timer.as_mut().poll(context));
            timer.as_mut().reset(since + IDLE);
        }
        Poll::Ready(())
    }
}

/// A connection of the application, of which something may have been read before.
struct Connection<S> {
    stream: S,
    /// Comes before what the stream has.
    read: BytesMut,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> Connection<S> {
    fn new(stream: S) -> Self {
        Self { stream, read: BytesMut::new(), activity: Arc::default() }
    }

    /// As it was before somebody read so much of it.
    fn taken_back(mut self, read: &[u8]) -> Self {
        if !read.is_empty() {
            let mut whole = BytesMut::from(read);
            whole.extend_from_slice(&self.read);
            self.read = whole;
        }
        self
    }

    /// Waits until the first bytes tell.
    async fn speaks_http2(&mut self) -> io::Result<bool> {
        loop {
            let known = self.read.len().min(PREFACE.len());
            if self.read[..known] != PREFACE[..known] {
                return Ok(false);
            }
            // At the end of the connection it is hyper's to say what is missing.
            if known == PREFACE.len() || self.read_more().await? == 0 {
                return Ok(known == PREFACE.len());
            }
        }
    }

    /// Reads what comes next; no buffer waits with it.
    async fn read_more(&mut self) -> io::Result<usize> {
        poll_fn(|context| {
            let mut space = [0; FIRST_READ];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            self.read.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
        .await
    }
}

impl<S> Connection<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.stuck.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let taken = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read.split_to(taken));
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_runtime::Process;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{sleep, timeout};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const GET: &[u8] = b"GET /1 HTTP/1.1\r\nhost: cart\r\n\r\n";

    /// Answers with the path; `/slow` after a minute.
    async fn path(request: Request<Incoming>) -> Response<ResponseBody> {
        if request.uri().path() == "/slow" {
            sleep(Duration::from_secs(60)).await;
        }
        let path = request.uri().path().to_owned();
        request.collect().await.unwrap();
        Response::new(ResponseBody::Own(Some(Bytes::from(path))))
    }

    async fn answer(client: &mut DuplexStream, body: &str) {
        let mut text = String::new();
        while !text.ends_with(body) || !text.contains("\r\n\r\n") {
            let mut some = [0; 1024];
            let read = timeout(LONG, client.read(&mut some)).await.unwrap().unwrap();
            assert!(read > 0, "ended after {text:?}");
            text.push_str(std::str::from_utf8(&some[..read]).unwrap());
        }
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }

    fn served() -> (DuplexStream, Process) {
        let (client, server) = duplex(4096);
        let process = Process::for_tests();
        let drain = process.drain();
        tokio::spawn(async move { serve(&drain, server, path).await });
        (client, process)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_taken_apart_after_its_response_and_not_before() {
        let (mut client, server) = duplex(4096);
        let drain = Process::for_tests().drain();
        let begun = Instant::now();
        client.write_all(b"GET /slow HTTP/1.1\r\nhost: cart\r\n\r\n").await.unwrap();
        let connection = requests(&drain, Connection::new(server), &path).await.unwrap().unwrap();
        let after = begun.elapsed();
        assert!(after >= Duration::from_secs(60) + IDLE && after < Duration::from_secs(61), "{after:?}");
        assert!(connection.read.is_empty());
        answer(&mut client, "/slow").await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_an_idle_hour_is_served_in_whatever_pieces_it_comes() {
        let (mut client, _process) = served();
        for round in 0..3 {
            for piece in GET.chunks(1 + 7 * round) {
                client.write_all(piece).await.unwrap();
                sleep(2 * IDLE).await;
            }
            answer(&mut client, "/1").await;
            sleep(LONG).await;
        }
        client.write_all(&[GET, b"GET /2 HTTP/1.1\r\nhost: cart\r\n\r\n"].concat()).await.unwrap();
        answer(&mut client, "/2").await;
        client.write_all(b"POST /3 HTTP/1.1\r\nhost: cart\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
        sleep(LONG).await;
        client.write_all(b"dy").await.unwrap();
        answer(&mut client, "/3").await;
        client.write_all(GET).await.unwrap();
        answer(&mut client, "/1").await;
    }

    #[tokio::test(start_paused = true)]
    async fn draining_ends_an_idle_connection_and_lets_a_response_come_to_its_end() {
        let (mut idle, process) = served();
        idle.write_all(GET).await.unwrap();
        answer(&mut idle, "/1").await;
        let (mut busy, server) = duplex(4096);
        let drain = process.drain();
        tokio::spawn(async move { serve(&drain, server, path).await });
        busy.write_all(b"GET /slow HTTP/1.1\r\nhost: cart\r\n\r\n").await.unwrap();
        sleep(2 * IDLE).await;
        process.trigger_drain();
        assert_eq!(timeout(Duration::from_secs(1), idle.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
        answer(&mut busy, "/slow").await;
        assert_eq!(timeout(Duration::from_secs(1), busy.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    }
}
