//! How a service's clusters are ordered and when they are left.
#![expect(unreachable_pub, reason = "KubeSchema repeats each type inside a function")]

use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// Where traffic of an imported service goes, and when it goes elsewhere. Applies to one import of its namespace, or to
/// every import there that has no policy of its own. What is not set keeps its default.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "FailoverPolicy",
    doc = "Where traffic of an imported service goes, and when it goes elsewhere",
    namespaced,
    plural = "failoverpolicies",
    status = "PolicyStatus",
    derive = "PartialEq",
    shortname = "fop",
    category = "isthmus",
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!(has(self.localOnly) && self.localOnly) || (!has(self.targets) && !has(self.distribute))")
        .message("localOnly leaves no other cluster for targets or distribute"),
    validation = Rule::new("!has(self.distribute) || !has(self.targets)")
        .message("distribute gives fixed shares: it cannot go with targets")
)]
#[serde(rename_all = "camelCase")]
pub struct FailoverPolicySpec {
    /// The ServiceImport of the same namespace; without, every import of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub service: Option<String>,
    /// Which agreement with the caller comes first; without: zone, region, cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    #[x_kube(validation = Rule::new("self.all(x, self.exists_one(y, y == x))").message("each at most once"))]
    pub prefer: Vec<Dimension>,
    /// Which other clusters may be used, and in which order; the first entry that names the caller's cluster applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub targets: Vec<FailoverTarget>,
    /// Fixed shares of clusters, in place of an order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new("self.all(x, self.exists_one(y, y.cluster == x.cluster))").message("each cluster at most once"),
        validation = Rule::new("size(self) == 0 || self.exists(x, x.weight > 0)").message("one weight must be more than 0")
    )]
    pub distribute: Vec<Share>,
    /// Only the caller's own cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local_only: bool,
    /// How many healthy endpoints stand for all of a group, in hundredths; 140 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1000))]
    pub overprovisioning_percent: Option<u32>,
    /// When an endpoint, or a whole cluster, is left for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<EjectionSpec>,
    /// What is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetrySpec>,
}

/// An agreement between caller and endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Dimension {
    /// The same zone.
    #[serde(rename = "zone")]
    Zone,
    /// The same region.
    #[serde(rename = "region")]
    Region,
    /// The same cluster.
    #[serde(rename = "cluster")]
    Cluster,
}

/// Which other clusters callers of some clusters may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(self.mode in ['Only', 'AnyExcept']) == (has(self.to) && size(self.to) > 0)")
        .message("to names clusters with the modes Only and AnyExcept, and with no other")
)]
#[serde(rename_all = "camelCase")]
pub struct FailoverTarget {
    /// The callers' clusters; without, every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub from: Vec<String>,
    /// Which others.
    pub mode: TargetMode,
    /// The clusters, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub to: Vec<String>,
}

/// Which other clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TargetMode {
    /// None at all.
    None,
    /// The named ones.
    Only,
    /// Every one.
    #[default]
    Any,
    /// Every one but the named.
    AnyExcept,
}

/// A cluster's share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The cluster.
    #[schemars(length(min = 1, max = 127))]
    pub cluster: String,
    /// Its part of the sum of all weights.
    #[schemars(range(min = 0, max = 10000))]
    pub weight: u32,
}

/// When an endpoint is left for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.baseTime) || !has(self.maxTime) || duration(self.baseTime) <= duration(self.maxTime)")
        .message("baseTime is longer than maxTime")
)]
#[serde(rename_all = "camelCase")]
pub struct EjectionSpec {
    /// So many failures in a row; 5 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_failures: Option<u32>,
    /// Fewer successes of 100 over ten seconds; 80 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub success_rate_percent: Option<u32>,
    /// How long the first time; it doubles; `1s` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1h')").message("from 1ms to 1h"))]
    pub base_time: Option<Duration>,
    /// How long at most; `60s` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1h')").message("from 1ms to 1h"))]
    pub max_time: Option<Duration>,
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetrySpec {
    /// Repeated requests of 100 live ones; 20 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub budget_percent: Option<u32>,
    /// How long one try may take; no limit without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1h')").message("from 1ms to 1h"))]
    pub per_try_timeout: Option<Duration>,
    /// Repeats requests whatever their method.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub non_idempotent: bool,
}
