//! The parts of each kind that a control-plane needs, parsed from the whole objects.
//!
//! Both sources, manifests and the Kubernetes API, go through these conversions: what an API server would refuse is an
//! error with the field's path.

mod endpoint_slice;
mod metadata;
mod node;
mod pod;
mod policy;
mod service;
mod service_export;

use k8s_openapi::api::core::v1 as core;

use crate::resource::FieldError;

pub use endpoint_slice::{Endpoint, EndpointPort, EndpointSlice};
pub use node::Node;
pub use pod::Pod;
pub use policy::{AccessPolicy, FailoverPolicy};
pub use service::{Service, ServiceKind};
pub use service_export::ServiceExport;

/// A v1 Namespace: that it exists is all that matters.
///
/// # Errors
/// Its name is missing or no RFC 1123 label.
pub fn namespace(namespace: &core::Namespace) -> Result<federation::Namespace, FieldError> {
    let name = metadata::name(&namespace.metadata)?;
    name.parse().map_err(|error| FieldError { field: "metadata.name".to_owned(), what: format!("{error}") })
}
