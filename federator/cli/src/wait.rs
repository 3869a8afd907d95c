//! Waiting for an effect: ask again until it is there, it can no longer come, or the deadline has passed.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::Failure;

/// Between two questions. A question is a request over a Unix socket to a process of the same host.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How far it has come.
pub(crate) enum Progress<T> {
    /// It is there.
    Done(T),
    /// Not yet; what is missing.
    Waiting(String),
}

/// Asks until the answer is [`Progress::Done`].
pub(crate) async fn until<T, F>(what: &str, patience: Duration, mut ask: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<Progress<T>, Failure>>,
{
    let deadline = Instant::now() + patience;
    loop {
        let last = match ask().await? {
            Progress::Done(value) => return Ok(value),
            Progress::Waiting(last) => last,
        };
        if Instant::now() >= deadline {
            return Err(Failure::Deadline { what: what.to_owned(), after: patience, last });
        }
        sleep(POLL_INTERVAL.min(deadline - Instant::now())).await;
    }
}
