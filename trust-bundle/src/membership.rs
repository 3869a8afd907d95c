//! Who becomes a member, which words of a member are taken, and who is shut out: verify first, then one transaction, which
//! also records who did it.
//!
//! What is stored and does not verify counts as absent; what was believed before, in the published state, counts instead.

mod ending;
mod own_words;
mod refused;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use federation::ClusterName;
use federation_api::record::v1::{Member, Signed};
use federation_api::token::id_of;
use federation_api::trust::v1::StoredToken;
use federation_api::trust::v1::token_state::Use;
use federation_api::verify::{DenyList, VerifiedDelegation, VerifiedMember};
use federation_store::{Committed, Entry, Revision, Store, StoreError, Transaction, layout};
use prost::Message;
use spiffe_identity::{Bundle, owner_of_shared_key};
use tokio::sync::watch;
use tokio::try_join;

pub use refused::Refused;

use crate::audit::{AuditLog, Note};
use crate::standing::check_membership;
use crate::state::TrustState;
use crate::tokens::{milliseconds, stored_token};
use crate::verify::{VerifiedBundle, Verifier, VerifyError};

/// How far the joiner's clock may be off.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// The largest grant: its fields take some 400 bytes, and everybody in the federation is told it.
const MAX_GRANT_BYTES: usize = 1024;

/// Decides over the members of one federation.
#[derive(Debug, Clone)]
pub struct Membership<S> {
    store: S,
    verifier: Verifier,
    state: watch::Receiver<Arc<TrustState>>,
    audit: AuditLog<S>,
}

/// A join whose every signature holds; whether the token is still unused is not known yet.
#[derive(Debug, Clone)]
pub struct Joining {
    verified: VerifiedMember,
    member: Member,
    bundle: Bytes,
    roots: Bundle,
}

impl Joining {
    /// The membership to be.
    #[must_use]
    pub fn member(&self) -> &VerifiedMember {
        &self.verified
    }
}

/// What became of a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// There is a new member, by this revision.
    New(Revision),
    /// The same cluster asks again with the same keys: its first answer was lost. Nothing has changed since.
    Again(Revision),
}

impl Admitted {
    /// The revision from which on the membership is known.
    #[must_use]
    pub fn revision(self) -> Revision {
        match self {
            Self::New(revision) | Self::Again(revision) => revision,
        }
    }
}

impl<S: Store> Membership<S> {
    /// Decides over `store`; `state` is what was believed of it so far.
    pub fn new(store: S, verifier: Verifier, state: watch::Receiver<Arc<TrustState>>, audit: AuditLog<S>) -> Self {
        Self { store, verifier, state, audit }
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
        Ok(Joining { verified, member: member.clone(), bundle: bundle.encode_to_vec().into(), roots: bundle_of.bundle })
    }

    /// What a token grants.
    ///
    /// # Errors
    /// Why it grants nothing.
    pub fn delegation(&self, signed: &Signed) -> Result<VerifiedDelegation, VerifyError> {
        self.verifier.delegation(signed)
    }

    /// Makes the joiner a member: its token is used up, its membership and its first bundle are there, all or nothing.
    /// `key_digest` names the key that its certificate is for: whoever holds that key and the membership may ask again,
    /// and nobody else.
    ///
    /// # Errors
    /// [`Refused`] says what does not hold; then nothing has changed.
    pub async fn admit(&self, joining: &Joining, key_digest: &[u8]) -> Result<Admitted, Refused> {
        let Joining { verified, member, bundle, roots } = joining;
        self.check_own_keys(roots)?;
        let cluster = verified.cluster();
        let id = id_of(verified.token());
        let (token_key, member_key) = (layout::token(&id), layout::member(cluster.as_str()));
        let departure_key = layout::departure(cluster.as_str());
        let used = |at: SystemTime| StoredToken {
            delegation: member.delegation.clone(),
            r#use: Use::Used.into(),
            at_ms: milliseconds(at),
            key_digest: key_digest.to_vec(),
        };
        let note = Note {
            who: id.clone(),
            action: "member.joined",
            subject: cluster.to_string(),
            detail: format!("generation {}", verified.generation()),
        };
        loop {
            let (stored, denied, departed) = try_join!(
                self.store.get(&member_key),
                self.store.get(layout::QUARANTINE),
                self.store.get(&departure_key)
            )?;
            check_membership(self.deny_list(denied.as_ref()).as_ref(), cluster, verified.generation())?;
            let current = self.member(cluster, stored.as_ref());
            // Looked up last: whoever sees the membership that the token made also sees that it was used.
            let token_entry = self.store.get(&token_key).await?;
            match token_entry.as_ref().map(stored_token) {
                None => {}
                Some(token) if token.r#use() == Use::Unused => {}
                Some(token) if token.r#use() == Use::Revoked => return Err(Refused::TokenRevoked(id)),
                Some(token) => {
                    return match stored.as_ref() {
                        Some(entry) if asks_again(member, entry) && token.key_digest == key_digest => {
                            Ok(Admitted::Again(entry.modified))
                        }
                        _ => Err(Refused::TokenUsed(cluster.clone())),
                    };
                }
            }
            if let Some(current) = current {
                check_generation(verified, current.generation())?;
            }
            if let Some(left) = self.left(cluster, departed.as_ref()) {
                check_generation(verified, left)?;
            }
            let transaction = Transaction::new()
                .expecting(&token_key, revision(token_entry.as_ref()))
                .expecting(&member_key, revision(stored.as_ref()))
                .expecting(&departure_key, revision(departed.as_ref()))
                .expecting(layout::QUARANTINE, revision(denied.as_ref()))
                .put(&token_key, used(SystemTime::now()).encode_to_vec())
                .put(&member_key, member.encode_to_vec())
                .put(layout::bundle(roots.trust_domain.as_str()), bundle.clone())
                .delete(&departure_key);
            let transaction = self.audit.stage(transaction, &note).await?;
            // After a conflict somebody else has got further: look again.
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                return Ok(Admitted::New(revision));
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

    /// The last membership of the cluster that it ended itself.
    fn left(&self, cluster: &ClusterName, stored: Option<&Entry>) -> Option<u64> {
        let stored = stored.and_then(|entry| self.verifier.stored_departure(&entry.value).ok());
        let stored = stored.map(|(_, member)| member).filter(|member| member.cluster() == cluster);
        stored.map(|member| member.generation()).max(self.state.borrow().left(cluster.as_str()))
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

    /// A root's key speaks for one trust domain. The first one to show it counts: nobody else can know it before.
    fn check_own_keys(&self, bundle: &Bundle) -> Result<(), Refused> {
        let state = self.state.borrow();
        match owner_of_shared_key(bundle, state.bundles()) {
            None => Ok(()),
            Some(owner) => Err(Refused::SharedKey { trust_domain: bundle.trust_domain.clone(), owner: owner.clone() }),
        }
    }

    async fn delete_all(&self, entries: Vec<Entry>) -> Result<(), StoreError> {
        for entry in entries {
            let delete = Transaction::new().expecting(&entry.key, entry.modified).delete(&entry.key);
            // A conflict: somebody has put something newer, which stays.
            let _ = self.store.commit(delete).await?;
        }
        Ok(())
    }
}

/// Whether the stored membership is the one that is offered, however often its publish key was replaced since.
fn asks_again(offered: &Member, stored: &Entry) -> bool {
    Member::decode(stored.value.clone())
        .is_ok_and(|stored| stored.delegation == offered.delegation && stored.grants.first() == offered.grants.first())
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

fn check_generation(offered: &VerifiedMember, current: u64) -> Result<(), Refused> {
    let (cluster, offered) = (offered.cluster(), offered.generation());
    if offered > current {
        return Ok(());
    }
    Err(Refused::OldGeneration { cluster: cluster.clone(), current, offered })
}

fn revision(entry: Option<&Entry>) -> Revision {
    entry.map_or(0, |entry| entry.modified)
}
