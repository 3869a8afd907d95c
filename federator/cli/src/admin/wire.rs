//! The admin API's JSON, as far as this command uses it. `-o json` prints exactly these types.
//!
//! Unknown fields are passed over and absent ones are empty, so that a command and a control-plane of different versions
//! understand each other. Names are camelCase; times are RFC 3339; what is measured says its unit in its name, and is
//! `null` when it is not known. Ages are those at the moment of the answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use federation::{Namespace, ServiceId, ServiceName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `GET /v1/status`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// The federation's domain.
    pub(crate) federation: String,
    /// The cluster's trust domain.
    pub(crate) trust_domain: String,
    /// It is a member of the federation.
    pub(crate) joined: bool,
    /// Which membership: a newer token makes a higher one.
    pub(crate) generation: Option<u64>,
    /// What the operator's or a successor's signed words make of the membership: `member`, `quarantined`, `evicted`, or
    /// `replaced by generation …`.
    pub(crate) standing: Option<String>,
    /// The membership is on its way out.
    pub(crate) leaving: bool,
    /// Why the departure is not taken.
    pub(crate) leave_problem: Option<String>,
    /// The cluster's own certificate authority.
    pub(crate) authority: Authority,
    /// Its certificate for the federation's plane.
    pub(crate) member_certificate: MemberCertificate,
    /// Trust domains outside the federation that are not believed.
    pub(crate) foreign_refused: Vec<ForeignRefused>,
    /// How far the rotation of each key is.
    pub(crate) rotations: Vec<Rotation>,
    /// The first full state was applied: what is not here does not exist.
    pub(crate) synced: bool,
    /// What its readiness waits for.
    pub(crate) waiting_for: Vec<String>,
    /// Where it answers DNS.
    pub(crate) dns: Vec<SocketAddr>,
    /// The session with the federator.
    pub(crate) federator: Link,
    /// The watch of the trust-bundle.
    pub(crate) trust_bundle: Link,
    /// Services that it exports.
    pub(crate) exports: u64,
    /// Services of the federation that it knows.
    pub(crate) imports: u64,
    /// Its own gateways.
    pub(crate) gateways: Vec<Gateway>,
    /// Its sidecars and gateways that are connected to it.
    pub(crate) proxies: Vec<Proxy>,
    /// How reading manifests goes.
    pub(crate) manifests: Manifests,
    /// Every other member.
    pub(crate) clusters: Vec<Cluster>,
}

/// The cluster's own certificate authority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Authority {
    /// Published roots: two while one is replaced.
    pub(crate) roots: u64,
    /// Until when it can sign.
    pub(crate) not_after: Option<Timestamp>,
    /// Until when the intermediate in use is valid.
    pub(crate) intermediate_not_after: Option<Timestamp>,
    /// The federation has the same roots.
    pub(crate) published: bool,
    /// What its upkeep failed at.
    pub(crate) problem: Option<String>,
}

/// The cluster's certificate for the federation's plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct MemberCertificate {
    /// Until when it is valid.
    pub(crate) not_after: Option<Timestamp>,
    /// Why it is not renewed.
    pub(crate) problem: Option<String>,
}

/// A trust domain outside the federation that has shown a root's key of a member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ForeignRefused {
    /// Its name.
    pub(crate) trust_domain: String,
    /// The member's.
    pub(crate) shares_key_with: String,
}

/// `GET /v1/rotations`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Rotations {
    /// Of each key.
    pub(crate) rotations: Vec<Rotation>,
}

/// How far the rotation of a key is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rotation {
    /// `root`, `intermediate`, `publish-key`.
    pub(crate) key: String,
    /// `idle`, or what it is at.
    pub(crate) phase: String,
    /// It waits for nobody.
    pub(crate) emergency: bool,
    /// Who has to acknowledge before it goes on.
    pub(crate) waiting_for: Vec<String>,
    /// The phase does not end before this time.
    pub(crate) not_before: Option<Timestamp>,
    /// They have had enough time.
    pub(crate) stalled: bool,
    /// Why the last step failed.
    pub(crate) problem: Option<String>,
}

/// A connection to a service of the federation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Link {
    /// It stands.
    pub(crate) connected: bool,
    /// Why it does not.
    pub(crate) problem: Option<String>,
    /// Since state last came over it, or was confirmed to be all there is.
    pub(crate) age_ms: Option<u64>,
    /// Up to which revision or epoch.
    pub(crate) revision: u64,
}

/// A sidecar or a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Proxy {
    /// Its name.
    pub(crate) name: String,
    /// `sidecar` or `gateway`.
    pub(crate) kind: String,
    /// For how long it has been connected.
    pub(crate) connected_for_ms: Option<u64>,
    /// What it could not apply.
    pub(crate) error: Option<String>,
}

/// How reading manifests goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Manifests {
    /// What is not understood, the first of many.
    pub(crate) problems: Vec<Problem>,
    /// How many there are.
    pub(crate) problem_count: u64,
    /// Documents of kinds that mean nothing to a mesh, by kind.
    pub(crate) passed_over: BTreeMap<String, u64>,
}

/// Something in a manifest that is not understood.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Problem {
    /// File, line, field and what is wrong, in one sentence.
    pub(crate) text: String,
}

/// `GET /v1/clusters`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Clusters {
    /// Every other member.
    pub(crate) clusters: Vec<Cluster>,
}

/// Another member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cluster {
    /// Its name.
    pub(crate) cluster: String,
    /// The federation has a session with it; `null` when the federation has not said.
    pub(crate) connected: Option<bool>,
    /// For how long that has been so.
    pub(crate) since_age_ms: Option<u64>,
    /// Since a record of it was last applied or confirmed.
    pub(crate) last_applied_age_ms: Option<u64>,
    /// The revision of the federation that it said to have applied.
    pub(crate) applied_revision: Option<u64>,
    /// Its membership.
    pub(crate) generation: u64,
    /// Shut out by the operator.
    pub(crate) quarantined: bool,
    /// Its roots are here; without, it cannot be called.
    pub(crate) bundle: bool,
    /// Services that it exports to namespaces of this cluster.
    pub(crate) exports: u64,
    /// Its gateways, as measured from here.
    pub(crate) gateways: Vec<Gateway>,
    /// What should worry an operator.
    pub(crate) alarms: Vec<Alarm>,
}

/// A gateway, and how probes of it went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Gateway {
    /// Its name, unique in its cluster.
    pub(crate) name: String,
    /// An address or a host name.
    pub(crate) address: String,
    /// The port.
    pub(crate) port: u16,
    /// Where it is.
    pub(crate) region: String,
    /// Where in the region.
    pub(crate) zone: String,
    /// Takes no new connections.
    pub(crate) draining: bool,
    /// The last probe's outcome; `null` before the first, and for the cluster's own gateways.
    pub(crate) reachable: Option<bool>,
    /// How deep the last probe went: `session` or `connection`.
    pub(crate) measured: Option<String>,
    /// Why the last probe failed.
    pub(crate) last_error: Option<String>,
    /// The measured round trip.
    pub(crate) round_trip_us: Option<u64>,
    /// Since the last probe.
    pub(crate) age_ms: Option<u64>,
    /// Since the last probe that did not fail.
    pub(crate) last_success_age_ms: Option<u64>,
}

/// What should worry an operator about a cluster's records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Alarm {
    /// `equivocation`, `withheld`.
    pub(crate) kind: String,
    /// About what.
    pub(crate) detail: String,
    /// For how long.
    pub(crate) age_ms: Option<u64>,
}

/// `GET /v1/exports`
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Exports {
    /// This cluster's.
    pub(crate) exports: Vec<Export>,
}

/// A service that this cluster exports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Export {
    /// The service's namespace.
    pub(crate) namespace: Namespace,
    /// The service's name.
    pub(crate) name: ServiceName,
    /// Its clusterset name.
    #[serde(default)]
    pub(crate) host: String,
    /// When the ServiceExport was made.
    #[serde(default)]
    pub(crate) created_at: Option<Timestamp>,
    /// `Valid`, `Ready`, `Conflict`, as in the ServiceExport's status.
    #[serde(default)]
    pub(crate) conditions: Vec<Condition>,
    /// Endpoints with a sidecar.
    #[serde(default)]
    pub(crate) endpoints: u32,
    /// Those of them that are ready.
    #[serde(default)]
    pub(crate) ready: u32,
    /// Endpoints without a sidecar: they get no traffic.
    #[serde(default)]
    pub(crate) without_sidecar: u32,
}

/// A condition, in Kubernetes' form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    /// Why, in one word.
    pub(crate) reason: String,
    /// Why, in a sentence.
    pub(crate) message: String,
}

/// `GET /v1/imports`
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Imports {
    /// The federation's services.
    pub(crate) imports: Vec<Import>,
}

/// A service of the federation, as this cluster sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Import {
    /// The service's namespace.
    pub(crate) namespace: Namespace,
    /// The service's name.
    pub(crate) name: ServiceName,
    /// Its clusterset name.
    #[serde(default)]
    pub(crate) host: String,
    /// `ClusterSetIP` or `Headless`.
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    /// Its addresses here.
    #[serde(default)]
    pub(crate) ips: Vec<String>,
    /// A headless one's endpoints in other clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) endpoints: Vec<RemoteEndpoint>,
    /// Its ports.
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
    /// Who exports it.
    #[serde(default)]
    pub(crate) clusters: Vec<Exporter>,
    /// What the exporters disagree on.
    #[serde(default)]
    pub(crate) conflicts: Vec<String>,
    /// One sentence for each disagreement.
    #[serde(default)]
    pub(crate) details: Vec<String>,
}

/// An endpoint of a headless service in another cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RemoteEndpoint {
    /// Its clusterset name.
    pub(crate) host: String,
    /// Its addresses here.
    pub(crate) ips: Vec<String>,
    /// Whether it is ready.
    pub(crate) ready: bool,
}

/// A port of an import.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Port {
    /// Its name, empty when it has none.
    pub(crate) name: String,
    /// Its number.
    pub(crate) port: u16,
    /// `TCP`, `UDP`, `SCTP`.
    pub(crate) protocol: String,
    /// Who exposes it.
    pub(crate) clusters: Vec<String>,
}

/// One exporter of an import.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Exporter {
    /// The cluster.
    pub(crate) cluster: String,
    /// It is this one.
    pub(crate) local: bool,
    /// What its endpoints with a sidecar can take: as many as there are, where none has a weight of its own.
    pub(crate) capacity: u32,
    /// What the ready ones can.
    pub(crate) ready: u32,
    /// The federation has lost touch with it.
    pub(crate) suspect: bool,
    /// Its roots are here.
    pub(crate) bundle: bool,
    /// Measured.
    pub(crate) round_trip_us: Option<u64>,
}

impl Export {
    /// The service.
    pub(crate) fn service(&self) -> ServiceId {
        ServiceId::new(self.namespace.clone(), self.name.clone())
    }

    /// A condition by its type.
    pub(crate) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

impl Condition {
    /// It holds.
    pub(crate) fn is_true(&self) -> bool {
        self.status == "True"
    }

    /// It does not hold; `Unknown` is neither.
    pub(crate) fn is_false(&self) -> bool {
        self.status == "False"
    }
}
