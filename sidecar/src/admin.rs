//! `/debug/state`: everything this sidecar knows, as JSON for people.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use balance::{EjectionExplanation, Explanation, GroupExplanation, MemberExplanation};
use mesh_tls::{Identity, TrustStore};
use serde_json::{Value, json};

use crate::inbound::Serving;
use crate::inbound::admission::Admission;
use crate::metrics::Metrics;
use crate::routing::route::Route;
use crate::routing::state::unix_seconds;
use crate::routing::{self, Entry};
use crate::session::path::Path;

/// What the page shows.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) router: routing::Router,
    pub(crate) identity: Identity,
    pub(crate) trust: TrustStore,
    pub(crate) serving: Arc<ArcSwap<Serving>>,
    pub(crate) metrics: Metrics,
    pub(crate) admission: Admission,
}

/// The admin listener's routes.
pub(crate) fn routes(shown: Shown) -> Router {
    Router::new().route("/debug/state", get(state)).with_state(shown)
}

async fn state(State(shown): State<Shown>) -> Json<Value> {
    let now = unix_seconds(SystemTime::now());
    let age = |at: i64| (at > 0).then(|| now - at);
    let validity = shown.identity.validity();
    let seconds = |time: Option<SystemTime>| time.map(unix_seconds);
    let serving = shown.serving.load();
    let bindings: Vec<Value> = serving
        .workload
        .bindings
        .iter()
        .map(|binding| {
            json!({
                "host": binding.host_text,
                "port": binding.port.port,
                "protocol": format!("{:?}", binding.port.application_protocol()),
                "targetPort": binding.target_port,
            })
        })
        .collect();
    let (allowed, under_way) = shown.admission.state();
    let table = shown.router.table();
    let services: serde_json::Map<String, Value> =
        table.services.iter().map(|(host, entry)| (host.to_string(), service(entry))).collect();
    Json(json!({
        "identity": {
            "spiffeId": shown.identity.spiffe_id().map(|id| id.to_string()),
            "notBefore": seconds(validity.map(|validity| validity.not_before)),
            "notAfter": seconds(validity.map(|validity| validity.not_after)),
            "ageSeconds": seconds(validity.map(|validity| validity.not_before)).and_then(age),
            "remainingSeconds": seconds(validity.map(|validity| validity.not_after)).map(|end| end - now),
        },
        "cluster": serving.cluster.as_ref().map(ToString::to_string),
        "workload": {
            "endpoint": serving.workload.endpoint,
            "locality": serving.workload.locality.to_string(),
            "bindings": bindings,
        },
        "application": { "requestsAllowed": allowed, "requests": under_way },
        "trustDomains": shown.trust.trust_domains().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "state": {
            "ageSeconds": age(shown.metrics.state_applied.get()),
            "federationAgeSeconds": age(shown.metrics.federation_applied.get()),
        },
        "services": services,
    }))
}

fn service(entry: &Entry) -> Value {
    match entry {
        Entry::Absent(since) => json!({ "absent": true, "ageSeconds": since.elapsed().as_secs() }),
        Entry::Known(known) => json!({
            "addresses": known.service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ports": known.routes.iter().map(|route| port(route)).collect::<Vec<_>>(),
        }),
    }
}

fn port(route: &Route) -> Value {
    let Explanation { panic, overprovisioning, priorities, counters } = route.explain();
    let priorities: Vec<Value> = priorities
        .iter()
        .map(|priority| {
            json!({
                "priority": priority.priority,
                "health": priority.health,
                "load": priority.load,
                "groups": priority.groups.iter().map(group).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "port": route.port,
        "protocol": format!("{:?}", route.protocol),
        "policy": route.failover().name,
        "panic": panic,
        "overprovisioning": overprovisioning,
        "picks": counters.picks,
        "panicPicks": counters.panic_picks,
        "ejections": {
            "path": counters.member_ejections,
            "gateway": counters.gateway_ejections,
            "endpoint": counters.endpoint_ejections,
            "cluster": counters.group_ejections,
        },
        "priorities": priorities,
    })
}

fn group(group: &GroupExplanation<Path>) -> Value {
    json!({
        "name": group.name.as_str(),
        "total": group.capacity_total,
        "ready": group.capacity_ready,
        "healthy": group.healthy,
        "load": group.load,
        "suspect": group.suspect,
        "demoted": group.demoted,
        "ejected": group.ejected.as_ref().map(ejection),
        "gateways": group.gateways.iter().map(|gateway| json!({
            "name": gateway.name.as_str(),
            "ejected": gateway.ejected.as_ref().map(ejection),
        })).collect::<Vec<_>>(),
        "endpoints": group.endpoints.iter().map(|endpoint| json!({
            "id": endpoint.id.as_str(),
            "ejected": endpoint.ejected.as_ref().map(ejection),
        })).collect::<Vec<_>>(),
        "members": group.members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn member(member: &MemberExplanation<Path>) -> Value {
    let path = &member.id;
    let sessions: Vec<Value> = path
        .sessions()
        .live()
        .iter()
        .map(|session| {
            json!({
                "peer": &*session.peer.identity,
                "endpoint": &**session.peer.endpoint_text(),
                "requests": session.load(),
            })
        })
        .collect();
    json!({
        "via": format!("{:?}", path.id().via),
        "serverName": path.id().server_name,
        "gateway": member.gateway.as_ref().map(balance::GatewayName::as_str),
        "endpoint": member.endpoint.as_ref().map(balance::EndpointId::as_str),
        "load": member.load,
        "unavailable": member.unavailable.map(|why| format!("{why:?}")),
        "ejected": member.ejected.as_ref().map(ejection),
        "slowStart": member.slow_start,
        "inFlight": member.in_flight,
        "latencyMicroseconds": member.latency.map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
        "roundTripMicroseconds": path.round_trip().map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        "consecutiveFailures": member.consecutive_failures,
        "sessions": sessions,
    })
}

fn ejection(ejection: &EjectionExplanation) -> Value {
    json!({
        "cause": format!("{:?}", ejection.cause),
        "remainingMilliseconds": u64::try_from(ejection.remaining.as_millis()).unwrap_or(u64::MAX),
        "times": ejection.times,
    })
}
