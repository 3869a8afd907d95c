//! v1 Node.

use federation::Locality;
use k8s_openapi::api::core::v1 as core;

use super::metadata;
use crate::resource::FieldError;

/// A node's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// From its labels `topology.kubernetes.io/region` and `topology.kubernetes.io/zone`.
    pub locality: Locality,
}

impl TryFrom<&core::Node> for Node {
    type Error = FieldError;

    fn try_from(node: &core::Node) -> Result<Self, FieldError> {
        let label = |name: &str| {
            let labels = node.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(name)).cloned().unwrap_or_default()
        };
        Ok(Self {
            name: metadata::name(&node.metadata)?,
            locality: Locality::new(label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone")),
        })
    }
}
