//! Names: RFC 1123 labels, service hosts, the federation's domain.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The suffix of every service host, KEP-1645's clusterset zone below `svc`.
pub const CLUSTERSET_SUFFIX: &str = ".svc.clusterset.local";

/// The suffix of a service's host name in its own cluster.
pub const CLUSTER_SUFFIX: &str = ".svc.cluster.local";

/// The most bytes of a TLS server name, which is a host name of RFC 1035 without its last dot.
const MAX_SERVER_NAME: usize = 253;

/// Bytes that a server name has before its host at most, besides the cluster's name.
const LONGEST_PREFIX: usize = "outbound_.65535_.c-.e-65535_.".len();

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
    /// Neither `<name>.<namespace>.svc.clusterset.local` nor the host of a headless endpoint below it.
    #[error("{0:?} is not of the form [<hostname>.<cluster>.]<name>.<namespace>.svc.clusterset.local")]
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
    /// What an endpoint of a headless service is called below its cluster: one label, its host name or its dashed address.
    HostLabel,
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
        ServiceHost { service: self.clone(), endpoint: None }
    }

    /// The host name of one of its endpoints; it is headless.
    ///
    /// # Errors
    /// [`NameError::Length`] where the names are so long together that no [`crate::Sni`] could carry the host.
    pub fn endpoint_host(&self, cluster: ClusterName, hostname: HostLabel) -> Result<ServiceHost, NameError> {
        let limit = MAX_SERVER_NAME - LONGEST_PREFIX - cluster.as_str().len();
        let labels = [hostname.as_str(), cluster.as_str(), self.name.as_str(), self.namespace.as_str()];
        let bytes = labels.map(str::len).iter().sum::<usize>() + labels.len() - 1 + CLUSTERSET_SUFFIX.len();
        let host = ServiceHost { service: self.clone(), endpoint: Some((cluster, hostname)) };
        if bytes > limit { Err(NameError::Length { name: host.to_string(), limit }) } else { Ok(host) }
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

/// `<name>.<namespace>.svc.clusterset.local` of a service, or `<hostname>.<cluster>.<name>.<namespace>.svc.clusterset.local` of
/// one endpoint of a headless one; compared without case when parsed, a trailing dot ignored.
///
/// Ordered by service: its own host first, then its endpoints'.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceHost {
    service: ServiceId,
    endpoint: Option<(ClusterName, HostLabel)>,
}

impl ServiceHost {
    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceId {
        &self.service
    }

    /// The endpoint's cluster and its label there; `None`: the host of the whole service.
    #[must_use]
    pub fn endpoint(&self) -> Option<(&ClusterName, &HostLabel)> {
        self.endpoint.as_ref().map(|(cluster, hostname)| (cluster, hostname))
    }
}

impl fmt::Display for ServiceHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((cluster, hostname)) = &self.endpoint {
            write!(formatter, "{hostname}.{cluster}.")?;
        }
        write!(formatter, "{}.{}{CLUSTERSET_SUFFIX}", self.service.name, self.service.namespace)
    }
}

impl FromStr for ServiceHost {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::Host(text.to_owned());
        let lower = lower_host(text)?;
        let labels = lower.strip_suffix(CLUSTERSET_SUFFIX).ok_or_else(error)?;
        let parsed = match labels.split('.').collect::<Vec<_>>()[..] {
            [name, namespace] => ServiceId::parse_parts(namespace, name).map(|service| service.host()),
            [hostname, cluster, name, namespace] => ServiceId::parse_parts(namespace, name)
                .and_then(|service| service.endpoint_host(cluster.parse()?, hostname.parse()?)),
            _ => return Err(error()),
        };
        parsed.map_err(|_| error())
    }
}

/// A host name in lower case, without a trailing dot.
fn lower_host(text: &str) -> Result<String, NameError> {
    if text.len() > 254 {
        return Err(NameError::Length { name: text.chars().take(80).collect(), limit: 254 });
    }
    let mut lower = text.to_ascii_lowercase();
    if lower.ends_with('.') {
        lower.pop();
    }
    Ok(lower)
}

fn parse_local_host(text: &str) -> Result<ServiceId, NameError> {
    let error = || NameError::Host(text.to_owned());
    let lower = lower_host(text)?;
    let (name, namespace) =
        lower.strip_suffix(CLUSTER_SUFFIX).and_then(|rest| rest.split_once('.')).ok_or_else(error)?;
    ServiceId::parse_parts(namespace, name).map_err(|_| error())
}

/// A host name that sidecars have sessions for: a service of the clusterset (or an endpoint of a headless one), or a service of
/// their own cluster whose namespace has opted in. Whatever leaves the cluster (exports, routes of gateways, `clusterset.local`'s zone) speaks of [`ServiceHost`] alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeshHost {
    /// `[<hostname>.<cluster>.]<name>.<namespace>.svc.clusterset.local`
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

    /// Whether a session for this host is for requests to `asked` too: the name of a headless service stands for each of its
    /// endpoints.
    #[must_use]
    pub fn answers_to(&self, asked: &Self) -> bool {
        match (self, asked) {
            (Self::ClusterSet(own), Self::ClusterSet(asked)) if asked.endpoint.is_none() => {
                own.service == asked.service
            }
            _ => self == asked,
        }
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
        match parse_local_host(text) {
            Ok(service) => Ok(Self::Local(service)),
            Err(_) => text.parse().map(Self::ClusterSet),
        }
    }
}
