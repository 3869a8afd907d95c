//! Names: RFC 1123 labels, service hosts, the federation's domain.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The suffix of every service host, KEP-1645's clusterset zone below `svc`.
pub const CLUSTERSET_SUFFIX: &str = ".svc.clusterset.local";

/// The suffix of a service's host name in its own cluster.
pub const CLUSTER_SUFFIX: &str = ".svc.cluster.local";

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or longer than the limit in bytes.
    #[error("{name:?} has {} bytes, allowed are 1 to {limit}", name.len())]
    Length {
        /// What was given.
        name: String,
        /// The most bytes allowed.
        limit: usize,
    },
    /// Not lower-case alphanumeric or '-', or a '-' at an end (RFC 1123).
    #[error("{0:?} is no RFC 1123 label: lower-case letters, digits and inner '-' only")]
    Label(String),
    /// Not `<name>.<namespace>.svc.clusterset.local`.
    #[error("{0:?} is not of the form <name>.<namespace>.svc.clusterset.local")]
    Host(String),
    /// Not `<namespace>/<name>`.
    #[error("{0:?} is not of the form <namespace>/<name>")]
    ServiceId(String),
}

fn check_label(text: &str) -> Result<(), NameError> {
    if text.is_empty() || text.len() > 63 {
        return Err(NameError::Length { name: text.to_owned(), limit: 63 });
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.bytes().all(inner) || text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::Label(text.to_owned()));
    }
    Ok(())
}

fn check_subdomain(text: &str, limit: usize) -> Result<(), NameError> {
    if text.is_empty() || text.len() > limit {
        return Err(NameError::Length { name: text.to_owned(), limit });
    }
    text.split('.').try_for_each(check_label)
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(std::sync::Arc<str>);

        impl $type {
            /// Parses a name.
            ///
            /// # Errors
            /// [`NameError`] says which rule the text breaks.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.as_str().to_owned()
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), formatter)
            }
        }
    };
}

name!(
    /// A member cluster: one RFC 1123 label.
    ClusterName,
    check_label
);
name!(
    /// A Kubernetes namespace: one RFC 1123 label. Sameness across clusters is by name (KEP-1645).
    Namespace,
    check_label
);
name!(
    /// A Kubernetes Service's name: one label.
    ServiceName,
    check_label
);
name!(
    /// The federation's domain, which is also its own trust domain: an RFC 1123 subdomain of at most 190 bytes, so that
    /// `<cluster>.<domain>` stays a trust domain.
    FederationDomain,
    |text| check_subdomain(text, 190)
);

impl FederationDomain {
    /// The trust domain of a member: `<cluster>.<federation domain>`.
    #[must_use]
    pub fn trust_domain(&self, cluster: &ClusterName) -> String {
        format!("{cluster}.{self}")
    }

    /// The member that a trust domain belongs to, if it is one of this federation.
    #[must_use]
    pub fn cluster_of(&self, trust_domain: &str) -> Option<ClusterName> {
        let label = trust_domain.strip_suffix(self.as_str())?.strip_suffix('.')?;
        ClusterName::parse(label).ok()
    }
}

/// A service by namespace and name, the same in every cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ServiceName,
}

impl ServiceId {
    /// A service from its parsed parts.
    #[must_use]
    pub fn new(namespace: Namespace, name: ServiceName) -> Self {
        Self { namespace, name }
    }

    /// A service from the texts of its parts.
    ///
    /// # Errors
    /// [`NameError`] when one of them is no label.
    pub fn parse_parts(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }

    /// Its clusterset host name.
    #[must_use]
    pub fn host(&self) -> ServiceHost {
        ServiceHost(self.clone())
    }

    /// Its host name in its own cluster.
    #[must_use]
    pub fn local_host(&self) -> MeshHost {
        MeshHost::Local(self.clone())
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| NameError::ServiceId(text.to_owned()))?;
        Self::parse_parts(namespace, name)
    }
}

/// `<name>.<namespace>.svc.clusterset.local`, compared without case when parsed, a trailing dot ignored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceHost(ServiceId);

impl ServiceHost {
    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceId {
        &self.0
    }
}

impl fmt::Display for ServiceHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}{CLUSTERSET_SUFFIX}", self.0.name, self.0.namespace)
    }
}

impl FromStr for ServiceHost {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_host(text, CLUSTERSET_SUFFIX).map(ServiceHost)
    }
}

fn parse_host(text: &str, suffix: &str) -> Result<ServiceId, NameError> {
    let error = || NameError::Host(text.to_owned());
    if text.len() > 254 {
        return Err(NameError::Length { name: text.chars().take(80).collect(), limit: 254 });
    }
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    let (name, namespace) = lower.strip_suffix(suffix).and_then(|rest| rest.split_once('.')).ok_or_else(error)?;
    ServiceId::parse_parts(namespace, name).map_err(|_| error())
}

/// A host name that sidecars have sessions for: a service of the clusterset, or one of their own cluster whose namespace has
/// opted in. Whatever leaves the cluster (exports, routes of gateways, `clusterset.local`'s zone) speaks of [`ServiceHost`] alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeshHost {
    /// `<name>.<namespace>.svc.clusterset.local`
    ClusterSet(ServiceHost),
    /// `<name>.<namespace>.svc.cluster.local`
    Local(ServiceId),
}

impl MeshHost {
    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceId {
        match self {
            Self::ClusterSet(host) => host.service(),
            Self::Local(service) => service,
        }
    }

    /// Whether it is a service of the own cluster alone.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }

    /// For logs and metrics: `<namespace>/<name>` of the clusterset's services, the host name of the own cluster's.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::ClusterSet(host) => host.service().to_string(),
            Self::Local(_) => self.to_string(),
        }
    }
}

impl From<ServiceHost> for MeshHost {
    fn from(host: ServiceHost) -> Self {
        Self::ClusterSet(host)
    }
}

impl fmt::Display for MeshHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterSet(host) => host.fmt(formatter),
            Self::Local(service) => write!(formatter, "{}.{}{CLUSTER_SUFFIX}", service.name, service.namespace),
        }
    }
}

impl FromStr for MeshHost {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match parse_host(text, CLUSTER_SUFFIX) {
            Ok(service) => Ok(Self::Local(service)),
            Err(_) => text.parse().map(Self::ClusterSet),
        }
    }
}
