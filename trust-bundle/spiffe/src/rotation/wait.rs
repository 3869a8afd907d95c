//! What a rotation waits for.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::Rotation;

/// How many watchers a text spells out.
const SPELLED_OUT: usize = 8;

/// One who watches what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Watcher {
    /// The last epoch that it has applied.
    pub acknowledged: Option<u64>,
    /// When its connection ended; `None` while it lasts.
    pub away_since: Option<SystemTime>,
}

/// For what and on whom a rotation waits; at least one of the two is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Not before this time.
    pub until: Option<SystemTime>,
    /// Not before these have acknowledged (or have been away for long), by name.
    pub watchers: Vec<String>,
    /// They have had enough time: somebody should look.
    pub stalled: bool,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.stalled { "stalled, waiting" } else { "waiting" })?;
        if let Some(until) = self.until {
            let seconds = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            write!(f, " until {seconds} s after 1970")?;
        }
        if !self.watchers.is_empty() {
            let joint = if self.until.is_some() { " and" } else { "" };
            let named: Vec<_> = self.watchers.iter().take(SPELLED_OUT).map(String::as_str).collect();
            write!(f, "{joint} for {}", named.join(", "))?;
        }
        match self.watchers.len().saturating_sub(SPELLED_OUT) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl Rotation {
    /// `None` once `life` has passed.
    pub(super) fn wait_until(&self, since: SystemTime, life: Duration, now: SystemTime) -> Option<Waiting> {
        let until = since.checked_add(life);
        (passed(since, now) < life).then_some(Waiting { until, watchers: Vec::new(), stalled: false })
    }

    /// `None` once `least` has passed and whoever watches knows of `epoch`.
    pub(super) fn wait_for_all(
        &self,
        epoch: u64,
        since: SystemTime,
        least: Duration,
        now: SystemTime,
    ) -> Option<Waiting> {
        let waiting = self.wait_until(since, least, now);
        let is_behind = |watcher: &Watcher| {
            watcher.acknowledged.is_none_or(|acknowledged| acknowledged < epoch)
                && watcher.away_since.is_none_or(|since| passed(since, now) < self.pace.absence)
        };
        let behind = self.watchers.iter().filter(|(_, watcher)| is_behind(watcher));
        let watchers: Vec<_> = behind.map(|(name, _)| name.clone()).collect();
        if watchers.is_empty() {
            return waiting;
        }
        let stalled = passed(since, now) >= self.pace.stall;
        Some(Waiting { until: waiting.and_then(|waiting| waiting.until), watchers, stalled })
    }
}

/// A clock set back since then counts as no time passed.
fn passed(since: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(since).unwrap_or_default()
}
