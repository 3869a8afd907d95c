//! What applications do with the explicit proxy.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A connection to a proxy that speaks HTTP/1.1.
pub(crate) struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    _connection: Connection,
}

struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) async fn read<B>(response: Response<B>) -> Result<Self, B::Error>
    where
        B: http_body::Body<Data = Bytes>,
    {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Self { status: parts.status, headers: parts.headers, body, trailers })
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    pub(crate) async fn connect(proxy: SocketAddr) -> Self {
        Self::over(TcpStream::connect(proxy).await.unwrap()).await
    }

    /// Over a connection that is there already, such as a tunnel.
    pub(crate) async fn over(stream: TcpStream) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = Connection(tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        }));
        Self { sender, _connection: connection }
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        Answer::read(response).await
    }

    pub(crate) async fn call(&mut self, method: Method, uri: &str, body: &str, fields: &[(&str, &str)]) -> Answer {
        self.send(request(method, uri, body, fields)).await.unwrap()
    }

    pub(crate) async fn get(&mut self, uri: &str) -> Answer {
        self.call(Method::GET, uri, "", &[]).await
    }
}

pub(crate) fn request(method: Method, uri: &str, body: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    let authority = uri.parse::<http::Uri>().unwrap().authority().map(ToString::to_string);
    if let Some(authority) = authority {
        request = request.header("host", authority);
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

/// One request on a connection of its own.
pub(crate) async fn get(proxy: SocketAddr, uri: &str) -> Answer {
    Client::connect(proxy).await.get(uri).await
}

/// Opens a tunnel by CONNECT: the status line's code, and the bare connection.
pub(crate) async fn connect(proxy: SocketAddr, authority: &str) -> (u16, TcpStream) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, stream)
}

/// Opens a tunnel by SOCKS5: the reply's code, and the bare connection.
pub(crate) async fn socks(proxy: SocketAddr, address: &[u8], port: u16) -> (u8, TcpStream) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    let request = [&[5, 1, 0], address, &port.to_be_bytes()].concat();
    stream.write_all(&request).await.unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await.unwrap();
    (reply[1], stream)
}

/// A name as SOCKS5 writes it.
pub(crate) fn socks_name(host: &str) -> Vec<u8> {
    [&[3, u8::try_from(host.len()).unwrap()], host.as_bytes()].concat()
}

/// HTTP/2 with prior knowledge over a connection.
pub(crate) async fn http2(stream: TcpStream) -> http2::SendRequest<Full<Bytes>> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}
