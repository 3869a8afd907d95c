//! `about.k8s.io`, as KEP-2149 has it: what a cluster says of itself.
#![expect(unreachable_pub, reason = "KubeSchema repeats each type inside a function")]

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// The property that holds the cluster's name in the cluster set.
pub const CLUSTER_PROPERTY: &str = "cluster.clusterset.k8s.io";

/// The property that holds the cluster set's name: the federation's domain.
pub const CLUSTER_SET_PROPERTY: &str = "clusterset.k8s.io";

/// A property's value.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "about.k8s.io",
    version = "v1beta1",
    kind = "ClusterProperty",
    plural = "clusterproperties",
    doc = "A property of the cluster, such as its name in a cluster set",
    derive = "PartialEq",
    annotation("api-approved.kubernetes.io", "https://github.com/kubernetes/enhancements/pull/1111"),
    printcolumn(name = "Value", type_ = "string", json_path = ".spec.value"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct ClusterPropertySpec {
    /// The value.
    #[schemars(length(min = 1, max = 128000))]
    pub value: String,
}
