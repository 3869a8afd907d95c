//! One object of a kind that matters here.

use std::fmt;

use federation::{Namespace, ServiceId};

use crate::pruned::{AccessPolicy, EndpointSlice, FailoverPolicy, Node, Pod, Service, ServiceExport};

/// A field that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct FieldError {
    /// Its path, such as `spec.ports[1].port`.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
}

impl FieldError {
    /// An error at `field`.
    pub(crate) fn new(field: impl Into<String>, what: impl fmt::Display) -> Self {
        Self { field: field.into(), what: what.to_string() }
    }
}

/// The kinds that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1 Namespace
    Namespace,
    /// v1 Node
    Node,
    /// v1 Pod
    Pod,
    /// v1 Service
    Service,
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlice,
    /// multicluster.x-k8s.io ServiceExport
    ServiceExport,
    /// isthmus.dev FailoverPolicy
    FailoverPolicy,
    /// isthmus.dev AccessPolicy
    AccessPolicy,
}

impl Kind {
    /// The kind of a manifest's `apiVersion` and `kind`, if it matters here.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Some(match (api_version, kind) {
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "Node") => Self::Node,
            ("v1", "Pod") => Self::Pod,
            ("v1", "Service") => Self::Service,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::EndpointSlice,
            ("multicluster.x-k8s.io/v1beta1" | "multicluster.x-k8s.io/v1alpha1", "ServiceExport") => {
                Self::ServiceExport
            }
            ("isthmus.dev/v1alpha1", "FailoverPolicy") => Self::FailoverPolicy,
            ("isthmus.dev/v1alpha1", "AccessPolicy") => Self::AccessPolicy,
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for kinds without.
    pub namespace: Option<Namespace>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
            None => write!(formatter, "{} {}", self.kind, self.name),
        }
    }
}

/// An object, with only what a control-plane needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Exists, and may have opted in.
    Namespace(crate::pruned::Namespace),
    /// A node's place.
    Node(Node),
    /// A pod's identity.
    Pod(Pod),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
    /// The wish to export a service.
    ServiceExport(ServiceExport),
    /// Where traffic of imports goes.
    FailoverPolicy(FailoverPolicy),
    /// Who may call.
    AccessPolicy(AccessPolicy),
}

impl Resource {
    /// What identifies it.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        let named = |kind, id: &ServiceId| ResourceKey {
            kind,
            namespace: Some(id.namespace.clone()),
            name: id.name.as_str().to_owned(),
        };
        match self {
            Self::Namespace(namespace) => {
                ResourceKey { kind: Kind::Namespace, namespace: None, name: namespace.name.as_str().to_owned() }
            }
            Self::Node(node) => ResourceKey { kind: Kind::Node, namespace: None, name: node.name.clone() },
            Self::Pod(pod) => {
                ResourceKey { kind: Kind::Pod, namespace: Some(pod.namespace.clone()), name: pod.name.clone() }
            }
            Self::Service(service) => named(Kind::Service, &service.id),
            Self::EndpointSlice(slice) => ResourceKey {
                kind: Kind::EndpointSlice,
                namespace: Some(slice.namespace.clone()),
                name: slice.name.clone(),
            },
            Self::ServiceExport(export) => named(Kind::ServiceExport, &export.id),
            Self::FailoverPolicy(policy) => ResourceKey {
                kind: Kind::FailoverPolicy,
                namespace: Some(policy.namespace.clone()),
                name: policy.name.clone(),
            },
            Self::AccessPolicy(policy) => ResourceKey {
                kind: Kind::AccessPolicy,
                namespace: Some(policy.namespace.clone()),
                name: policy.name.clone(),
            },
        }
    }
}
