//! `POST /debug/explain`: where the next requests to a service go and why, and what would be if something failed.
//!
//! ```text
//!  {"service": "shop/cart", or a host name, "port": 80, "failed": ["cluster=west"]}    port and failed may be left out
//!  {"service": …, "ports": [{"port": 80, …, "now": {…}, "whatIf": {…} or null}]}
//! ```
//!
//! The answer is the balancer's own: the one that picks explains itself, and a copy of it explains what would be.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use balance::{Explanation, Target};
use federation::name::NameError;
use federation::{MeshHost, ServiceId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Shown, shown};
use crate::routing::Entry;
use crate::routing::route::Route;
use crate::session::path::Path;

/// Things that fail at once in one question, at most.
const MAX_FAILED: usize = 32;

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    service: ServiceName,
    port: Option<u16>,
    #[serde(default)]
    failed: Vec<Failed>,
}

/// `<namespace>/<name>` of the clusterset, or a host name.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct ServiceName(MeshHost);

impl TryFrom<String> for ServiceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let host = text.parse().or_else(|_| text.parse::<ServiceId>().map(|service| service.host().into()));
        host.map(Self).map_err(|error: NameError| format!("service: {text:?}: {error}"))
    }
}

/// Something taken as failed: `cluster=west`, `group=east/zone-a`, `gateway=gw-1`, `endpoint=west/shop/cart-1`.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
struct Failed {
    kind: Kind,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cluster,
    Group,
    Gateway,
    Endpoint,
}

impl TryFrom<String> for Failed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(kind, name)| {
            let kind = match kind {
                "cluster" => Kind::Cluster,
                "group" => Kind::Group,
                "gateway" => Kind::Gateway,
                "endpoint" => Kind::Endpoint,
                _ => return None,
            };
            Some(Self { kind, name: name.to_owned() })
        });
        parsed.ok_or_else(|| format!("failed: {text:?} is none of cluster=, group=, gateway=, endpoint= and a name"))
    }
}

impl Failed {
    fn is(&self, target: &Target<'_, Path>) -> bool {
        let name = match (self.kind, target) {
            (Kind::Cluster, Target::Member(path)) => path.id().cluster.as_str(),
            (Kind::Group, Target::Group(name)) => name.as_str(),
            (Kind::Gateway, Target::Gateway(name)) => name.as_str(),
            (Kind::Endpoint, Target::Endpoint(id)) => id.as_str(),
            (Kind::Endpoint, Target::Member(path)) => match path.endpoint() {
                Some(id) => id,
                None => return false,
            },
            _ => return false,
        };
        name == self.name
    }
}

type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

fn refused(status: StatusCode, error: String) -> (StatusCode, Json<Value>) {
    (status, Json(json!({ "error": error })))
}

/// Answers the question.
pub(super) async fn explain(State(shown): State<Shown>, Json(question): Json<Question>) -> Answer {
    let Question { service: ServiceName(service), port, failed } = question;
    if failed.len() > MAX_FAILED {
        return Err(refused(StatusCode::BAD_REQUEST, format!("failed: more than {MAX_FAILED}")));
    }
    let table = shown.router.table();
    let host = service.to_string();
    let service = service.label();
    let unknown = |what: &str| refused(StatusCode::NOT_FOUND, format!("{service}: {what}"));
    let known = match table.services.get(host.as_str()) {
        Some(Entry::Known(known)) => known,
        Some(Entry::Absent(_)) => return Err(unknown("nobody exports it, or its namespace has not opted in")),
        None => return Err(unknown("this sidecar knows nothing of it: its workload has not asked for it yet")),
    };
    let routes: Vec<&Route> =
        known.routes.iter().filter(|route| port.is_none_or(|port| port == route.port)).map(|route| &**route).collect();
    if routes.is_empty() {
        let ports: Vec<String> = known.routes.iter().map(|route| route.port.to_string()).collect();
        return Err(unknown(&format!("it has no such port, but {}", ports.join(", "))));
    }
    let mut ports = Vec::with_capacity(routes.len());
    let mut found = vec![false; failed.len()];
    for route in routes {
        let what_if = (!failed.is_empty()).then(|| {
            route.explain_supposing(|target| {
                // Each is looked at: one that was never found is told.
                let hits = failed.iter().zip(&mut found).filter(|(failed, _)| failed.is(&target));
                hits.fold(false, |_, (_, found)| {
                    *found = true;
                    true
                })
            })
        });
        ports.push(of_port(route, &route.explain(), what_if.as_ref()));
    }
    if let Some((failed, _)) = failed.iter().zip(found).find(|(_, found)| !found) {
        return Err(unknown(&format!("nothing here is {:?} {}", failed.kind, failed.name)));
    }
    Ok(Json(json!({ "service": service, "host": host, "ports": ports })))
}

fn of_port(route: &Route, now: &Explanation<Path>, what_if: Option<&Explanation<Path>>) -> Value {
    let state = |explanation: &Explanation<Path>| {
        json!({
            "panic": explanation.panic,
            "overprovisioning": explanation.overprovisioning,
            "priorities": shown::priorities(route, &explanation.priorities),
        })
    };
    json!({
        "port": route.port,
        "protocol": format!("{:?}", route.protocol),
        "policy": route.failover().name,
        "sticky": route.is_sticky(),
        "now": state(now),
        "whatIf": what_if.map(state),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_named_by_kind_and_name() {
        let failed = |text: &str| Failed::try_from(text.to_owned());
        let name = "east (same cluster, same zone)".to_owned();
        assert_eq!(failed(&format!("group={name}")), Ok(Failed { kind: Kind::Group, name }));
        for wrong in ["", "west", "cloud=west", "Cluster=west"] {
            assert!(failed(wrong).is_err(), "{wrong:?}");
        }
    }
}
