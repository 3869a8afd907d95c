//! The trust state: members, departures, bundles and the deny-list as the store tells them, and what a watcher lacks of it.
//!
//! A stored value counts only as far as it verifies and is not older than what is known. Whatever else turns up under its
//! key, the last good value stays, and so does that of a key that is deleted: a membership ends by a signed word alone,
//! its own or the operator's.

mod follow;

use std::collections::BTreeMap;
use std::sync::Arc;

use federation::ClusterName;
use federation_api::record::v1::{Member, Signed};
use federation_api::trust::v1::{StoredAuthority, WatchResponse};
use federation_api::verify::{DenyList, NoSuccessor, VerifiedMember};
use federation_store::{Entry, Revision, layout};
use prost::Message;
use spiffe_identity::{Bundle, PlaneRole, SpiffeId, TrustDomain};

pub use follow::{Loaded, load, publish};

use crate::authority::{AuthorityLag, PlaneAuthority};
use crate::standing::{ShutOut, check_identity, check_membership};
use crate::verify::{VerifiedBundle, Verifier, VerifyError};

/// Why a stored value changes nothing.
#[derive(Debug, thiserror::Error)]
enum Ignored {
    #[error(transparent)]
    Unverified(#[from] VerifyError),
    #[error("it is of cluster {0}")]
    Misplaced(ClusterName),
    #[error("it is the bundle of no member")]
    NoMember,
    #[error("it is older than what is known")]
    Older,
    #[error(transparent)]
    Lag(#[from] AuthorityLag),
    #[error(transparent)]
    DenyList(#[from] NoSuccessor),
    #[error("generation {0} has left")]
    Left(u64),
}

/// An envelope as it was signed, what it says, and the revision that stored it.
#[derive(Debug)]
struct Known<E, V> {
    revision: Revision,
    envelope: E,
    verified: V,
}

/// Everything a watcher may learn, immutable and verified.
#[derive(Debug, Default, Clone)]
pub struct TrustState {
    incarnation: String,
    epoch: Revision,
    members: BTreeMap<ClusterName, Arc<Known<Member, VerifiedMember>>>,
    bundles: BTreeMap<ClusterName, Arc<Known<Signed, VerifiedBundle>>>,
    /// By which generation of a cluster left, until it is a member again.
    departures: BTreeMap<ClusterName, Arc<Known<Signed, u64>>>,
    deny_list: Option<Arc<Known<Signed, DenyList>>>,
    /// The roots of the federation's own authority, once the store says which; until then the folder alone does.
    roots: Option<Arc<Known<StoredAuthority, Vec<Vec<u8>>>>>,
    /// What the store says of the authority while this replica's folder says otherwise.
    unfollowed: Option<Entry>,
}

impl TrustState {
    /// The number that watchers acknowledge: the store's revision of the last change to this state.
    #[must_use]
    pub fn epoch(&self) -> Revision {
        self.epoch
    }

    /// Which history the epoch belongs to.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// A member by its cluster's name, quarantined or not.
    #[must_use]
    pub fn member(&self, cluster: &str) -> Option<&VerifiedMember> {
        self.members.get(cluster).map(|known| &known.verified)
    }

    /// The names of all members, quarantined or not.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &ClusterName> {
        self.members.keys()
    }

    /// A member as it joined, quarantined or not.
    #[must_use]
    pub fn member_envelope(&self, cluster: &ClusterName) -> Option<&Member> {
        self.members.get(cluster).map(|known| &known.envelope)
    }

    /// The generation by which a cluster left, until it is a member again.
    #[must_use]
    pub fn left(&self, cluster: &str) -> Option<u64> {
        self.departures.get(cluster).map(|known| known.verified)
    }

    /// A cluster's bundle as it was signed.
    #[must_use]
    pub fn bundle_envelope(&self, cluster: &ClusterName) -> Option<&Signed> {
        self.bundles.get(cluster).map(|known| &known.envelope)
    }

    /// The deny-list as it was signed.
    #[must_use]
    pub fn deny_list_envelope(&self) -> Option<&Signed> {
        self.deny_list.as_ref().map(|known| &known.envelope)
    }

    /// A cluster's bundle.
    #[must_use]
    pub fn bundle(&self, cluster: &str) -> Option<&VerifiedBundle> {
        self.bundles.get(cluster).map(|known| &known.verified)
    }

    /// The bundles of all members, quarantined or not.
    pub fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        self.bundles.values().map(|known| &known.verified.bundle)
    }

    /// The trust domains with a bundle.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.bundles().map(|bundle| &bundle.trust_domain)
    }

    /// The deny-list, if there ever was one.
    #[must_use]
    pub fn deny_list(&self) -> Option<&DenyList> {
        self.deny_list.as_ref().map(|known| &known.verified)
    }

    /// The roots of the federation's own authority, DER, when the store says which.
    #[must_use]
    pub fn federation_roots(&self) -> Option<&Vec<Vec<u8>>> {
        self.roots.as_ref().map(|known| &known.verified)
    }

    /// Whether this replica's folder is not the federation's authority, or not yet.
    #[must_use]
    pub fn lags(&self) -> bool {
        self.unfollowed.is_some()
    }

    /// Whether the holder of this identity has a say in `federation`: an operator, a service, or the control-plane of a
    /// member, and none that the operator shut out. A control-plane's certificate must have been issued for the membership
    /// that stands; `held` is the one it was issued for.
    ///
    /// # Errors
    /// [`ShutOut`] says why not.
    pub fn admits(&self, id: &SpiffeId, held: Option<u64>, federation: &TrustDomain) -> Result<(), ShutOut> {
        let role = id.role_in(federation).ok_or_else(|| ShutOut::Stranger(id.clone()))?;
        if let PlaneRole::ControlPlane { cluster } = role {
            self.check_standing(id, cluster, held)?;
        }
        check_identity(self.deny_list(), id)
    }

    /// Whether anything is to be expected of the holder of this identity, whichever certificate it holds.
    #[must_use]
    pub fn expects(&self, id: &SpiffeId, federation: &TrustDomain) -> bool {
        let held = match id.role_in(federation) {
            Some(PlaneRole::ControlPlane { cluster }) => self.member(cluster).map(VerifiedMember::generation),
            _ => None,
        };
        self.admits(id, held, federation).is_ok()
    }

    fn check_standing(&self, id: &SpiffeId, name: &str, held: Option<u64>) -> Result<(), ShutOut> {
        let no_member = || ShutOut::NoMember(name.to_owned());
        let cluster: ClusterName = name.parse().map_err(|_| no_member())?;
        let held = held.ok_or_else(|| ShutOut::Unmarked(id.clone()))?;
        check_membership(self.deny_list(), &cluster, held)?;
        let Some(member) = self.member(name) else {
            return Err(match self.left(name) {
                Some(generation) if generation >= held => ShutOut::Left { cluster, generation },
                Some(_) => ShutOut::Unknown { cluster, generation: held },
                None => no_member(),
            });
        };
        match member.generation() {
            by if by > held => Err(ShutOut::Replaced { cluster, held, by }),
            by if by < held => Err(ShutOut::Unknown { cluster, generation: held }),
            _ => Ok(()),
        }
    }

    /// Whether somebody who has applied `epoch` of `incarnation` can be told only what changed since.
    #[must_use]
    pub fn knows(&self, incarnation: &str, epoch: Revision) -> bool {
        incarnation == self.incarnation && (1..=self.epoch).contains(&epoch)
    }

    /// What somebody who has applied `cursor` (or nothing: `None`) lacks; `None` when that is nothing.
    #[must_use]
    pub fn since(&self, cursor: Option<Revision>) -> Option<WatchResponse> {
        if cursor == Some(self.epoch) {
            return None;
        }
        let newer = cursor.unwrap_or(0);
        let members = self.members.values().filter(|known| known.revision > newer);
        let bundles = self.bundles.values().filter(|known| known.revision > newer);
        let departures = self.departures.values().filter(|known| known.revision > newer);
        let deny_list = self.deny_list.as_ref().filter(|known| known.revision > newer);
        let roots = self.roots.as_ref().filter(|known| known.revision > newer);
        Some(WatchResponse {
            full: cursor.is_none(),
            members: members.map(|known| known.envelope.clone()).collect(),
            bundles: bundles.map(|known| known.envelope.clone()).collect(),
            deny_list: deny_list.map(|known| known.envelope.clone()),
            federation_roots: roots.map(|known| known.verified.clone()).unwrap_or_default(),
            departures: departures.map(|known| known.envelope.clone()).collect(),
            ..self.nothing_new()
        })
    }

    /// An answer to somebody who lacks nothing.
    #[must_use]
    pub fn nothing_new(&self) -> WatchResponse {
        WatchResponse { incarnation: self.incarnation.clone(), epoch: self.epoch, ..WatchResponse::default() }
    }

    /// Takes a stored value; says whether it changed anything.
    fn take(&mut self, verifier: &Verifier, authority: &PlaneAuthority, entry: &Entry) -> Result<bool, Ignored> {
        let changed = if let Some(cluster) = layout::name_below(layout::MEMBERS, &entry.key) {
            self.take_member(verifier, cluster, entry)?
        } else if let Some(trust_domain) = layout::name_below(layout::BUNDLES, &entry.key) {
            self.take_bundle(verifier, trust_domain, entry)?
        } else if let Some(cluster) = layout::name_below(layout::DEPARTURES, &entry.key) {
            self.take_departure(verifier, cluster, entry)?
        } else if entry.key == layout::QUARANTINE {
            self.take_deny_list(verifier, entry)?
        } else if entry.key == layout::AUTHORITY_STATE {
            self.take_authority(authority, entry)?
        } else {
            false
        };
        if changed {
            self.epoch = self.epoch.max(entry.modified);
        }
        Ok(changed)
    }

    fn take_member(&mut self, verifier: &Verifier, cluster: &str, entry: &Entry) -> Result<bool, Ignored> {
        let known = self.members.get(cluster);
        if known.is_some_and(|known| known.revision >= entry.modified) {
            return Ok(false);
        }
        let (envelope, verified) = verifier.stored_member(&entry.value)?;
        if verified.cluster().as_str() != cluster {
            return Err(Ignored::Misplaced(verified.cluster().clone()));
        }
        if known.is_some_and(|known| known.verified != verified && !verified.supersedes(&known.verified)) {
            return Err(Ignored::Older);
        }
        let cluster = verified.cluster().clone();
        if self.is_evicted(&verified) {
            return Ok(false);
        }
        match self.left(cluster.as_str()) {
            Some(left) if left >= verified.generation() => return Err(Ignored::Left(left)),
            _ => {}
        }
        self.departures.remove(&cluster);
        self.members.insert(cluster, Arc::new(Known { revision: entry.modified, envelope, verified }));
        Ok(true)
    }

    fn take_bundle(&mut self, verifier: &Verifier, trust_domain: &str, entry: &Entry) -> Result<bool, Ignored> {
        let cluster = verifier.cluster_of(trust_domain).ok_or(Ignored::NoMember)?;
        let known = self.bundles.get(&cluster);
        if known.is_some_and(|known| known.revision >= entry.modified) {
            return Ok(false);
        }
        let Some(member) = self.members.get(&cluster) else {
            let gone = self.left(cluster.as_str()).is_some()
                || self.deny_list().is_some_and(|list| list.evictions.contains_key(&cluster));
            return if gone { Ok(false) } else { Err(Ignored::NoMember) };
        };
        let (envelope, verified) = verifier.stored_bundle(&member.verified, &entry.value)?;
        if known.is_some_and(|known| known.verified.is_newer_than(&verified)) {
            return Err(Ignored::Older);
        }
        self.bundles.insert(cluster, Arc::new(Known { revision: entry.modified, envelope, verified }));
        Ok(true)
    }

    fn take_deny_list(&mut self, verifier: &Verifier, entry: &Entry) -> Result<bool, Ignored> {
        let known = self.deny_list.as_ref();
        if known.is_some_and(|known| known.revision >= entry.modified) {
            return Ok(false);
        }
        let (envelope, verified) = verifier.stored_deny_list(&entry.value)?;
        if let Some(known) = known {
            verified.follows(&known.verified)?;
        }
        let evicted = self.members.values().filter(|known| evicts(&verified, &known.verified));
        let evicted: Vec<_> = evicted.map(|known| known.verified.cluster().clone()).collect();
        for cluster in evicted {
            self.forget(&cluster);
        }
        self.deny_list = Some(Arc::new(Known { revision: entry.modified, envelope, verified }));
        Ok(true)
    }

    fn take_departure(&mut self, verifier: &Verifier, cluster: &str, entry: &Entry) -> Result<bool, Ignored> {
        let (envelope, member) = verifier.stored_departure(&entry.value)?;
        let (name, generation) = (member.cluster().clone(), member.generation());
        if name.as_str() != cluster {
            return Err(Ignored::Misplaced(name));
        }
        let newer = self.left(cluster).is_some_and(|left| left >= generation)
            || self.member(cluster).is_some_and(|member| member.generation() > generation);
        if newer {
            return Ok(false);
        }
        self.forget(&name);
        self.departures.insert(name, Arc::new(Known { revision: entry.modified, envelope, verified: generation }));
        Ok(true)
    }

    fn take_authority(&mut self, authority: &PlaneAuthority, entry: &Entry) -> Result<bool, Ignored> {
        if self.roots.as_ref().is_some_and(|known| known.revision >= entry.modified) {
            return Ok(false);
        }
        let said = StoredAuthority::decode(entry.value.clone()).map_err(VerifyError::from)?;
        match authority.follow(&said) {
            Ok(roots) => {
                self.unfollowed = None;
                self.roots = Some(Arc::new(Known { revision: entry.modified, envelope: said, verified: roots }));
                Ok(true)
            }
            Err(lag) => {
                self.unfollowed = Some(entry.clone());
                Err(lag.into())
            }
        }
    }

    fn is_evicted(&self, member: &VerifiedMember) -> bool {
        self.deny_list().is_some_and(|list| evicts(list, member))
    }

    fn forget(&mut self, cluster: &ClusterName) {
        self.members.remove(cluster);
        self.bundles.remove(cluster);
    }

    /// Whether the value of a key is believed although nobody stores it any more.
    fn misses(&self, verifier: &Verifier, key: &str) -> bool {
        match (layout::name_below(layout::MEMBERS, key), layout::name_below(layout::BUNDLES, key)) {
            (Some(cluster), _) => self.members.contains_key(cluster),
            (_, Some(domain)) => verifier.cluster_of(domain).is_some_and(|it| self.bundles.contains_key(&it)),
            _ => key == layout::QUARANTINE && self.deny_list.is_some(),
        }
    }
}

fn evicts(list: &DenyList, member: &VerifiedMember) -> bool {
    list.evicts(member.cluster(), member.generation())
}
