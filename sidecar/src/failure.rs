//! What a failed HTTP/2 request says about whether it was acted upon.

use std::error::Error;

/// Why a request got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The other side is going away or refused the stream, and said that it did not act on it (RFC 9113, sections 6.8 and 8.7).
    GoneAway,
    /// The session was closed before the request was written.
    NeverSent,
    /// The stream or session broke; the request may have been acted upon.
    Broken,
    /// The local application's own body failed.
    Caller,
}

/// Judges an error; `returned` says that the request came back unsent.
pub(crate) fn classify(error: &hyper::Error, returned: bool) -> Failure {
    if returned {
        return Failure::NeverSent;
    }
    if error.is_user() && !error.is_canceled() {
        return Failure::Caller;
    }
    match http2(error) {
        Some(error) if error.is_remote() && error.is_go_away() => Failure::GoneAway,
        Some(error) if error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM) => Failure::GoneAway,
        _ => Failure::Broken,
    }
}

/// The error with its causes, for a person.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn http2(error: &hyper::Error) -> Option<&h2::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}
