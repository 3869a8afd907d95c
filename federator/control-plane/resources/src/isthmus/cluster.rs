//! The read-only view of a member of the federation.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing: a member is what the federation says it is.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "Cluster",
    doc = "Another member of the federation, as this cluster sees it; written by the control-plane alone",
    status = "ClusterStatus",
    derive = "PartialEq",
    shortname = "icl",
    category = "isthmus",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn = r#"{"name":"Reason", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn(name = "Exports", type_ = "integer", json_path = ".status.exports"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct ClusterSpec {}

/// What is known of a member.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Of its membership; a higher one replaces a member.
    pub generation: u64,
    /// Services that it exports into namespaces of this cluster.
    pub exports: u32,
    /// Where it is reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<ClusterGateway>,
    /// When its connection to the federation was lost; not set while it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspect_since: Option<Time>,
    /// `Ready`: True=`Connected`; False=`Quarantined`, `NoTrustBundle`, `Suspect`.
    pub conditions: Vec<Condition>,
}

/// A gateway of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterGateway {
    /// `host:port`
    pub address: String,
    /// Its zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
}
