//! What a member says of itself: its bundle, and the publish keys it will speak with.

use bytes::Bytes;
use federation::ClusterName;
use federation_api::record::v1::{Member, Signed};
use federation_api::verify::VerifiedMember;
use federation_store::{Committed, Revision, Store, Transaction, layout};
use prost::Message;
use tokio::try_join;

use super::{MAX_GRANT_BYTES, Membership, Refused, revision};
use crate::audit::Note;
use crate::standing::{ShutOut, check_membership};
use crate::verify::VerifiedBundle;

impl<S: Store> Membership<S> {
    /// Puts a member's own bundle.
    ///
    /// # Errors
    /// [`Refused`]; what is stored stays then.
    pub async fn publish_bundle(&self, who: &str, cluster: &ClusterName, bundle: &Signed) -> Result<Revision, Refused> {
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
            self.check_own_keys(&offered.bundle)?;
            // The member is expected too: a membership that was replaced in between must not overwrite its successor.
            let transaction = Transaction::new()
                .expecting(&member_key, revision(member_entry.as_ref()))
                .expecting(&bundle_key, revision(stored.as_ref()))
                .expecting(layout::QUARANTINE, revision(denied.as_ref()))
                .put(&bundle_key, value.clone());
            let transaction = self.audit.stage(transaction, &bundle_note(who, &offered)).await?;
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                return Ok(revision);
            }
        }
    }

    /// Takes a member's next publish keys: its membership with grants behind those that are known.
    ///
    /// # Errors
    /// [`Refused`]; what is stored stays then.
    pub async fn publish_member(&self, who: &str, cluster: &ClusterName, member: &Member) -> Result<Revision, Refused> {
        let member_key = layout::member(cluster.as_str());
        let offered = self.verifier.member(member, None).map_err(|error| Refused::unverified("member", error))?;
        check_grants(member, &offered, cluster)?;
        loop {
            let (stored, denied) = try_join!(self.store.get(&member_key), self.store.get(layout::QUARANTINE))?;
            let current = self.member(cluster, stored.as_ref());
            let current = current.ok_or_else(|| ShutOut::NoMember(cluster.to_string()))?;
            check_membership(self.deny_list(denied.as_ref()).as_ref(), cluster, current.generation())?;
            let known = stored.as_ref().and_then(|entry| Member::decode(entry.value.clone()).ok());
            match (&stored, known) {
                (Some(entry), Some(known)) if known == *member => return Ok(entry.modified),
                (_, Some(known)) if !follows(member, &known) => return Err(stale(&offered, &current)),
                _ if offered.generation() != current.generation() || !offered.supersedes(&current) => {
                    return Err(stale(&offered, &current));
                }
                _ => {}
            }
            let note = Note {
                who: who.to_owned(),
                action: "member.publish-key",
                subject: cluster.to_string(),
                detail: format!("publish key {} of generation {}", offered.publish_keys(), offered.generation()),
            };
            let transaction = Transaction::new()
                .expecting(&member_key, revision(stored.as_ref()))
                .expecting(layout::QUARANTINE, revision(denied.as_ref()))
                .put(&member_key, member.encode_to_vec());
            let transaction = self.audit.stage(transaction, &note).await?;
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                return Ok(revision);
            }
        }
    }
}

fn bundle_note(who: &str, offered: &VerifiedBundle) -> Note {
    let bundle = &offered.bundle;
    Note {
        who: who.to_owned(),
        action: "bundle.put",
        subject: bundle.trust_domain.to_string(),
        detail: format!("{} roots, spiffe_sequence {}", bundle.x509_authorities.len(), bundle.sequence),
    }
}

/// The grants of somebody's own membership, none larger than it has to be.
fn check_grants(member: &Member, offered: &VerifiedMember, cluster: &ClusterName) -> Result<(), Refused> {
    let malformed = |reason: String| Err(Refused::Malformed { field: "member", reason });
    if offered.cluster() != cluster {
        return malformed(format!("it is of cluster {}, not the caller's own", offered.cluster()));
    }
    match member.grants.iter().map(|grant| grant.message.len()).max() {
        Some(largest) if largest > MAX_GRANT_BYTES => {
            malformed(format!("a grant has {largest} bytes, allowed are {MAX_GRANT_BYTES}"))
        }
        _ => Ok(()),
    }
}

/// Whether all that is known stands in front of what is offered.
fn follows(offered: &Member, known: &Member) -> bool {
    offered.delegation == known.delegation && offered.grants.starts_with(&known.grants)
}

fn stale(offered: &VerifiedMember, current: &VerifiedMember) -> Refused {
    let describe = |member: &VerifiedMember| {
        format!("generation {} with {} publish keys", member.generation(), member.publish_keys())
    };
    Refused::StaleMember { cluster: offered.cluster().clone(), offered: describe(offered), current: describe(current) }
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
