//! What a signed record is about.

use std::fmt;
use std::str::FromStr;

use crate::name::{NameError, Namespace, ServiceId};

/// A record's key within its cluster's records, written as in the store's layout without the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// `exports/<namespace>/<service>`
    Export(ServiceId),
    /// `slices/<namespace>/<service>/<slice>`
    Slice(ServiceId, String),
    /// `gateways`
    Gateways,
    /// `bundle`
    Bundle,
    /// `heads`
    Heads,
    /// `membership`: said once, to trust-bundle, by a member that leaves.
    Membership,
}

/// A text that is no record key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} is no record key")]
pub struct RecordKeyError {
    key: String,
    #[source]
    source: Option<NameError>,
}

impl RecordKey {
    /// The namespace that the record belongs to, if to one.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Export(service) | Self::Slice(service, _) => Some(&service.namespace),
            Self::Gateways | Self::Bundle | Self::Heads | Self::Membership => None,
        }
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Export(service) => write!(formatter, "exports/{service}"),
            Self::Slice(service, slice) => write!(formatter, "slices/{service}/{slice}"),
            Self::Gateways => formatter.write_str("gateways"),
            Self::Bundle => formatter.write_str("bundle"),
            Self::Heads => formatter.write_str("heads"),
            Self::Membership => formatter.write_str("membership"),
        }
    }
}

impl FromStr for RecordKey {
    type Err = RecordKeyError;

    fn from_str(text: &str) -> Result<Self, RecordKeyError> {
        let error = |source| RecordKeyError { key: text.chars().take(300).collect(), source };
        let service = |namespace, name| ServiceId::parse_parts(namespace, name).map_err(|source| error(Some(source)));
        match text.split('/').collect::<Vec<_>>().as_slice() {
            ["gateways"] => Ok(Self::Gateways),
            ["bundle"] => Ok(Self::Bundle),
            ["heads"] => Ok(Self::Heads),
            ["membership"] => Ok(Self::Membership),
            ["exports", namespace, name] => Ok(Self::Export(service(namespace, name)?)),
            ["slices", namespace, name, slice] if is_object_name(slice) => {
                Ok(Self::Slice(service(namespace, name)?, (*slice).to_owned()))
            }
            _ => Err(error(None)),
        }
    }
}

/// A Kubernetes object name: an RFC 1123 subdomain.
fn is_object_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| Namespace::parse(label).is_ok())
}
