//! Who is shut out of the federation, under the membership root.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use federation::{ClusterName, FederationDomain};
use prost::Message as _;

use crate::convert::{ConvertError, at_most, shown};
use crate::record::v1::{self as wire, Signed};
use crate::signing::{PublicKey, Purpose};
use crate::unix;

/// Entries of one list.
const MAX_ENTRIES: usize = 10_000;
/// SPIFFE's own limit on the length of an ID.
const MAX_SPIFFE_ID_BYTES: usize = 2_048;

/// Why a deny-list is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenyListError {
    /// Not signed by the membership root.
    #[error("the deny-list's signature does not hold")]
    Signature,
    /// Signed, but not decodable.
    #[error("the deny-list cannot be decoded")]
    Decode,
    /// Of another federation.
    #[error("the deny-list is of federation {0}")]
    Federation(String),
    /// A value that is none.
    #[error(transparent)]
    Field(#[from] ConvertError),
}

/// Why a deny-list does not follow the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSuccessor {
    /// Of before.
    #[error("epoch {offered} is older than {in_force}, the one in force")]
    Older {
        /// Its epoch.
        offered: u64,
        /// That of the list in force.
        in_force: u64,
    },
    /// Both are the membership root's, of one epoch, and shut out others: whoever serves them tells each what it likes.
    #[error("another list of epoch {0} is in force")]
    Equivocation(u64),
}

/// A verified deny-list. Of two, the one with the higher epoch counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyList {
    federation: FederationDomain,
    /// Only grows.
    pub epoch: u64,
    /// Quarantined clusters.
    pub clusters: BTreeSet<ClusterName>,
    /// Quarantined identities.
    pub spiffe_ids: BTreeSet<String>,
    /// Evicted memberships: the last generation of each cluster that is void.
    pub evictions: BTreeMap<ClusterName, u64>,
    /// When the operator signed it.
    pub issued: SystemTime,
}

impl DenyList {
    /// Nobody is shut out: what holds before the first list was signed.
    #[must_use]
    pub fn empty(federation: FederationDomain) -> Self {
        Self {
            federation,
            epoch: 0,
            clusters: BTreeSet::new(),
            spiffe_ids: BTreeSet::new(),
            evictions: BTreeMap::new(),
            issued: SystemTime::UNIX_EPOCH,
        }
    }

    /// Whether this list may take the place of the one in force: a later one, or the same again.
    ///
    /// # Errors
    /// [`NoSuccessor`]; the list in force stays.
    pub fn follows(&self, in_force: &Self) -> Result<(), NoSuccessor> {
        let same = (&self.clusters, &self.spiffe_ids, &self.evictions)
            == (&in_force.clusters, &in_force.spiffe_ids, &in_force.evictions);
        match self.epoch.cmp(&in_force.epoch) {
            Ordering::Less => Err(NoSuccessor::Older { offered: self.epoch, in_force: in_force.epoch }),
            Ordering::Equal if !same => Err(NoSuccessor::Equivocation(self.epoch)),
            Ordering::Equal | Ordering::Greater => Ok(()),
        }
    }

    /// Whether nothing of the cluster is believed for now.
    #[must_use]
    pub fn quarantines(&self, cluster: &ClusterName) -> bool {
        self.clusters.contains(cluster)
    }

    /// Whether this membership is void for ever.
    #[must_use]
    pub fn evicts(&self, cluster: &ClusterName, generation: u64) -> bool {
        self.evictions.get(cluster).is_some_and(|through| generation <= *through)
    }

    /// Whether a peer with this SPIFFE ID is refused: for itself, as an identity of a quarantined cluster's trust domain,
    /// or as such a cluster's control-plane.
    #[must_use]
    pub fn denies(&self, spiffe_id: &str) -> bool {
        self.spiffe_ids.contains(spiffe_id) || self.cluster_of(spiffe_id).is_some_and(|it| self.quarantines(&it))
    }

    fn cluster_of(&self, spiffe_id: &str) -> Option<ClusterName> {
        let (trust_domain, path) = spiffe_id.strip_prefix("spiffe://")?.split_once('/')?;
        if trust_domain == self.federation.as_str() {
            return path.strip_prefix("cluster/")?.split('/').next()?.parse().ok();
        }
        self.federation.cluster_of(trust_domain)
    }

    /// As a message, to be signed by [`crate::signing::MembershipRoot::deny`].
    #[must_use]
    pub fn to_wire(&self) -> wire::DenyList {
        let eviction = |(cluster, generation): (&ClusterName, &u64)| wire::Eviction {
            cluster: cluster.to_string(),
            generation: *generation,
        };
        wire::DenyList {
            federation: self.federation.to_string(),
            epoch: self.epoch,
            clusters: self.clusters.iter().map(ToString::to_string).collect(),
            spiffe_ids: self.spiffe_ids.iter().cloned().collect(),
            evictions: self.evictions.iter().map(eviction).collect(),
            issued_at_ms: unix::milliseconds(self.issued),
        }
    }
}

/// Verifies a deny-list under the membership root.
///
/// # Errors
/// [`DenyListError`]; the list that was believed before stays in force.
pub fn verify_deny_list(
    root: &PublicKey,
    federation: &FederationDomain,
    signed: &Signed,
) -> Result<DenyList, DenyListError> {
    if !root.verifies(Purpose::DenyList, signed) {
        return Err(DenyListError::Signature);
    }
    let list = wire::DenyList::decode(signed.message.as_ref()).map_err(|_| DenyListError::Decode)?;
    if list.federation != federation.as_str() {
        return Err(DenyListError::Federation(shown(&list.federation)));
    }
    at_most("clusters", &list.clusters, MAX_ENTRIES)?;
    at_most("spiffe_ids", &list.spiffe_ids, MAX_ENTRIES)?;
    at_most("evictions", &list.evictions, MAX_ENTRIES)?;
    let cluster = |field: &str, text: &str| text.parse().map_err(|error| ConvertError::new(field, error));
    if let Some(id) = list.spiffe_ids.iter().find(|id| id.len() > MAX_SPIFFE_ID_BYTES || !id.starts_with("spiffe://")) {
        return Err(ConvertError::new("spiffe_ids", format!("{} is no SPIFFE ID", shown(id))).into());
    }
    let mut evictions = BTreeMap::new();
    for eviction in &list.evictions {
        let through: &mut u64 = evictions.entry(cluster("evictions.cluster", &eviction.cluster)?).or_default();
        *through = eviction.generation.max(*through);
    }
    Ok(DenyList {
        federation: federation.clone(),
        epoch: list.epoch,
        clusters: list.clusters.iter().map(|text| cluster("clusters", text)).collect::<Result<_, _>>()?,
        spiffe_ids: list.spiffe_ids.into_iter().collect(),
        evictions,
        issued: unix::from_milliseconds(list.issued_at_ms),
    })
}
