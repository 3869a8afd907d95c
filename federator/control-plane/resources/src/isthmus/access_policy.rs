//! Who may call a workload.
#![expect(unreachable_pub, reason = "KubeSchema repeats each type inside a function")]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// Who may call workloads of its namespace. Where an `Allow` policy names a port, only what some `Allow` rule names gets
/// through; a `Deny` rule comes before every `Allow`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    doc = "Who may call workloads of a namespace over the mesh",
    namespaced,
    plural = "accesspolicies",
    status = "PolicyStatus",
    derive = "PartialEq",
    shortname = "acp",
    category = "isthmus",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Dry-Run", type_ = "boolean", json_path = ".spec.dryRun"),
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AccessPolicySpec {
    /// Service accounts whose workloads it protects; without, every workload of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub service_accounts: Vec<String>,
    /// What a matching rule does.
    pub action: AccessAction,
    /// Decides nothing, only logs what it would have decided.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Plaintext on these ports is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// The application's ports; without, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
    /// An `Allow` policy without rules lets nobody through; a `Deny` policy without rules refuses nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub rules: Vec<AccessRule>,
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AccessAction {
    /// Lets through.
    #[default]
    Allow,
    /// Refuses.
    Deny,
}

/// Matches when every field that is set has an entry that matches. In patterns a `*` at the end stands for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "has(self.spiffeIds) || has(self.trustDomains) || has(self.clusters) || has(self.namespaces) || has(self.methods) || has(self.paths)"
    ).message("a rule must say what it matches")
)]
#[serde(rename_all = "camelCase")]
pub struct AccessRule {
    /// Patterns, for example `spiffe://east.mesh.example/ns/shop/*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 640)))]
    #[x_kube(validation = Rule::new("self.all(x, x.startsWith('spiffe://') && (!x.contains('*') || x.indexOf('*') == size(x) - 1))")
        .message("a SPIFFE ID, or one with a * at its end"))]
    pub spiffe_ids: Vec<String>,
    /// Exactly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub trust_domains: Vec<String>,
    /// Exactly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub clusters: Vec<String>,
    /// The callers' namespaces, exactly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,
    /// HTTP only: a rule with methods never matches raw TCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub methods: Vec<String>,
    /// HTTP only: patterns of the normalised path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 640)))]
    #[x_kube(validation = Rule::new("self.all(x, x.startsWith('/') && (!x.contains('*') || x.indexOf('*') == size(x) - 1))")
        .message("a path, or one with a * at its end"))]
    pub paths: Vec<String>,
}
