//! What the state looks like in JSON. Ages are milliseconds at the moment of the answer; what is not known is `null`.

use std::time::SystemTime;

use federation::{ClusterName, Gateway, ZoneCapacity};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Admin;
use crate::conditions::Condition;
use crate::probe::{Depth, Measurement};
use crate::proxies::{Kind, ProxyStatus};
use crate::snapshot::{ClusterStatus, ExporterView, LinkStatus, Snapshot, Standing};

/// Problems that one answer spells out.
const MAX_PROBLEMS: usize = 100;

/// `GET /v1/status`
pub(super) fn status(admin: &Admin) -> Value {
    let snapshot = admin.snapshots.borrow().clone();
    let config = &admin.config;
    let problem = |problem: &federation_resources::Problem| {
        json!({
            "file": problem.file,
            "line": problem.line,
            "field": problem.field,
            "what": problem.what,
            "text": problem.to_string(),
        })
    };
    json!({
        "cluster": config.cluster,
        "federation": config.federation,
        "trustDomain": config.trust_domain_name(),
        "joined": snapshot.generation.is_some(),
        "generation": snapshot.generation,
        "standing": standing(&snapshot),
        "leaving": snapshot.leaving,
        "leaveProblem": admin.plane.leave_problem(),
        "authority": authority(admin, &snapshot),
        "memberCertificate": member_certificate(admin),
        "foreignRefused": foreign_refused(&snapshot),
        "rotations": admin.rotations.status(),
        "synced": snapshot.synced,
        "waitingFor": admin.readiness.waiting_for(),
        "dns": admin.dns,
        "federator": link(&snapshot.federator),
        "trustBundle": link(&snapshot.trust_bundle),
        "exports": snapshot.exports.len(),
        "imports": snapshot.services.len(),
        "namespaces": *snapshot.namespaces,
        "gateways": snapshot.gateways.iter().map(gateway).collect::<Vec<_>>(),
        "proxies": admin.proxies.connected().iter().map(proxy).collect::<Vec<_>>(),
        "clusters": cluster_list(admin, &snapshot),
        "manifests": {
            "problems": snapshot.source.problems.iter().take(MAX_PROBLEMS).map(problem).collect::<Vec<_>>(),
            "problemCount": snapshot.source.problems.len(),
            "passedOver": snapshot.source.passed_over,
        },
    })
}

/// `GET /v1/clusters`
pub(super) fn clusters(admin: &Admin) -> Value {
    let snapshot = admin.snapshots.borrow().clone();
    json!({ "clusters": cluster_list(admin, &snapshot) })
}

/// `GET /v1/exports`
pub(super) fn exports(admin: &Admin) -> Value {
    let snapshot = admin.snapshots.borrow().clone();
    let export = |(id, view): (&federation::ServiceId, &std::sync::Arc<crate::snapshot::ExportView>)| {
        json!({
            "namespace": id.namespace,
            "name": id.name,
            "host": id.host().to_string(),
            "createdAt": timestamp(view.created),
            "conditions": view.conditions.iter().map(condition).collect::<Vec<_>>(),
            "zones": zones(&view.zones),
            "endpoints": view.endpoints,
            "ready": view.ready,
            "withoutSidecar": view.without_sidecar,
            "serviceAccounts": view.service_accounts,
        })
    };
    json!({ "exports": snapshot.exports.iter().map(export).collect::<Vec<_>>() })
}

/// `GET /v1/imports`
pub(super) fn imports(admin: &Admin) -> Value {
    let snapshot = admin.snapshots.borrow().clone();
    let import = |view: &std::sync::Arc<crate::snapshot::ServiceView>| {
        let import = &view.import;
        let port = |port: &federation::merge::ImportPort| {
            json!({
                "name": port.port.name,
                "port": port.port.port,
                "protocol": port.port.protocol,
                "appProtocol": port.port.app_protocol,
                "clusters": port.clusters,
            })
        };
        json!({
            "namespace": import.service.namespace,
            "name": import.service.name,
            "host": import.service.host().to_string(),
            "type": import.service_type,
            "ips": view.vips,
            "endpoints": view.stand_ins().map(stand_in).collect::<Vec<_>>(),
            "ports": import.ports.iter().map(port).collect::<Vec<_>>(),
            "clusters": view.clusters.iter().map(exporter).collect::<Vec<_>>(),
            "conflicts": view.conflicts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "details": view.details,
        })
    };
    json!({ "imports": snapshot.services.values().map(import).collect::<Vec<_>>() })
}

/// Another cluster's endpoint of a headless service.
fn stand_in((host, endpoint): (federation::ServiceHost, &federation::HeadlessEndpoint)) -> Value {
    json!({ "host": host.to_string(), "ips": endpoint.addresses, "ready": endpoint.ready })
}

fn exporter(view: &ExporterView) -> Value {
    json!({
        "cluster": view.cluster,
        "local": view.local,
        "trustDomain": view.trust_domain,
        "identities": view.identities,
        "ports": view.ports,
        "zones": zones(&view.zones),
        "capacity": view.zones.iter().map(|zone| zone.total).fold(0, u32::saturating_add),
        "ready": view.zones.iter().map(|zone| zone.ready).fold(0, u32::saturating_add),
        "suspect": view.suspect,
        "bundle": view.trusted,
        "roundTripUs": view.round_trip.map(|time| micros(time.as_micros())),
    })
}

fn cluster_list(admin: &Admin, snapshot: &Snapshot) -> Vec<Value> {
    snapshot.clusters.iter().map(|(name, status)| cluster(admin, name, status)).collect()
}

fn cluster(admin: &Admin, name: &ClusterName, status: &ClusterStatus) -> Value {
    let measured = |own: &Gateway| {
        let mut value = gateway(own);
        if let (Some(fields), Value::Object(more)) =
            (value.as_object_mut(), measurement(admin.measurements.of(name, &own.name)))
        {
            fields.extend(more);
        }
        value
    };
    let alarm = |alarm: &crate::peers::Alarm| json!({ "kind": alarm.kind.to_string(), "detail": alarm.detail, "ageMs": age(Some(alarm.since)) });
    let liveness = status.liveness;
    let since = liveness.and_then(|it| u64::try_from(it.since_ms).ok()).map(std::time::Duration::from_millis);
    json!({
        "cluster": name,
        "connected": liveness.map(|it| it.connected),
        "suspect": liveness.is_some_and(|it| !it.connected),
        "sinceMs": liveness.map(|it| it.since_ms),
        "sinceAgeMs": age(since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))),
        "appliedRevision": liveness.map(|it| it.applied_revision),
        "lastAppliedAgeMs": age(status.last_applied),
        "generation": status.generation,
        "quarantined": status.quarantined,
        "bundle": status.bundle,
        "exports": status.exports,
        "gateways": status.gateways.iter().map(measured).collect::<Vec<_>>(),
        "alarms": status.alarms.iter().map(alarm).collect::<Vec<_>>(),
    })
}

fn measurement(measurement: Option<Measurement>) -> Value {
    let probed = measurement.as_ref();
    json!({
        "reachable": probed.map(|it| it.outcome.is_ok()),
        "measured": probed.and_then(|it| it.outcome.as_ref().ok()).map(|depth| match depth {
            Depth::Session => "session",
            Depth::Connection => "connection",
        }),
        "through": probed.and_then(|it| it.through.as_ref()),
        "lastError": probed.and_then(|it| it.outcome.as_ref().err()),
        "roundTripUs": probed.and_then(|it| it.round_trip).map(|time| micros(time.as_micros())),
        "ageMs": age(probed.map(|it| it.probed)),
        "lastSuccessAgeMs": age(probed.and_then(|it| it.succeeded)),
    })
}

fn gateway(gateway: &Gateway) -> Value {
    json!({
        "name": gateway.name,
        "address": gateway.address,
        "port": gateway.port,
        "region": gateway.locality.region,
        "zone": gateway.locality.zone,
        "draining": gateway.draining,
    })
}

fn proxy(proxy: &ProxyStatus) -> Value {
    json!({
        "name": proxy.name,
        "kind": match proxy.kind {
            Kind::Sidecar => "sidecar",
            Kind::Gateway => "gateway",
        },
        "identity": proxy.identity,
        "connectedForMs": age(Some(proxy.since)),
        "trustEpoch": proxy.trust.epoch,
        "bundleSequence": proxy.trust.bundle,
        "error": proxy.error,
    })
}

fn standing(snapshot: &Snapshot) -> Option<String> {
    snapshot.generation?;
    Some(match snapshot.standing {
        Standing::Good => "member".to_owned(),
        Standing::Quarantined => "quarantined".to_owned(),
        Standing::Evicted => "evicted".to_owned(),
        Standing::Replaced(newer) => format!("replaced by generation {newer}"),
    })
}

fn authority(admin: &Admin, snapshot: &Snapshot) -> Value {
    let status = admin.authority.status();
    json!({
        "roots": status.roots,
        "notAfter": timestamp(status.not_after),
        "intermediateNotAfter": status.intermediate_not_after.map(timestamp),
        "sequence": snapshot.own_bundle.sequence,
        "published": snapshot.own_bundle.published.is_some(),
        "problem": status.problem,
    })
}

fn foreign_refused(snapshot: &Snapshot) -> Vec<Value> {
    let refused = snapshot.foreign_refused.iter();
    refused.map(|(name, owner)| json!({ "trustDomain": name.as_str(), "sharesKeyWith": owner.as_str() })).collect()
}

fn member_certificate(admin: &Admin) -> Value {
    let certificate = admin.plane.member_certificate();
    json!({ "notAfter": certificate.not_after.map(timestamp), "problem": certificate.problem })
}

fn link(link: &LinkStatus) -> Value {
    json!({
        "connected": link.connected,
        "problem": link.problem,
        "revision": link.revision,
        "incarnation": link.incarnation,
        "ageMs": age(link.last_applied),
    })
}

fn condition(condition: &Condition) -> Value {
    json!({
        "type": condition.kind,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
    })
}

/// Capacity: as many as there are endpoints only where none has a weight of its own.
fn zones(zones: &[ZoneCapacity]) -> Vec<Value> {
    let zone = |zone: &ZoneCapacity| {
        json!({
            "region": zone.locality.region,
            "zone": zone.locality.zone,
            "total": zone.total,
            "ready": zone.ready,
        })
    };
    zones.iter().map(zone).collect()
}

fn age(since: Option<SystemTime>) -> Option<u64> {
    let age = SystemTime::now().duration_since(since?).unwrap_or_default();
    Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

fn micros(micros: u128) -> u64 {
    u64::try_from(micros).unwrap_or(u64::MAX)
}

/// RFC 3339, whole seconds.
pub(crate) fn timestamp(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let timestamp = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    timestamp.unwrap_or_default().to_string()
}
