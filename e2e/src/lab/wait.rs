//! Waiting for a condition, with a deadline and never for a fixed time.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// Waits until `look` returns a value; its last error is told when the deadline passes.
///
/// # Errors
/// The deadline passed.
pub async fn until<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > deadline => bail!("{what}: not within {deadline:?}: {error:#}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
