//! The admin API's JSON, as far as this command uses it, and what `-o json` prints of it.
//!
//! Unknown fields are passed over and absent ones are empty, so that a command and a control-plane of different versions
//! understand each other. Field names are camelCase; times are RFC 3339; ages and round trips are numbers whose name says
//! the unit.

use std::net::SocketAddr;

use federation::{Namespace, ServiceId};
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
    /// The control-plane's version.
    pub(crate) version: Option<String>,
    /// Whether it is a member.
    pub(crate) membership: Membership,
    /// Its connection to the trust-bundle.
    pub(crate) trust_bundle: Link,
    /// Its connection to the federator.
    pub(crate) federator: Link,
    /// Where it answers DNS.
    pub(crate) dns: Vec<SocketAddr>,
    /// Manifests and resources that are not understood, one sentence each.
    pub(crate) problems: Vec<String>,
    /// Every other member.
    pub(crate) clusters: Vec<Cluster>,
}

/// A cluster's membership.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Membership {
    /// It has joined.
    pub(crate) joined: bool,
    /// Which membership: a newer token makes a higher one.
    pub(crate) generation: Option<u64>,
    /// Until when its certificate in the federation holds.
    pub(crate) certificate_not_after: Option<Timestamp>,
    /// Why it is not a member, or its certificate is not renewed.
    pub(crate) error: Option<String>,
}

/// A connection to a service of the federation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Link {
    /// It stands.
    pub(crate) connected: bool,
    /// The first full state was applied.
    pub(crate) synced: bool,
    /// Since the last word from the other end.
    pub(crate) age_seconds: Option<f64>,
    /// Why it does not stand.
    pub(crate) error: Option<String>,
}

/// `GET /v1/clusters`: a list of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cluster {
    /// Its name.
    pub(crate) name: String,
    /// It is this one.
    pub(crate) local: bool,
    /// The federation has a session with it; absent when the federation has not said.
    pub(crate) connected: Option<bool>,
    /// Shut out by the operator.
    pub(crate) quarantined: bool,
    /// Since something of it was last applied or confirmed.
    pub(crate) age_seconds: Option<f64>,
    /// Its trust bundle is here.
    pub(crate) bundle: bool,
    /// Services it exports.
    pub(crate) exports: u32,
    /// Its gateways, as measured from here.
    pub(crate) gateways: Vec<Gateway>,
    /// What should worry an operator.
    pub(crate) alarms: Vec<String>,
}

/// A gateway of another cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Gateway {
    /// Its name.
    pub(crate) name: String,
    /// Where it is dialled.
    pub(crate) address: String,
    /// The last probe's outcome; absent before the first.
    pub(crate) reachable: Option<bool>,
    /// The measured round trip.
    pub(crate) round_trip_ms: Option<f64>,
    /// Since the last probe.
    pub(crate) probe_age_seconds: Option<f64>,
    /// Takes no new connections.
    pub(crate) draining: bool,
    /// Why the last probe failed.
    pub(crate) error: Option<String>,
}

/// `GET /v1/exports`: a list of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Export {
    /// The service's namespace.
    pub(crate) namespace: Namespace,
    /// The service's name.
    pub(crate) name: federation::ServiceName,
    /// `Valid`, `Ready`, `Conflict`, as in the ServiceExport's status.
    #[serde(default)]
    pub(crate) conditions: Vec<Condition>,
    /// Ready endpoints with a sidecar.
    #[serde(default)]
    pub(crate) ready: u32,
    /// Endpoints with a sidecar.
    #[serde(default)]
    pub(crate) total: u32,
    /// When the ServiceExport was made.
    #[serde(default)]
    pub(crate) created: Option<Timestamp>,
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

/// `GET /v1/imports`: a list of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Import {
    /// The service's namespace.
    pub(crate) namespace: Namespace,
    /// The service's name.
    pub(crate) name: federation::ServiceName,
    /// `ClusterSetIP` or `Headless`.
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    /// Its addresses here.
    #[serde(default)]
    pub(crate) ips: Vec<String>,
    /// Its ports.
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
    /// Who exports it.
    #[serde(default)]
    pub(crate) clusters: Vec<String>,
    /// `Ready`, as in the ServiceImport's status.
    #[serde(default)]
    pub(crate) conditions: Vec<Condition>,
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
