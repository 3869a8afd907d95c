//! Responses to the local application.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Collected};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use crate::session::pool::Lease;
use crate::telemetry::Access;

/// What lives as long as a response's body.
pub(crate) struct InFlight {
    _lease: Lease,
    _room: Option<OwnedSemaphorePermit>,
    access: Box<Access>,
}

impl InFlight {
    /// Keeps the session's place, the access event, and the request's room until the body has ended.
    pub(crate) fn new(lease: Lease, access: Box<Access>, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { _lease: lease, _room: room, access }
    }
}

/// A response to a request that may be repeated is read to its end before the caller is told of it, when it has at most
/// so many bytes and says so: it then breaks before it has begun.
const READ_WHOLE: u64 = 16 * 1024;

/// A response's body as it came from the other side.
pub(crate) enum Received {
    /// As it comes.
    Streaming(Incoming),
    /// Read to its end, with its trailers.
    Whole(Box<Collected<Bytes>>),
}

impl Received {
    /// Reads a small body to its end when `repeatable`; any other one streams.
    ///
    /// # Errors
    /// The body broke.
    pub(crate) async fn read(body: Incoming, repeatable: bool) -> Result<Self, hyper::Error> {
        let small = body.size_hint().exact().is_some_and(|length| length <= READ_WHOLE);
        if !repeatable || !small || body.is_end_stream() {
            return Ok(Self::Streaming(body));
        }
        body.collect().await.map(Box::new).map(Self::Whole)
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Streaming(body) => Pin::new(body).poll_frame(context),
            Self::Whole(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streaming(body) => body.is_end_stream(),
            Self::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streaming(body) => body.size_hint(),
            Self::Whole(body) => body.size_hint(),
        }
    }
}

/// A response's body.
pub(crate) enum ResponseBody {
    /// Made here.
    Own(Option<Bytes>),
    /// From the other side, as it comes; with its access event.
    Stream(Received, InFlight),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Own(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Stream(body, in_flight) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                match &frame {
                    None => in_flight.access.end = "complete",
                    Some(Err(_)) => in_flight.access.end = "broken",
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            in_flight.access.bytes.1 += data.len() as u64;
                        }
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(body, _) => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body that says that it has ended is not always polled to its end.
        if let Self::Stream(body, in_flight) = self
            && in_flight.access.end == "unfinished"
            && body.is_end_stream()
        {
            in_flight.access.end = "complete";
        }
    }
}
