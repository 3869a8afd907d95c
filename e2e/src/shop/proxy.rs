//! Calling another service through the sidecar's explicit proxy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long a proxy may take to answer CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes a proxy's answer to CONNECT may have.
const MAX_ANSWER: usize = 8 * 1024;

/// How to reach the other services.
#[derive(Debug, Clone)]
pub struct Others {
    /// The sidecar; `None`: the name is dialled directly.
    pub proxy: Option<SocketAddr>,
    /// Their namespace.
    pub namespace: String,
}

impl Others {
    /// The clusterset name and port of a service.
    #[must_use]
    pub fn authority(&self, service: &str, port: u16) -> String {
        format!("{service}.{}.svc.clusterset.local:{port}", self.namespace)
    }

    /// A byte stream to a service.
    ///
    /// # Errors
    /// The proxy cannot be reached or refuses; the error holds its status line.
    pub async fn connect(&self, service: &str, port: u16) -> io::Result<TcpStream> {
        let authority = self.authority(service, port);
        match self.proxy {
            Some(proxy) => tokio::time::timeout(CONNECT_TIMEOUT, tunnel(proxy, &authority)).await?,
            None => TcpStream::connect(authority).await,
        }
    }

    /// A gRPC channel to a service, connected when first used and again when broken.
    ///
    /// # Errors
    /// The name makes no URI.
    pub fn channel(&self, service: &'static str, port: u16) -> anyhow::Result<Channel> {
        let others = self.clone();
        let endpoint = Endpoint::from_shared(format!("http://{}", self.authority(service, port)))?;
        let connector = tower::service_fn(move |_: Uri| {
            let others = others.clone();
            async move { others.connect(service, port).await.map(TokioIo::new) }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

/// HTTP CONNECT (RFC 9110, section 9.3.6).
///
/// # Errors
/// The proxy cannot be reached, or answers anything but 200.
pub async fn tunnel(proxy: SocketAddr, authority: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the empty line belongs to the tunnel.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the proxy's answer is too long"));
        }
        answer.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(stream);
    }
    Err(io::Error::other(format!("the proxy refused {authority}: {status}")))
}
