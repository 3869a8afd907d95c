//! Unix time on the wire. Peers can write any number: conversions saturate at the year 9999, none panics.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last second of the year 9999.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

/// Milliseconds since 1970, 0 for earlier times.
pub(crate) fn milliseconds(time: SystemTime) -> i64 {
    i64::try_from(since_epoch(time).as_millis()).unwrap_or(i64::MAX)
}

/// Microseconds since 1970, 0 for earlier times.
pub(crate) fn microseconds(time: SystemTime) -> u64 {
    u64::try_from(since_epoch(time).as_micros()).unwrap_or(u64::MAX)
}

/// Whole seconds since 1970, 0 for earlier times.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    i64::try_from(since_epoch(time).as_secs()).unwrap_or(i64::MAX)
}

/// The time of so many milliseconds.
pub(crate) fn from_milliseconds(milliseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0)).min(LATEST)
}

/// The time of so many seconds.
pub(crate) fn from_seconds(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(LATEST)
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
