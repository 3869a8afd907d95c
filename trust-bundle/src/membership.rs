//! Who becomes a member, and which bundle a member may put: verify first, then one transaction.
//!
//! What is stored and does not verify counts as absent; what was believed before, in the published state, counts instead.

mod refused;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use federation::ClusterName;
use federation_api::record::v1::{Member, Signed};
use federation_api::verify::{DenyList, VerifiedMember};
use federation_store::{Committed, Entry, Revision, Store, Transaction, layout};
use prost::Message;
use tokio::sync::watch;
use tokio::try_join;

pub use refused::Refused;

use crate::standing::{ShutOut, check_membership};
use crate::state::TrustState;
use crate::verify::{VerifiedBundle, Verifier};

/// How far the joiner's clock may be off.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// The largest grant: its fields take some 400 bytes, and everybody in the federation is told it.
const MAX_GRANT_BYTES: usize = 1024;

/// Decides joins and bundles of one federation.
#[derive(Debug, Clone)]
pub struct Membership<S> {
    store: S,
    verifier: Verifier,
    state: watch::Receiver<Arc<TrustState>>,
}

/// A join whose every signature holds; whether the token is still unused is not known yet.
#[derive(Debug, Clone)]
pub struct Joining {
    verified: VerifiedMember,
    member: Bytes,
    bundle: Bytes,
    bundle_key: String,
}

impl Joining {
    /// The membership to be.
    #[must_use]
    pub fn member(&self) -> &VerifiedMember {
        &self.verified
    }
}

impl<S: Store> Membership<S> {
    /// Decides over `store`; `state` is what was believed of it so far.
    pub fn new(store: S, verifier: Verifier, state: watch::Receiver<Arc<TrustState>>) -> Self {
        Self { store, verifier, state }
    }

    /// Verifies a join. Nothing is read or changed.
    ///
    /// # Errors
    /// [`Refused`] says what does not hold.
    pub fn examine(&self, member: &Member, bundle: &Signed, now: SystemTime) -> Result<Joining, Refused> {
        let verified = self.verifier.member(member, Some(now)).map_err(|error| Refused::unverified("member", error))?;
        check_first_grant(member, &verified, now)?;
        let bundle_of =
            self.verifier.bundle(&verified, bundle).map_err(|error| Refused::unverified("bundle", error))?;
        Ok(Joining {
            verified,
            member: member.encode_to_vec().into(),
            bundle: bundle.encode_to_vec().into(),
            bundle_key: layout::bundle(bundle_of.bundle.trust_domain.as_str()),
        })
    }

    /// Makes the joiner a member: its token is used up, its membership and its first bundle are there, all or nothing.
    /// Returns the revision that did it.
    ///
    /// # Errors
    /// [`Refused`] says what does not hold; then nothing has changed.
    pub async fn admit(&self, joining: &Joining) -> Result<Revision, Refused> {
        let Joining { verified, member, bundle, bundle_key } = joining;
        let cluster = verified.cluster();
        let (token_key, member_key) =
            (layout::token(&hex(verified.token().as_bytes())), layout::member(cluster.as_str()));
        loop {
            let (stored, denied) = try_join!(self.store.get(&member_key), self.store.get(layout::QUARANTINE))?;
            check_membership(self.deny_list(denied.as_ref()).as_ref(), cluster, verified.generation())?;
            let current = self.member(cluster, stored.as_ref());
            // Looked up last: whoever sees the membership that the token made also sees that it was used.
            if self.store.get(&token_key).await?.is_some() {
                return Err(Refused::TokenUsed(cluster.clone()));
            }
            if let Some(current) = current {
                check_generation(verified, &current)?;
            }
            let transaction = Transaction::new()
                .expecting_absent(&token_key)
                .expecting(&member_key, revision(stored.as_ref()))
                .expecting(layout::QUARANTINE, revision(denied.as_ref()))
                .put(&token_key, cluster.as_str().as_bytes().to_vec())
                .put(&member_key, member.clone())
                .put(bundle_key, bundle.clone());
            // After a conflict somebody else has got further: look again.
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                return Ok(revision);
            }
        }
    }

    /// Puts a member's own bundle.
    ///
    /// # Errors
    /// [`Refused`]; what is stored stays then.
    pub async fn publish_bundle(&self, cluster: &ClusterName, bundle: &Signed) -> Result<Revision, Refused> {
        let (member_key, value) = (layout::member(cluster.as_str()), Bytes::from(bundle.encode_to_vec()));
        loop {
            let (member_entry, denied) = try_join!(self.store.get(&member_key), self.store.get(layout::QUARANTINE))?;
            let member = self.member(cluster, member_entry.as_ref());
            let member = member.ok_or_else(|| ShutOut::NoMember(cluster.to_string()))?;
            check_membership(self.deny_list(denied.as_ref()).as_ref(), cluster, member.generation())?;
            let offered =
                self.verifier.bundle(&member, bundle).map_err(|error| Refused::unverified("bundle", error))?;
            let bundle_key = layout::bundle(offered.bundle.trust_domain.as_str());
            let stored = self.store.get(&bundle_key).await?;
            if let Some(entry) = stored.as_ref().filter(|entry| entry.value == value) {
                return Ok(entry.modified);
            }
            if let Some(current) = self.bundle(&member, stored.as_ref()) {
                check_newer(&offered, &current)?;
            }
            // The member is expected too: a membership that was replaced in between must not overwrite its successor.
            let transaction = Transaction::new()
                .expecting(&member_key, revision(member_entry.as_ref()))
                .expecting(&bundle_key, revision(stored.as_ref()))
                .expecting(layout::QUARANTINE, revision(denied.as_ref()))
                .put(&bundle_key, value.clone());
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                return Ok(revision);
            }
        }
    }

    /// The membership that stands: the later one of what is stored and what is believed.
    fn member(&self, cluster: &ClusterName, stored: Option<&Entry>) -> Option<VerifiedMember> {
        let stored = stored.and_then(|entry| self.verifier.stored_member(&entry.value).ok());
        let stored = stored.map(|(_, verified)| verified).filter(|verified| verified.cluster() == cluster);
        let known = self.state.borrow().member(cluster.as_str()).cloned();
        match (stored, known) {
            (Some(stored), Some(known)) if known.supersedes(&stored) => Some(known),
            (stored, known) => stored.or(known),
        }
    }

    /// The bundle that stands: the later one of what is stored and what is believed.
    fn bundle(&self, member: &VerifiedMember, stored: Option<&Entry>) -> Option<VerifiedBundle> {
        let stored = stored.and_then(|entry| self.verifier.stored_bundle(member, &entry.value).ok());
        let known = self.state.borrow().bundle(member.cluster().as_str()).cloned();
        match (stored.map(|(_, verified)| verified), known) {
            (Some(stored), Some(known)) if known.is_newer_than(&stored) => Some(known),
            (stored, known) => stored.or(known),
        }
    }

    /// The deny-list in force: the later one of what is stored and what is believed.
    fn deny_list(&self, stored: Option<&Entry>) -> Option<DenyList> {
        let stored = stored.and_then(|entry| self.verifier.stored_deny_list(&entry.value).ok());
        let known = self.state.borrow().deny_list().cloned();
        stored.map(|(_, list)| list).into_iter().chain(known).max_by_key(|list| list.epoch)
    }
}

/// A membership starts with one grant, made between the token's creation and now: receivers hold creation times to it.
fn check_first_grant(member: &Member, verified: &VerifiedMember, now: SystemTime) -> Result<(), Refused> {
    let malformed = |reason: String| Refused::Malformed { field: "member", reason };
    let [grant] = member.grants.as_slice() else {
        return Err(malformed(format!("a join takes one grant, not {}", member.grants.len())));
    };
    if grant.message.len() > MAX_GRANT_BYTES {
        return Err(malformed(format!("the grant has {} bytes, allowed are {MAX_GRANT_BYTES}", grant.message.len())));
    }
    let created = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(verified.generation()));
    let earliest = created.and_then(|created| created.checked_sub(CLOCK_SKEW));
    let in_time =
        earliest.is_some_and(|earliest| earliest <= verified.joined()) && verified.joined() <= now + CLOCK_SKEW;
    if !in_time {
        return Err(malformed(
            "joined_at_ms is not between the token's creation and now: is the clock right?".to_owned(),
        ));
    }
    Ok(())
}

fn check_generation(offered: &VerifiedMember, current: &VerifiedMember) -> Result<(), Refused> {
    if offered.generation() > current.generation() {
        return Ok(());
    }
    Err(Refused::OldGeneration {
        cluster: offered.cluster().clone(),
        current: current.generation(),
        offered: offered.generation(),
    })
}

fn check_newer(offered: &VerifiedBundle, current: &VerifiedBundle) -> Result<(), Refused> {
    let stale = |reason| Err(Refused::StaleBundle { trust_domain: offered.bundle.trust_domain.clone(), reason });
    if !offered.is_newer_than(current) {
        return stale(format!("record sequence {} is not above {}", offered.sequence, current.sequence));
    }
    // A new membership may come with new roots, which count from the start.
    if offered.generation == current.generation && offered.bundle.sequence <= current.bundle.sequence {
        return stale(format!("spiffe_sequence {} is not above {}", offered.bundle.sequence, current.bundle.sequence));
    }
    Ok(())
}

fn revision(entry: Option<&Entry>) -> Revision {
    entry.map_or(0, |entry| entry.modified)
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
