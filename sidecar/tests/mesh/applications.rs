//! Applications behind sidecars, which can be killed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cluster::LOOPBACK;

/// A running application; dropping it kills it: its port refuses, its connections break.
pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Application {
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, Arc<AtomicUsize>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let counter = Arc::clone(&requests);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&counter)));
            }
        });
        Self { address, requests, tasks }
    }

    /// HTTP/1.1: answers with its name, the method, the path, the body and the request's fields as `echo-…`.
    pub(crate) async fn http1(name: &'static str) -> Self {
        Self::start(move |stream, requests| async move {
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::SeqCst);
                echo(name, request)
            });
            // A client that goes away is no concern of the test's.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        })
        .await
    }

    /// HTTP/1.1 that agrees to every upgrade, then says the protocol and echoes; `/ignored` and `/refused` do not.
    pub(crate) async fn upgrading() -> Self {
        Self::start(move |stream, requests| async move {
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::SeqCst);
                upgrade(request)
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        })
        .await
    }

    /// HTTP/2 with prior knowledge: echoes frames as they come, with `grpc-status` in the trailers.
    pub(crate) async fn http2(name: &'static str) -> Self {
        Self::start(move |stream, requests| async move {
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::SeqCst);
                grpc(name, request)
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        })
        .await
    }

    /// HTTP/1.1 that breaks off every other answer in the middle of its body, and then the connection.
    pub(crate) async fn breaking_off(name: &'static str) -> Self {
        Self::start(move |mut stream, requests| async move {
            let turn = requests.fetch_add(1, Ordering::SeqCst);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let body = format!("{name} whole");
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let sent = if turn % 2 == 0 { answer.len() - 4 } else { answer.len() };
            stream.write_all(&answer.as_bytes()[..sent]).await.unwrap();
        })
        .await
    }

    /// HTTP/1.1 that takes this long for every request.
    pub(crate) async fn taking(time: std::time::Duration) -> Self {
        Self::start(move |stream, requests| async move {
            let service = service_fn(move |_request| {
                requests.fetch_add(1, Ordering::SeqCst);
                async move {
                    tokio::time::sleep(time).await;
                    Ok::<_, Infallible>(Response::new(full("done")))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        })
        .await
    }

    /// HTTP/1.1 that takes 2 ms for every request under way; `requests` is how many these are.
    pub(crate) async fn crowded() -> Self {
        Self::start(move |stream, requests| async move {
            let service = service_fn(move |_request| {
                let requests = Arc::clone(&requests);
                async move {
                    let under_way = requests.fetch_add(1, Ordering::SeqCst) + 1;
                    let work = std::time::Duration::from_millis(2) * u32::try_from(under_way).unwrap();
                    tokio::time::sleep(work).await;
                    requests.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, Infallible>(Response::new(full("done")))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        })
        .await
    }

    /// Sends its name first, then echoes until the other side has ended, then says how many bytes came.
    pub(crate) async fn echo(name: &'static str) -> Self {
        Self::start(move |mut stream, requests| async move {
            requests.fetch_add(1, Ordering::SeqCst);
            let mut total = 0;
            let mut buffer = vec![0; 16 * 1024];
            stream.write_all(name.as_bytes()).await.unwrap();
            while let Ok(read) = stream.read(&mut buffer).await {
                if read == 0 {
                    break;
                }
                total += read;
                if stream.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
            let _ = stream.write_all(format!(";{total}").as_bytes()).await;
        })
        .await
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

async fn echo(name: &'static str, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    if parts.uri.path() == "/slow" {
        tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    }
    let status = match parts.uri.path() {
        "/unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        "/missing" => StatusCode::NOT_FOUND,
        _ => StatusCode::OK,
    };
    let text = format!("{name} {} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    for (field, value) in &parts.headers {
        let echoed: http::HeaderName = format!("echo-{field}").parse().unwrap();
        response.headers_mut().append(echoed, value.clone());
    }
    if parts.uri.path() == "/large-fields" {
        response.headers_mut().insert("large", HeaderValue::from_bytes(&vec![b'x'; 100 * 1024]).unwrap());
    }
    // What an application must not be able to say.
    response.headers_mut().insert("isthmus-unprocessed", HeaderValue::from_static("true"));
    Ok(response)
}

async fn upgrade(mut request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let field = |name: &str| request.headers().get(name).cloned();
    let (protocol, key) = (field("upgrade").unwrap(), field("sec-websocket-key"));
    assert_eq!(request.method(), http::Method::GET);
    let mut response = Response::new(full(""));
    match request.uri().path() {
        "/ignored" => return Ok(response),
        "/refused" => {
            *response.status_mut() = StatusCode::FORBIDDEN;
            return Ok(response);
        }
        _ => *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS,
    }
    let fields = response.headers_mut();
    fields.insert("connection", HeaderValue::from_static("Upgrade"));
    fields.insert("upgrade", protocol.clone());
    fields.extend(key.map(|key| ("sec-websocket-accept".parse::<http::HeaderName>().unwrap(), key)));
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgraded.await.unwrap());
        stream.write_all(protocol.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = tokio::io::split(stream);
        tokio::io::copy(&mut reading, &mut writing).await.unwrap();
        writing.shutdown().await.unwrap();
    });
    Ok(response)
}

async fn grpc(name: &'static str, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
    let te = parts.headers.get("te").cloned();
    let frames = futures_util::stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.frame().await {
            Some(Ok(frame)) => Some((Ok(frame), Some(body))),
            Some(Err(error)) => Some((Err(error), None)),
            None => {
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
                Some((Ok(Frame::trailers(trailers)), None))
            }
        }
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(Box::pin(frames) as SyncFrames)));
    let fields = response.headers_mut();
    fields.insert("content-type", HeaderValue::from_static("application/grpc"));
    fields.insert("echo-name", HeaderValue::from_static(name));
    fields.insert("echo-authority", HeaderValue::try_from(authority).unwrap());
    fields.extend(te.map(|te| ("echo-te".parse::<http::HeaderName>().unwrap(), te)));
    Ok(response)
}

type SyncFrames = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send + Sync>>;
