//! Spans of time as people read them.

use std::time::Duration;

use jiff::Timestamp;

/// Two units at most: `850ms`, `12s`, `3m05s`, `4h10m`, `12d`.
pub(crate) fn brief(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 if span.is_zero() => "0s".to_owned(),
        0 if span.as_millis() == 0 => "<1ms".to_owned(),
        0 => format!("{}ms", span.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => join(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => join(seconds / 3_600, "h", seconds / 60 % 60, "m"),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A round trip: `0.42ms`, `8.3ms`, `120ms`, `1.20s`.
pub(crate) fn round_trip(span: Duration) -> String {
    let milliseconds = span.as_secs_f64() * 1_000.0;
    match milliseconds {
        ..1.0 => format!("{milliseconds:.2}ms"),
        ..10.0 => format!("{milliseconds:.1}ms"),
        ..1_000.0 => format!("{milliseconds:.0}ms"),
        _ => format!("{:.2}s", milliseconds / 1_000.0),
    }
}

/// A time without its fraction.
pub(crate) fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Milliseconds since 1970 as the services write them, 0 for none.
pub(crate) fn at_millisecond(milliseconds: i64) -> Option<Timestamp> {
    (milliseconds != 0).then(|| Timestamp::from_millisecond(milliseconds).ok()).flatten()
}

fn join(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small:02}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_brief() {
        let table = [
            (0, "0s"),
            (12, "12s"),
            (60, "1m"),
            (185, "3m05s"),
            (3_600, "1h"),
            (15_000, "4h10m"),
            (86_400 * 12 + 5, "12d"),
        ];
        for (seconds, text) in table {
            assert_eq!(brief(Duration::from_secs(seconds)), text);
        }
        assert_eq!(brief(Duration::from_millis(850)), "850ms");
        assert_eq!(brief(Duration::from_micros(3)), "<1ms");
    }

    #[test]
    fn round_trips_keep_two_digits() {
        let table = [(420, "0.42ms"), (8_310, "8.3ms"), (120_400, "120ms"), (1_200_000, "1.20s")];
        for (microseconds, text) in table {
            assert_eq!(round_trip(Duration::from_micros(microseconds)), text);
        }
    }
}
