//! Who has a say in the federation, and who was shut out of it.

use federation::ClusterName;
use federation_api::verify::DenyList;
use spiffe_identity::SpiffeId;

/// Why somebody with a valid certificate, or a valid token, is refused all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShutOut {
    /// No identity of the federation's plane.
    #[error("{0} has no part in the federation")]
    Stranger(SpiffeId),
    /// There is no such member.
    #[error("cluster {0} is no member")]
    NoMember(String),
    /// The operator quarantined the cluster.
    #[error("cluster {0} is quarantined")]
    Quarantined(ClusterName),
    /// The operator quarantined this one identity.
    #[error("{0} is quarantined")]
    Denied(SpiffeId),
    /// The operator ended this membership.
    #[error("generation {generation} of cluster {cluster} was evicted: it takes a new token to come back")]
    Evicted {
        /// The cluster.
        cluster: ClusterName,
        /// The membership that ended.
        generation: u64,
    },
    /// The member ended this membership.
    #[error("generation {generation} of cluster {cluster} has left: it takes a new token to come back")]
    Left {
        /// The cluster.
        cluster: ClusterName,
        /// The membership that ended.
        generation: u64,
    },
    /// Another membership of the cluster stands.
    #[error("generation {held} of cluster {cluster} was replaced by generation {by}")]
    Replaced {
        /// The cluster.
        cluster: ClusterName,
        /// The membership that the certificate was issued for.
        held: u64,
        /// The one that stands.
        by: u64,
    },
    /// The certificate says nothing of a membership, so nobody knows whether that one stands.
    #[error("the certificate of {0} was issued for no membership")]
    Unmarked(SpiffeId),
    /// This replica does not know the membership yet.
    #[error("generation {generation} of cluster {cluster} is not known here yet")]
    Unknown {
        /// The cluster.
        cluster: ClusterName,
        /// The membership that the certificate was issued for.
        generation: u64,
    },
}

/// Whether the deny-list leaves a membership alone.
///
/// # Errors
/// [`ShutOut::Quarantined`], [`ShutOut::Evicted`]
pub fn check_membership(list: Option<&DenyList>, cluster: &ClusterName, generation: u64) -> Result<(), ShutOut> {
    let Some(list) = list else { return Ok(()) };
    if list.quarantines(cluster) {
        return Err(ShutOut::Quarantined(cluster.clone()));
    }
    if list.evicts(cluster, generation) {
        return Err(ShutOut::Evicted { cluster: cluster.clone(), generation });
    }
    Ok(())
}

/// Whether the deny-list leaves an identity alone.
///
/// # Errors
/// [`ShutOut::Denied`]
pub fn check_identity(list: Option<&DenyList>, id: &SpiffeId) -> Result<(), ShutOut> {
    match list {
        Some(list) if list.denies(&id.to_string()) => Err(ShutOut::Denied(id.clone())),
        _ => Ok(()),
    }
}

/// What a control-plane's certificate says of the membership that it was issued for. The service writes it into the
/// certificate and is the only one to read it: no record of the certificates is needed to know an old one.
#[must_use]
pub fn mark(generation: u64) -> String {
    format!("generation {generation}")
}

/// The membership that a certificate (DER) was issued for.
#[must_use]
pub fn marked_generation(leaf: &[u8]) -> Option<u64> {
    svid_issuer::mark(leaf)?.strip_prefix("generation ")?.parse().ok()
}
