//! Durations as people write them in configuration: `"250ms"`, `"5s"`, `"1h30m"`, `"24h"`.
//!
//! Use as `#[serde(with = "mesh_runtime::duration")]`, or [`option`] for a field that may be absent. A bare number is
//! refused: a reader cannot tell seconds from milliseconds.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// The units, largest first, with their length in nanoseconds.
const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Why a text is not a duration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// Nothing was written.
    #[error("is empty; write a duration such as \"250ms\", \"5s\" or \"24h\"")]
    Empty,
    /// A number stands without its unit.
    #[error("{0:?} has a number without a unit; write for example \"250ms\", \"5s\" or \"24h\"")]
    NoUnit(String),
    /// Something that is neither a whole number nor a known unit.
    #[error("{0:?} is not a duration; write whole numbers with a unit (ns, us, ms, s, m, h, d), for example \"1h30m\"")]
    Malformed(String),
    /// More than the type can hold.
    #[error("{0:?} is too long")]
    TooLong(String),
}

/// Reads a sequence of whole numbers, each with its unit: `"1h30m"`.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    let malformed = || DurationError::Malformed(text.to_owned());
    let too_long = || DurationError::TooLong(text.to_owned());
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            return Err(malformed());
        }
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        if unit.is_empty() {
            return Err(DurationError::NoUnit(text.to_owned()));
        }
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
        let number: u64 = number.parse().map_err(|_| too_long())?;
        total = total.checked_add(u128::from(number) * length).ok_or_else(too_long)?;
        rest = after;
    }
    let seconds = u64::try_from(total / 1_000_000_000).map_err(|_| too_long())?;
    let nanoseconds = u32::try_from(total % 1_000_000_000).map_err(|_| too_long())?;
    Ok(Duration::new(seconds, nanoseconds))
}

/// Writes a duration in the form that [`parse`] reads, exactly: `"1m30s"`, `"0s"`.
pub fn format(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, length) in UNITS {
        let count = rest / length;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
        rest %= length;
    }
    text
}

/// Reads a duration from text.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Ok(Written::deserialize(deserializer)?.0)
}

/// Writes a duration as text.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// The same for a field that may be absent: `#[serde(default, with = "mesh_runtime::duration::option")]`.
pub mod option {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, Written};

    /// Reads a duration from text; null is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Written>::deserialize(deserializer)?.map(|written| written.0))
    }

    /// Writes a duration as text, or null.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        duration.map(super::format).serialize(serializer)
    }
}

/// A duration as it stands in a document.
struct Written(Duration);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Written;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a duration with its unit, such as \"250ms\", \"5s\" or \"24h\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written, E> {
                parse(text).map(Written).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(seconds: u64, nanoseconds in 0..1_000_000_000_u32) {
            let duration = Duration::new(seconds, nanoseconds);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*|[0-9a-z]{0,40}") {
            if let Ok(duration) = parse(&text) {
                prop_assert_eq!(parse(&format(duration)), Ok(duration));
            }
        }
    }

    #[test]
    fn every_unit_is_read_and_written_back() {
        for (text, expected) in [
            ("0s", Duration::ZERO),
            ("7ns", Duration::from_nanos(7)),
            ("3us", Duration::from_micros(3)),
            ("250ms", Duration::from_millis(250)),
            ("5s", Duration::from_secs(5)),
            ("1m30s", Duration::from_secs(90)),
            ("1h", Duration::from_secs(3600)),
            ("1d", Duration::from_secs(86_400)),
            ("1d1h1m1s1ms1us1ns", Duration::new(90_061, 1_001_001)),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
            assert_eq!(format(expected), text);
        }
        assert_eq!(parse("24h").unwrap(), Duration::from_secs(86_400));
        assert_eq!(parse("1500ms").unwrap(), Duration::from_millis(1500));
    }

    #[test]
    fn what_is_not_a_duration_is_refused_with_its_reason() {
        let owned = str::to_owned;
        for (text, expected) in [
            ("", DurationError::Empty),
            ("5", DurationError::NoUnit(owned("5"))),
            ("1h5", DurationError::NoUnit(owned("1h5"))),
            ("s", DurationError::Malformed(owned("s"))),
            ("-1s", DurationError::Malformed(owned("-1s"))),
            ("1.5s", DurationError::Malformed(owned("1.5s"))),
            ("5 s", DurationError::Malformed(owned("5 s"))),
            ("5 weeks", DurationError::Malformed(owned("5 weeks"))),
            ("99999999999999999999s", DurationError::TooLong(owned("99999999999999999999s"))),
            ("18446744073709551615d", DurationError::TooLong(owned("18446744073709551615d"))),
        ] {
            assert_eq!(parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn the_longest_duration_survives_a_round_trip() {
        assert_eq!(parse(&format(Duration::MAX)).unwrap(), Duration::MAX);
    }
}
