//! How often denials are logged: whoever is refused may try again as often as it likes, and must not fill a disk.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one [`WINDOW`], over all callers.
const LINES: u32 = 10;

const WINDOW: Duration = Duration::from_secs(1);

/// Counts the lines. What is not logged is counted all the same, by the metric and by the next line.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    since: Option<Instant>,
    lines: u32,
    unsaid: u64,
}

impl Denials {
    /// Whether to log this one, and if so how many were not since the last line.
    pub(crate) fn say(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (said.since, said.lines) = (Some(now), 0);
        }
        if said.lines >= LINES {
            said.unsaid += 1;
            return None;
        }
        said.lines += 1;
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_denials_is_some_lines_and_a_number() {
        let denials = Denials::default();
        let now = Instant::now();
        let said: Vec<_> = (0..1000).map(|_| denials.say(now)).collect();
        assert_eq!(said.iter().flatten().count(), 10);
        assert_eq!(denials.say(now + WINDOW), Some(990));
        assert_eq!(denials.say(now + WINDOW), Some(0));
    }
}
