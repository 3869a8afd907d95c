//! Responses to the local application.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::session::pool::Lease;
use crate::telemetry::Access;

/// What lives as long as a response's body.
pub(crate) struct InFlight {
    _lease: Lease,
    access: Box<Access>,
}

impl InFlight {
    /// Keeps the session's place and the access event until the body has ended.
    pub(crate) fn new(lease: Lease, access: Box<Access>) -> Self {
        Self { _lease: lease, access }
    }
}

/// A response's body.
pub(crate) enum ResponseBody {
    /// Made here.
    Own(Option<Bytes>),
    /// From the other side, as it comes; with its access event.
    Stream(Incoming, InFlight),
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
