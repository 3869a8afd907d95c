//! The trust state: members, bundles and the deny-list as the store tells them, and what a watcher lacks of it.
//!
//! A stored value counts only as far as it verifies and is not older than what is known. Whatever else turns up under its
//! key, the last good value stays, and so does that of a key that is deleted: a membership ends by a signed word alone.

mod follow;

use std::collections::BTreeMap;
use std::sync::Arc;

use federation::ClusterName;
use federation_api::record::v1::{Member, Signed};
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{DenyList, VerifiedMember};
use federation_store::{Entry, Revision, layout};
use spiffe_identity::{PlaneRole, SpiffeId, TrustDomain};

pub use follow::{Loaded, load, publish};

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
    deny_list: Option<Arc<Known<Signed, DenyList>>>,
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

    /// A member by its cluster's name, shut out or not.
    #[must_use]
    pub fn member(&self, cluster: &str) -> Option<&VerifiedMember> {
        self.members.get(cluster).map(|known| &known.verified)
    }

    /// The names of all members, shut out or not.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &ClusterName> {
        self.members.keys()
    }

    /// A cluster's bundle.
    #[must_use]
    pub fn bundle(&self, cluster: &str) -> Option<&VerifiedBundle> {
        self.bundles.get(cluster).map(|known| &known.verified)
    }

    /// The trust domains with a bundle.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.bundles.values().map(|known| &known.verified.bundle.trust_domain)
    }

    /// The deny-list, if there ever was one.
    #[must_use]
    pub fn deny_list(&self) -> Option<&DenyList> {
        self.deny_list.as_ref().map(|known| &known.verified)
    }

    /// Whether the holder of this identity has a say in `federation`: an operator, a service, or the control-plane of a
    /// member, and none that the operator shut out.
    ///
    /// # Errors
    /// [`ShutOut`] says why not.
    pub fn admits(&self, id: &SpiffeId, federation: &TrustDomain) -> Result<(), ShutOut> {
        let role = id.role_in(federation).ok_or_else(|| ShutOut::Stranger(id.clone()))?;
        if let PlaneRole::ControlPlane { cluster } = role {
            let member = self.member(cluster).ok_or_else(|| ShutOut::NoMember(cluster.to_owned()))?;
            check_membership(self.deny_list(), member.cluster(), member.generation())?;
        }
        check_identity(self.deny_list(), id)
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
        let deny_list = self.deny_list.as_ref().filter(|known| known.revision > newer);
        Some(WatchResponse {
            full: cursor.is_none(),
            members: members.map(|known| known.envelope.clone()).collect(),
            bundles: bundles.map(|known| known.envelope.clone()).collect(),
            deny_list: deny_list.map(|known| known.envelope.clone()),
            ..self.nothing_new()
        })
    }

    /// An answer to somebody who lacks nothing.
    #[must_use]
    pub fn nothing_new(&self) -> WatchResponse {
        WatchResponse { incarnation: self.incarnation.clone(), epoch: self.epoch, ..WatchResponse::default() }
    }

    /// Takes a stored value; says whether it changed anything.
    fn take(&mut self, verifier: &Verifier, entry: &Entry) -> Result<bool, Ignored> {
        let changed = if let Some(cluster) = layout::name_below(layout::MEMBERS, &entry.key) {
            self.take_member(verifier, cluster, entry)?
        } else if let Some(trust_domain) = layout::name_below(layout::BUNDLES, &entry.key) {
            self.take_bundle(verifier, trust_domain, entry)?
        } else if entry.key == layout::QUARANTINE {
            self.take_deny_list(verifier, entry)?
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
        self.members.insert(cluster, Arc::new(Known { revision: entry.modified, envelope, verified }));
        Ok(true)
    }

    fn take_bundle(&mut self, verifier: &Verifier, trust_domain: &str, entry: &Entry) -> Result<bool, Ignored> {
        let cluster = verifier.cluster_of(trust_domain).ok_or(Ignored::NoMember)?;
        let known = self.bundles.get(&cluster);
        if known.is_some_and(|known| known.revision >= entry.modified) {
            return Ok(false);
        }
        let member = self.members.get(&cluster).ok_or(Ignored::NoMember)?;
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
        if known.is_some_and(|known| known.verified.epoch > verified.epoch) {
            return Err(Ignored::Older);
        }
        self.deny_list = Some(Arc::new(Known { revision: entry.modified, envelope, verified }));
        Ok(true)
    }
}
