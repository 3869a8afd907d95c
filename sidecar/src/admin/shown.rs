//! The balancer's explanations as JSON.

use balance::{EjectionExplanation, EndpointId, GatewayName, GroupExplanation, MemberExplanation, PriorityExplanation};
use serde_json::{Value, json};

use crate::routing::route::Route;
use crate::session::path::Path;

/// What a route's balancer says, in order of use.
pub(super) fn priorities(route: &Route, priorities: &[PriorityExplanation<Path>]) -> Vec<Value> {
    let priority = |priority: &PriorityExplanation<Path>| {
        json!({
            "priority": priority.priority,
            "health": priority.health,
            "load": priority.load,
            "groups": priority.groups.iter().map(|it| group(route, it)).collect::<Vec<_>>(),
        })
    };
    priorities.iter().map(priority).collect()
}

fn group(route: &Route, group: &GroupExplanation<Path>) -> Value {
    json!({
        "name": group.name.as_str(),
        "why": route.why(&group.name),
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
        "cluster": path.id().cluster.as_str(),
        "via": format!("{:?}", path.id().via),
        "secured": path.tls().is_some(),
        "serverName": path.tls().map(|_| &path.id().server_name),
        "gateway": member.gateway.as_ref().map(GatewayName::as_str),
        "endpoint": endpoint(member),
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

/// Who answers there: the endpoint itself, or who answered behind the gateway last.
fn endpoint(member: &MemberExplanation<Path>) -> Option<&str> {
    member.id.endpoint().or_else(|| member.endpoint.as_ref().map(EndpointId::as_str))
}
