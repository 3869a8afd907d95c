//! What ServiceImports and conditions are to be.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use federation_resources::mcs::{EndpointSliceObjects, ImportCluster, ServiceImport, ServiceImportStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as ApiCondition, Time};

use crate::conditions::{self, Condition};
use crate::import_files::import_spec;
use crate::kubernetes::MANAGED_BY;
use crate::snapshot::ServiceView;

/// Tells which labels and annotations came from exports, so that those that went are noticed.
pub(super) const EXPORTED: &str = "isthmus.dev/exported";

/// The import's object, without its status.
pub(super) fn import(view: &ServiceView) -> ServiceImport {
    let import = &view.import;
    let mut object = ServiceImport::new(import.service.name.as_str(), import_spec(import, view));
    object.metadata.namespace = Some(import.service.namespace.to_string());
    let valid = |(name, value): &(&String, &String)| is_qualified(name) && is_label_value(value);
    let labels = import.labels.iter().filter(valid).map(|(name, value)| (name.clone(), value.clone()));
    let mut labels: BTreeMap<_, _> = labels.collect();
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let annotations = import.annotations.iter().filter(|(name, _)| is_qualified(name));
    let mut annotations: BTreeMap<_, _> = annotations.map(|(name, value)| (name.clone(), value.clone())).collect();
    let hash = digest(&SHA256, format!("{labels:?}{annotations:?}").as_bytes());
    let hash: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    annotations.insert(EXPORTED.to_owned(), hash);
    object.metadata.labels = Some(labels);
    object.metadata.annotations = Some(annotations);
    object
}

/// Whether an import that is there says what is wanted, and is ours.
pub(super) fn import_is(there: &ServiceImport, wanted: &ServiceImport) -> bool {
    let within = |wanted: &Option<BTreeMap<String, String>>, there: &Option<BTreeMap<String, String>>| {
        let there = there.as_ref();
        wanted.iter().flatten().all(|(name, value)| there.and_then(|there| there.get(name)) == Some(value))
    };
    there.spec == wanted.spec
        && within(&wanted.metadata.labels, &there.metadata.labels)
        && within(&wanted.metadata.annotations, &there.metadata.annotations)
}

/// The import's status; conditions that stay keep their times.
pub(super) fn import_status(
    view: &ServiceView,
    there: Option<&ServiceImportStatus>,
    slices: bool,
    now: SystemTime,
) -> ServiceImportStatus {
    let ready = conditions::of_import(view.without_vip.as_deref());
    let known = there.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let clusters = view.import.clusters.iter().map(|cluster| ImportCluster { cluster: cluster.to_string() });
    ServiceImportStatus {
        clusters: clusters.collect(),
        conditions: vec![condition(&ready, known, None, now)],
        endpoint_slice_objects: Some(if slices { EndpointSliceObjects::Present } else { EndpointSliceObjects::Absent }),
    }
}

/// A condition as the API has it; with the time of the one that is there if its status stays.
pub(super) fn condition(
    condition: &Condition,
    there: &[ApiCondition],
    generation: Option<i64>,
    now: SystemTime,
) -> ApiCondition {
    let same = there.iter().find(|known| known.type_ == condition.kind && known.status == condition.status);
    ApiCondition {
        type_: condition.kind.to_owned(),
        status: condition.status.to_owned(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_time: same.map_or_else(|| time(now), |known| known.last_transition_time.clone()),
        observed_generation: generation,
    }
}

/// An export that was confirmed stays so while the next word on it is awaited, as after every restart: the federation has
/// its record still.
pub(super) fn keep_confirmed(conditions: &mut [ApiCondition], there: &[ApiCondition]) {
    let confirmed = there.iter().find(|known| known.type_ == "Ready" && known.status == "True");
    let awaited = |condition: &&mut ApiCondition| condition.type_ == "Ready" && condition.reason == "Pending";
    if let (Some(confirmed), Some(ready)) = (confirmed, conditions.iter_mut().find(awaited)) {
        *ready = confirmed.clone();
    }
}

/// To whole seconds, as the API has times.
pub(super) fn time(at: SystemTime) -> Time {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    Time(time.unwrap_or_default())
}

/// A qualified name: an optional DNS prefix, then at most 63 of `[A-Za-z0-9._-]` between alphanumerics. What a peer exports
/// must not make the API refuse the import.
fn is_qualified(name: &str) -> bool {
    let (prefix, name) = name.split_once('/').map_or((None, name), |(prefix, name)| (Some(prefix), name));
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        label.bytes().next().is_some_and(plain)
            && label.bytes().last().is_some_and(plain)
            && label.bytes().all(|byte| plain(byte) || byte == b'-')
    };
    prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(label))
        && !name.is_empty()
        && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    value.len() <= 63
        && ends(value.bytes().next())
        && ends(value.bytes().last())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_the_api_would_refuse_are_known() {
        for name in ["a", "app", "example.com/app", "a.b-c_d", "x-y.z/A1"] {
            assert!(is_qualified(name), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", "/a", "a/", "-a", "a b", "Ex.com/a", "a/b/c", "ex..com/a", long.as_str()] {
            assert!(!is_qualified(name), "{name}");
        }
        assert!(is_label_value("") && is_label_value("true") && !is_label_value("a b") && !is_label_value("-"));
    }

    #[test]
    fn a_restart_takes_no_confirmation_back() {
        let is = |status: &str, reason: &str| ApiCondition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            last_transition_time: time(SystemTime::UNIX_EPOCH),
            observed_generation: None,
        };
        let mut awaited = [is("False", "Pending")];
        keep_confirmed(&mut awaited, &[]);
        assert_eq!(awaited, [is("False", "Pending")]);
        keep_confirmed(&mut awaited, &[is("True", "Ready")]);
        assert_eq!(awaited, [is("True", "Ready")]);
        let mut refused = [is("False", "Failed")];
        keep_confirmed(&mut refused, &[is("True", "Ready")]);
        assert_eq!(refused, [is("False", "Failed")]);
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let ready = conditions::of_import(None);
        let first = condition(&ready, &[], None, at(1));
        let second = condition(&ready, std::slice::from_ref(&first), Some(2), at(9));
        assert_eq!(second.last_transition_time, first.last_transition_time);
        let lost = conditions::of_import(Some("no free address"));
        assert_eq!(condition(&lost, &[first], None, at(9)).last_transition_time, time(at(9)));
    }
}
