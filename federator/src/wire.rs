//! gRPC's framing of a session, without buffers that outlive what they held.
//!
//! tonic has two buffers a stream, and keeps them for as long as the stream lives, as large as they ever were: 64 KiB after
//! a snapshot, and 32 after a hundred records were published, for each of a thousand sessions that then tell a few records
//! a minute. Here a message is encoded into as many bytes as it has, and these are let go when they are sent; what has come
//! of a request is let go when the request is whole.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use federation_api::federation::v1::federation_server::SERVICE_NAME;
use federation_api::federation::v1::session_response::Response as Message;
use federation_api::federation::v1::{SessionRequest, SessionResponse};
use federation_store::Store;
use http_body::{Body, Frame};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Request, Status};

use crate::rpc::FederationService;

/// The largest message that a client may send: a hundred records of a large cluster are a tenth of it.
const MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;
/// Before each message: a byte that says whether it is compressed, and its length.
const HEADER: usize = 5;
/// The only call.
const SESSION: &str = "Session";

/// Messages, framed, to be told in their order; an error is the stream's end.
pub(crate) type Responses = mpsc::Sender<Result<Bytes, Status>>;

/// Serves the calls of `federation.v1` on HTTP.
#[derive(Debug)]
pub(crate) struct FederationServer<S>(Arc<FederationService<S>>);

impl<S> FederationServer<S> {
    pub(crate) fn new(service: FederationService<S>) -> Self {
        Self(Arc::new(service))
    }
}

impl<S> Clone for FederationServer<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> NamedService for FederationServer<S> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<S: Store> Service<http::Request<tonic::body::Body>> for FederationServer<S> {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move {
            let method = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME));
            if method.and_then(|method| method.strip_prefix('/')) != Some(SESSION) {
                return Ok(Status::unimplemented("no such call").into_http());
            }
            let request = request.map(|body| Requests { body, part: BytesMut::new() });
            let told = match service.session(Request::from_http(request)).await {
                Ok(messages) => Told { messages, ended: false },
                Err(status) => return Ok(status.into_http()),
            };
            let mut response = http::Response::new(tonic::body::Body::new(told));
            response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
            Ok(response)
        })
    }
}

/// The requests of a session, as they come.
pub(crate) struct Requests {
    body: tonic::body::Body,
    /// What has come of the next one.
    part: BytesMut,
}

impl Requests {
    /// The next one; `None` when the client has ended the stream. Nothing is lost when this is dropped before it is ready.
    ///
    /// # Errors
    /// The connection's, or what is wrong with the request.
    pub(crate) async fn message(&mut self) -> Result<Option<SessionRequest>, Status> {
        loop {
            if let Some(request) = self.whole()? {
                return Ok(Some(request));
            }
            match poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.part.extend_from_slice(&data);
                    }
                }
                None if self.part.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a message")),
            }
        }
    }

    fn whole(&mut self) -> Result<Option<SessionRequest>, Status> {
        let Some((mut header, rest)) = self.part.split_at_checked(HEADER) else { return Ok(None) };
        if header.get_u8() != 0 {
            return Err(Status::unimplemented("compressed messages are not understood"));
        }
        let length = header.get_u32() as usize;
        if length > MAX_REQUEST_BYTES {
            let text = format!("a message of {length} bytes, {MAX_REQUEST_BYTES} are allowed");
            return Err(Status::out_of_range(text));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let request = SessionRequest::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        self.part.advance(HEADER + length);
        if self.part.is_empty() {
            self.part = BytesMut::new();
        }
        Ok(Some(request))
    }
}

/// The body of a session's response.
struct Told {
    messages: mpsc::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

impl Body for Told {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.messages.poll_recv(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// A response around one message, as it goes out.
pub(crate) fn framed(message: Message) -> Bytes {
    let response = SessionResponse { response: Some(message) };
    let length = response.encoded_len();
    let mut frame = Vec::with_capacity(HEADER + length);
    frame.put_u8(0);
    // What a message holds is limited far below this.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A vector has room for everything.
    let _ = response.encode(&mut frame);
    frame.into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::VecDeque;

    use federation_api::federation::v1::session_request::Request;
    use federation_api::federation::v1::{ClientHeartbeat, ServerHeartbeat};
    use tonic::Code;

    use super::*;

    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn requests(bytes: &[u8], piece: usize) -> Requests {
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        Requests { body: tonic::body::Body::new(Pieces(pieces)), part: BytesMut::new() }
    }

    fn request(applied_revision: u64) -> SessionRequest {
        let beat = ClientHeartbeat { applied_revision };
        SessionRequest { request: Some(Request::Heartbeat(beat)) }
    }

    fn on_the_wire(request: &SessionRequest) -> Vec<u8> {
        let length = u32::try_from(request.encoded_len()).unwrap();
        [&[0], &length.to_be_bytes()[..], &request.encode_to_vec()].concat()
    }

    #[tokio::test]
    async fn requests_are_taken_however_they_are_cut() {
        let sent = [request(1), SessionRequest::default(), request(u64::MAX)];
        let bytes = sent.iter().map(on_the_wire).collect::<Vec<_>>().concat();
        for piece in 1..=bytes.len() {
            let mut requests = requests(&bytes, piece);
            for expected in &sent {
                assert_eq!(requests.message().await.unwrap().as_ref(), Some(expected), "in pieces of {piece}");
            }
            assert_eq!(requests.message().await.unwrap(), None);
            assert_eq!(requests.part.capacity(), 0, "nothing is kept");
        }
    }

    #[tokio::test]
    async fn what_is_no_request_ends_the_session() {
        let whole = on_the_wire(&request(7));
        let long = u32::try_from(MAX_REQUEST_BYTES + 1).unwrap().to_be_bytes();
        let cases = [
            (whole[..whole.len() - 1].to_vec(), Code::Internal),
            (whole[..HEADER - 1].to_vec(), Code::Internal),
            ([&[1], &whole[1..]].concat(), Code::Unimplemented),
            ([&[0], &long[..]].concat(), Code::OutOfRange),
            ([&[0, 0, 0, 0, 1], &[0xff][..]].concat(), Code::Internal),
        ];
        for (bytes, code) in cases {
            assert_eq!(requests(&bytes, 3).message().await.unwrap_err().code(), code, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_response_goes_out_whole_and_is_followed_by_the_status() {
        let beat = ServerHeartbeat { revision: 4, time_ms: 5 };
        let (sender, messages) = mpsc::channel(2);
        sender.send(Ok(framed(Message::Heartbeat(beat)))).await.unwrap();
        sender.send(Err(Status::unavailable("drains"))).await.unwrap();
        let mut told = Told { messages, ended: false };
        let mut next = async || poll_fn(|context| Pin::new(&mut told).poll_frame(context)).await;
        let mut data = next().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((data.get_u8(), data.get_u32() as usize), (0, data.len()));
        let response = SessionResponse::decode(data).unwrap();
        assert_eq!(response.response, Some(Message::Heartbeat(beat)));
        let trailers = next().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert!(next().await.is_none());
    }
}
