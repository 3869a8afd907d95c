//! The application behind every pair: HTTP/1.1 and HTTP/2 on one port; a small answer, or as many bytes as the path says.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpSocket;

/// The body of a small answer.
const SMALL: Bytes = Bytes::from_static(&[b'x'; 64]);
/// What bulk is made of.
static CHUNK: [u8; 64 * 1024] = [b'x'; 64 * 1024];
/// Connections that come at once wait here.
const BACKLOG: u32 = 4096;

pub(super) async fn serve(address: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            // A client that breaks off is the load's concern.
            let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let body = match request.uri().path().strip_prefix("/bulk/").and_then(|bytes| bytes.parse().ok()) {
        Some(bytes) => Answer::Bulk(bytes),
        None => Answer::Small(Some(SMALL)),
    };
    Ok(Response::new(body))
}

enum Answer {
    Small(Option<Bytes>),
    /// So many bytes are left.
    Bulk(u64),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Small(data) => data.take(),
            Self::Bulk(0) => None,
            Self::Bulk(left) => {
                let now = usize::try_from(*left).unwrap_or(usize::MAX).min(CHUNK.len());
                *left -= now as u64;
                Some(Bytes::from_static(&CHUNK[..now]))
            }
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Small(None) | Self::Bulk(0))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Small(data) => data.as_ref().map_or(0, |data| data.len() as u64),
            Self::Bulk(left) => *left,
        })
    }
}
