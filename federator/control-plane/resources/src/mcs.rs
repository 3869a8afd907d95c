//! `multicluster.x-k8s.io`, as KEP-1645 and mcs-api v0.5.0 have it: v1beta1 is stored, v1alpha1 has the same fields.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group.
pub const GROUP: &str = "multicluster.x-k8s.io";

/// The version that is stored.
pub const STORED_VERSION: &str = "v1beta1";

/// The version that is also served.
pub const SERVED_VERSION: &str = "v1alpha1";

/// What a ServiceExport asks for. The object's name is the Service's; a missing `spec` is an empty one.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "multicluster.x-k8s.io",
    version = "v1beta1",
    kind = "ServiceExport",
    doc = "Declares that the Service of the same name is to be exported to the cluster set",
    namespaced,
    status = "ServiceExportStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "svcex",
    shortname = "svcexport",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn = r#"{"name":"Conflict", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Conflict\")].status"}"#,
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", from = "Option<ServiceExportFields>")]
pub struct ServiceExportSpec {
    /// Labels of the import; the object's own labels are never taken.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    /// Annotations of the import; the object's own annotations are never taken.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ServiceExportFields {
    /// Labels of the import; the object's own labels are never taken.
    exported_labels: Option<BTreeMap<String, String>>,
    /// Annotations of the import; the object's own annotations are never taken.
    exported_annotations: Option<BTreeMap<String, String>>,
}

impl From<Option<ServiceExportFields>> for ServiceExportSpec {
    fn from(fields: Option<ServiceExportFields>) -> Self {
        let fields = fields.unwrap_or_default();
        Self {
            exported_labels: fields.exported_labels.unwrap_or_default(),
            exported_annotations: fields.exported_annotations.unwrap_or_default(),
        }
    }
}

/// How an export goes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct ServiceExportStatus {
    /// `Valid`, `Ready` and `Conflict`.
    pub conditions: Vec<Condition>,
}

/// A service of the cluster set, as one cluster's consumers see it. Written by the controller alone.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "multicluster.x-k8s.io",
    version = "v1beta1",
    kind = "ServiceImport",
    doc = "A service that clusters of the set export",
    namespaced,
    status = "ServiceImportStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "svcim",
    shortname = "svcimport",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn = r#"{"name":"IP", "type":"string", "jsonPath":".spec.ips"}"#,
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImportSpec {
    /// The union of the exporters' ports.
    pub ports: Vec<ImportPort>,
    /// Clusterset IPs, at most one per family; none when headless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub ips: Vec<String>,
    /// `ClusterSetIP` or `Headless`.
    #[serde(rename = "type")]
    pub type_: ImportType,
    /// `ClientIP` or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// Its time-out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// In the order of `ips`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub ip_families: Vec<String>,
    /// As in a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// As in a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

/// A port of an import; it has no target port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportPort {
    /// Unique, may be empty when it is the only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(default)]
    pub protocol: String,
    /// As in a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// The service's port.
    pub port: u16,
}

/// The kind of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ImportType {
    /// Answers under its clusterset IP.
    #[default]
    ClusterSetIP,
    /// Names its endpoints.
    Headless,
}

/// As in a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP", default, skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<ClientIpConfig>,
}

/// As in a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// 1 to 86400 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i32>,
}

/// Who exports it, and whether it can be used.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceImportStatus {
    /// The exporting clusters.
    pub clusters: Vec<ImportCluster>,
    /// `Ready`.
    pub conditions: Vec<Condition>,
    /// Whether EndpointSlices of the import are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_slice_objects: Option<EndpointSliceObjects>,
}

/// Whether EndpointSlices of an import are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum EndpointSliceObjects {
    /// They are.
    Present,
    /// They are not.
    Absent,
}

/// One exporting cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ImportCluster {
    /// Its name.
    pub cluster: String,
}
