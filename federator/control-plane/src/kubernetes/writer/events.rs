//! Events on ServiceExports: where a person would look when an export does not do what it should.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

/// The longest note that the API takes, in bytes.
const NOTE: usize = 1024;

/// What is worth an event, when conditions change from `before` to `after`.
pub(super) fn of(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    let changed = after.iter().filter_map(|condition| {
        let known = before.iter().find(|known| known.type_ == condition.type_);
        let status = known.map(|known| known.status.as_str());
        if status == Some(condition.status.as_str()) && known.is_some_and(|known| known.reason == condition.reason) {
            return None;
        }
        let (type_, reason) = match (condition.type_.as_str(), condition.status.as_str()) {
            ("Valid", "False") | ("Ready", "False") if condition.reason != "Pending" => {
                (EventType::Warning, condition.reason.as_str())
            }
            ("Conflict", "True") => (EventType::Warning, "Conflict"),
            ("Conflict", "False") if status == Some("True") => (EventType::Normal, "NoConflicts"),
            ("Valid", "True") if status == Some("False") => (EventType::Normal, "Valid"),
            ("Ready", "True") => (EventType::Normal, "Exported"),
            _ => return None,
        };
        let mut note = match reason {
            "Conflict" => format!("{}: {}", condition.reason, condition.message),
            _ => condition.message.clone(),
        };
        let end = (0..=NOTE.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
        note.truncate(end);
        Some(Event { type_, reason: reason.to_owned(), note: Some(note), action: "Export".to_owned(), secondary: None })
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: "é".repeat(1000),
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
            observed_generation: None,
        }
    }

    #[test]
    fn only_what_changes_and_matters_is_told() {
        let reasons = |before: &[Condition], after: &[Condition]| {
            of(before, after).iter().map(|event| event.reason.clone()).collect::<Vec<_>>()
        };
        let good = [condition("Valid", "True", "Valid"), condition("Ready", "True", "Ready")];
        assert_eq!(reasons(&[], &good), ["Exported"]);
        assert!(reasons(&good, &good).is_empty());
        let pending = [condition("Ready", "False", "Pending")];
        assert!(reasons(&[], &pending).is_empty());
        let bad = [condition("Valid", "False", "NoService"), condition("Conflict", "True", "PortConflict")];
        assert_eq!(reasons(&good, &bad), ["NoService", "Conflict"]);
        assert!(of(&[], &bad).iter().all(|event| event.note.as_ref().is_some_and(|note| note.len() <= NOTE)));
        assert_eq!(reasons(&bad, &[condition("Conflict", "False", "NoConflicts")]), ["NoConflicts"]);
    }
}
