//! A plain HTTP/1.1 client for the lab: one connection a request, so that nothing is hidden by a pool.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(15);

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body as text.
    pub body: String,
}

/// `GET path` from an address.
///
/// # Errors
/// Connecting, the protocol, or the time.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let request = Request::get(path).header("host", address.to_string()).body(Full::default())?;
    within(async { exchange(TcpStream::connect(address).await?, request).await }).await
}

/// A request through an explicit proxy: `url` in absolute form (RFC 9112, section 3.2.2).
///
/// # Errors
/// As [`get`].
pub async fn by_proxy(proxy: SocketAddr, method: Method, url: &str, headers: &HeaderMap) -> anyhow::Result<Answer> {
    let authority = url.parse::<http::Uri>()?.authority().context("the URL has no host")?.to_string();
    let mut request = Request::builder().method(method).uri(url).header("host", authority).body(Full::default())?;
    request.headers_mut().extend(headers.clone());
    within(async { exchange(TcpStream::connect(proxy).await?, request).await }).await
}

/// `POST path` with JSON over a Unix socket; the answer is JSON too.
///
/// # Errors
/// As [`get`], or a status that is no success.
pub async fn post_json(socket: &Path, path: &str, body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
    let body = Full::from(body.to_string());
    let request = Request::post(path).header("host", "admin").header("content-type", "application/json").body(body)?;
    let answer = within(async { exchange(UnixStream::connect(socket).await?, request).await }).await?;
    anyhow::ensure!(answer.status.is_success(), "{path}: {}: {}", answer.status, answer.body);
    serde_json::from_str(&answer.body).with_context(|| answer.body.clone())
}

async fn within<T>(exchange: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(REQUEST, exchange).await.context("no answer in time")?
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok(Answer { status: head.status, headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() })
}
