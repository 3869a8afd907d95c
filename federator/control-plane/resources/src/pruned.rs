//! The parts of each kind that a control-plane needs, parsed from the whole objects.
//!
//! Both sources, manifests and the Kubernetes API, go through these conversions: what an API server would refuse is an
//! error with the field's path.

mod endpoint_slice;
mod metadata;
mod namespace;
mod node;
mod pod;
mod policy;
mod service;
mod service_export;

pub use endpoint_slice::{Endpoint, EndpointPort, EndpointSlice};
pub use namespace::Namespace;
pub use node::Node;
pub use pod::Pod;
pub use policy::{AccessPolicy, FailoverPolicy};
pub use service::{Service, ServiceKind};
pub use service_export::ServiceExport;
