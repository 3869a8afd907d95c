//! What a sidecar's `/debug/explain` answers. A field that a sidecar of another version does not know has its default.

use serde::{Deserialize, Serialize};

/// A service as one sidecar sees it; `isthmus explain -o json` prints the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Explanation {
    /// `<namespace>/<name>`.
    pub(super) service: String,
    /// Its clusterset name.
    pub(super) host: String,
    /// One for each port that was asked for.
    pub(super) ports: Vec<Port>,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Port {
    pub(super) port: u16,
    /// What its bytes are.
    pub(super) protocol: String,
    /// The FailoverPolicy in force.
    pub(super) policy: Option<String>,
    /// A client's requests go to one endpoint as long as it is there.
    pub(super) sticky: bool,
    /// As it is.
    pub(super) now: State,
    /// As it would be; absent when nothing was supposed to fail.
    pub(super) what_if: Option<State>,
}

/// What decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct State {
    /// No group is healthy.
    pub(super) panic: bool,
    /// The factor of the spill formula.
    pub(super) overprovisioning: f64,
    /// In order of use.
    pub(super) priorities: Vec<Priority>,
}

impl State {
    /// All groups with their priorities, in order of use.
    pub(super) fn groups(&self) -> impl Iterator<Item = (Option<u32>, &Group)> {
        self.priorities.iter().flat_map(|it| it.groups.iter().map(|group| (it.priority, group)))
    }
}

/// Groups of one priority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Priority {
    /// None: used last.
    pub(super) priority: Option<u32>,
    /// From 0 to 1.
    pub(super) health: f64,
    /// Share of all requests.
    pub(super) load: f64,
    pub(super) groups: Vec<Group>,
}

/// The endpoints of a zone, or a remote cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Group {
    pub(super) name: String,
    /// How near it is.
    pub(super) why: Option<String>,
    /// Endpoints.
    pub(super) total: u32,
    /// Of these, ready.
    pub(super) ready: u32,
    /// Of these, not ejected.
    pub(super) healthy: f64,
    /// Share of all requests.
    pub(super) load: f64,
    /// Its cluster's lease is gone.
    pub(super) suspect: bool,
    /// And it fails.
    pub(super) demoted: bool,
    pub(super) ejected: Option<Ejection>,
    pub(super) gateways: Vec<Part>,
    /// Behind the gateways.
    pub(super) endpoints: Vec<Part>,
    pub(super) members: Vec<Member>,
}

/// A gateway, or an endpoint behind gateways.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Part {
    #[serde(alias = "id")]
    pub(super) name: String,
    pub(super) ejected: Option<Ejection>,
}

/// An endpoint, or a path through a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Member {
    pub(super) cluster: String,
    /// Tells members apart.
    pub(super) via: String,
    pub(super) gateway: Option<String>,
    /// Who answers there.
    pub(super) endpoint: Option<String>,
    /// Share of all requests.
    pub(super) load: f64,
    /// What keeps it out.
    pub(super) unavailable: Option<String>,
    pub(super) ejected: Option<Ejection>,
    /// From 0 to 1.
    pub(super) slow_start: f64,
    pub(super) in_flight: u32,
    pub(super) latency_microseconds: Option<u64>,
    pub(super) round_trip_microseconds: Option<u64>,
    pub(super) consecutive_failures: u32,
}

/// Why something is out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Ejection {
    pub(super) cause: String,
    pub(super) remaining_milliseconds: u64,
    pub(super) times: u32,
}
