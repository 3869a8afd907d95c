//! `/debug/state`: everything this sidecar knows, as JSON for people; `/debug/explain`: see [`explain`].

mod explain;
mod shown;

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use balance::Explanation;
use mesh_tls::{Identity, TrustStore};
use serde_json::{Value, json};

use crate::inbound::admission::Admission;
use crate::inbound::serving::Served;
use crate::metrics::Metrics;
use crate::routing::route::Route;
use crate::routing::state::unix_seconds;
use crate::routing::{self, Entry};

/// What the page shows.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) router: routing::Router,
    pub(crate) identity: Identity,
    pub(crate) trust: TrustStore,
    pub(crate) serving: Arc<Served>,
    pub(crate) metrics: Metrics,
    pub(crate) admission: Admission,
}

/// The admin listener's routes.
pub(crate) fn routes(shown: Shown) -> Router {
    Router::new().route("/debug/state", get(state)).route("/debug/explain", post(explain::explain)).with_state(shown)
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
            "trustAgeSeconds": age(shown.metrics.trust_confirmed.get()),
            "trustTooOld": shown.metrics.trust_too_old.get() != 0,
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
        "priorities": shown::priorities(route, &priorities),
    })
}
