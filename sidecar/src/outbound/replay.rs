//! Request bodies that can be sent more than once.
//!
//! ```text
//!   caller's body ──► Replay ──► attempt 1 (dropped, or told that it was superseded)
//!                      │  keeps up to 64 KiB
//!                      └──────► attempt 2: what was kept, then the rest of the caller's body
//! ```

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::failure;

/// What is kept for another attempt; a longer body is sent once.
pub(crate) const REPLAY_LIMIT: usize = 64 * 1024;

/// Frames kept at most: a body of tiny frames costs more in bookkeeping than in bytes.
const FRAME_LIMIT: usize = 1024;

/// Errors of bodies, as hyper takes them.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// An attempt's body was polled after the next attempt had begun.
#[derive(Debug, thiserror::Error)]
#[error("superseded by another attempt")]
struct Superseded;

/// A request's body, for as many attempts as it allows.
pub(crate) enum Replay<B> {
    /// Nothing to send.
    Empty,
    /// Sent, and kept, as the attempts ask for it.
    Shared(Arc<Mutex<Shared<B>>>),
}

/// The body of one attempt.
pub(crate) enum RequestBody<B> {
    /// Nothing to send.
    Empty,
    /// Reads through the shared body.
    Attempt {
        /// The body all attempts share.
        shared: Arc<Mutex<Shared<B>>>,
        /// Which attempt this is.
        number: u32,
        /// The next kept frame to send.
        next: usize,
    },
}

/// What the attempts share.
pub(crate) struct Shared<B> {
    body: B,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More was read than is kept.
    lost: bool,
    /// How the caller's body failed.
    failure: Option<String>,
    /// The newest attempt; older ones may not read any more.
    attempt: u32,
}

impl<B: Body<Data = Bytes> + Unpin> Replay<B> {
    /// Takes the caller's body.
    pub(crate) fn new(body: B) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Shared(Arc::new(Mutex::new(Shared {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            ended: false,
            lost: false,
            failure: None,
            attempt: 0,
        })))
    }

    /// Whether another attempt can send all of it.
    pub(crate) fn replayable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Shared(shared) => !lock(shared).lost,
        }
    }

    /// How the caller's own body failed, if it did: no fault of anybody who was sent it.
    pub(crate) fn failure(&self) -> Option<String> {
        match self {
            Self::Empty => None,
            Self::Shared(shared) => lock(shared).failure.clone(),
        }
    }

    /// The body for the next attempt; those given before end with an error.
    pub(crate) fn attempt(&self) -> RequestBody<B> {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Shared(shared) => {
                let number = {
                    let mut state = lock(shared);
                    state.attempt += 1;
                    state.attempt
                };
                RequestBody::Attempt { shared: Arc::clone(shared), number, next: 0 }
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Shared<B> {
    /// Reads the caller's next frame and keeps it if it fits.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            self.ended = true;
            return Poll::Ready(None);
        };
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            if self.lost || self.kept_bytes + data.len() > REPLAY_LIMIT || self.kept.len() == FRAME_LIMIT {
                self.lost = true;
                self.kept = Vec::new();
            } else {
                self.kept_bytes += data.len();
                self.kept.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.ended = true;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn unread_hint(&self, sent: usize) -> SizeHint {
        let kept: u64 = self.kept.iter().skip(sent).map(|data| data.len() as u64).sum();
        if self.ended {
            return SizeHint::with_exact(kept);
        }
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(kept));
        }
        hint.set_lower(hint.lower().saturating_add(kept));
        hint
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for RequestBody<B>
where
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self::Attempt { shared, number, next } = &mut *self else { return Poll::Ready(None) };
        let mut state = lock(shared);
        if state.attempt != *number {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if let Some(data) = state.kept.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if state.ended {
            // The kept trailers count as one frame more.
            let trailers = if *next == state.kept.len() { state.trailers.clone() } else { None };
            *next = state.kept.len() + 1;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(state.poll_next(context));
        let frame = match frame {
            Some(Err(error)) => {
                let error = error.into();
                state.lost = true;
                state.failure = Some(failure::describe(&*error));
                return Poll::Ready(Some(Err(error)));
            }
            Some(Ok(frame)) => Some(Ok(frame)),
            None => None,
        };
        *next = if state.ended && state.trailers.is_some() { state.kept.len() + 1 } else { state.kept.len() };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Attempt { shared, next, .. } => {
                let state = lock(shared);
                *next >= state.kept.len()
                    && (state.ended && (state.trailers.is_none() || *next > state.kept.len())
                        || !state.ended && state.body.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Attempt { shared, next, .. } => lock(shared).unread_hint(*next),
        }
    }
}

/// Held while one frame is polled, never across an await.
fn lock<B>(shared: &Mutex<Shared<B>>) -> MutexGuard<'_, Shared<B>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    fn frames(sizes: &[usize], trailers: bool) -> impl Body<Data = Bytes, Error = BodyError> + Unpin {
        let mut frames: Vec<Result<Frame<Bytes>, BodyError>> =
            sizes.iter().map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; *size])))).collect();
        if trailers {
            frames.push(Ok(Frame::trailers(HeaderMap::from_iter([(http::header::ETAG, "e".parse().unwrap())]))));
        }
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_sent_again_with_its_trailers() {
        let replay = Replay::new(frames(&[10, 20, 30], true));
        let mut first = replay.attempt();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap().len(), 10);
        for _ in 0..2 {
            let whole = replay.attempt().collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()[http::header::ETAG], "e");
            assert_eq!(whole.to_bytes().len(), 60);
            assert!(replay.replayable());
        }
    }

    #[tokio::test]
    async fn a_superseded_attempt_takes_nothing_from_the_next() {
        let replay = Replay::new(frames(&[10, 20], false));
        let mut first = replay.attempt();
        let second = replay.attempt();
        assert!(first.frame().await.unwrap().unwrap_err().is::<Superseded>());
        assert_eq!(second.collect().await.unwrap().to_bytes().len(), 30);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_sent_whole_once() {
        let replay = Replay::new(frames(&[REPLAY_LIMIT, 1, 5], false));
        assert!(replay.replayable());
        let whole = replay.attempt().collect().await.unwrap();
        assert_eq!(whole.to_bytes().len(), REPLAY_LIMIT + 6);
        assert!(!replay.replayable());
    }

    #[tokio::test]
    async fn lengths_are_known_when_the_callers_is() {
        let replay = Replay::new(Full::new(Bytes::from_static(b"12345")));
        let mut first = replay.attempt();
        assert_eq!(first.size_hint().exact(), Some(5));
        assert!(first.frame().await.unwrap().is_ok());
        assert!(first.is_end_stream());
        assert_eq!(replay.attempt().size_hint().exact(), Some(5));
        assert!(matches!(Replay::new(Full::new(Bytes::new())), Replay::Empty));
    }
}
