//! How memberships end: by the member's own word, or by the operator's.

use std::collections::BTreeSet;
use std::time::SystemTime;

use federation::ClusterName;
use federation_api::record::v1::{Member, Signed};
use federation_api::trust::v1::StoredDeparture;
use federation_api::verify::DenyList;
use federation_store::{Committed, Entry, Revision, Store, Transaction, layout};
use prost::Message;
use tokio::try_join;
use tracing::warn;

use super::{Membership, Refused, revision};
use crate::audit::Note;
use crate::standing::{ShutOut, check_membership};

/// The largest deny-list that is taken: every watcher gets it whole.
const MAX_DENY_LIST_BYTES: usize = 512 * 1024;
/// Names that an audit entry spells out.
const SPELLED_OUT: usize = 8;

impl<S: Store> Membership<S> {
    /// Ends a membership by its own word.
    ///
    /// # Errors
    /// [`Refused`]; the membership stands then.
    pub async fn leave(&self, who: &str, cluster: &ClusterName, statement: &Signed) -> Result<Revision, Refused> {
        let member_key = layout::member(cluster.as_str());
        loop {
            let (stored, denied) = try_join!(self.store.get(&member_key), self.store.get(layout::QUARANTINE))?;
            let member = self.member(cluster, stored.as_ref());
            let member = member.ok_or_else(|| ShutOut::NoMember(cluster.to_string()))?;
            let generation = member.generation();
            // What a quarantined cluster says is not believed, its farewell included: it stays listed until released.
            check_membership(self.deny_list(denied.as_ref()).as_ref(), cluster, generation)?;
            member.verify_departure(statement).map_err(|error| Refused::unverified("statement", error.into()))?;
            let envelope = stored.as_ref().and_then(|entry| Member::decode(entry.value.clone()).ok());
            let envelope = envelope.or_else(|| self.state.borrow().member_envelope(cluster).cloned());
            let departure = StoredDeparture { member: envelope, statement: Some(statement.clone()) };
            let note = Note {
                who: who.to_owned(),
                action: "member.left",
                subject: cluster.to_string(),
                detail: format!("generation {generation}"),
            };
            let mut transaction = Transaction::new()
                .expecting(&member_key, revision(stored.as_ref()))
                .expecting(layout::QUARANTINE, revision(denied.as_ref()))
                .put(layout::departure(cluster.as_str()), departure.encode_to_vec())
                .delete(&member_key);
            if let Some(bundle) = self.state.borrow().bundle(cluster.as_str()) {
                transaction = transaction.delete(layout::bundle(bundle.bundle.trust_domain.as_str()));
            }
            let transaction = self.audit.stage(transaction, &note).await?;
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                return Ok(revision);
            }
        }
    }

    /// Puts the operator's deny-list, and removes the members that it evicts.
    ///
    /// # Errors
    /// [`Refused`]; the list in force stays then.
    pub async fn shut_out(&self, who: &str, signed: &Signed) -> Result<Revision, Refused> {
        if signed.message.len() > MAX_DENY_LIST_BYTES {
            let reason = format!("it has {} bytes, allowed are {MAX_DENY_LIST_BYTES}", signed.message.len());
            return Err(Refused::Malformed { field: "deny_list", reason });
        }
        let offered = self.verifier.deny_list(signed).map_err(|error| Refused::unverified("deny_list", error))?;
        let value = signed.encode_to_vec();
        let revision = loop {
            let stored = self.store.get(layout::QUARANTINE).await?;
            if let Some(entry) = stored.as_ref().filter(|entry| entry.value == value) {
                return Ok(entry.modified);
            }
            let current = self.deny_list(stored.as_ref());
            if let Some(current) = current.as_ref().filter(|current| current.epoch >= offered.epoch) {
                return Err(Refused::OldDenyList { current: current.epoch, offered: offered.epoch });
            }
            let note = Note {
                who: who.to_owned(),
                action: "deny-list.put",
                subject: format!("epoch {}", offered.epoch),
                detail: difference(current.as_ref(), &offered),
            };
            let transaction = Transaction::new()
                .expecting(layout::QUARANTINE, revision(stored.as_ref()))
                .put(layout::QUARANTINE, value.clone());
            let transaction = self.audit.stage(transaction, &note).await?;
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                break revision;
            }
        };
        // The list alone shuts them out already; this is tidiness, and may fail.
        if let Err(error) = self.remove_evicted(&offered).await {
            warn!(%error, "evicted members are still stored");
        }
        Ok(revision)
    }

    /// The deny-list in force, the stored one if that is as new as what is believed.
    ///
    /// # Errors
    /// The store's.
    pub async fn fetch_deny_list(&self) -> Result<Option<Signed>, Refused> {
        let stored = self.store.get(layout::QUARANTINE).await?;
        let stored = stored.and_then(|entry| self.verifier.stored_deny_list(&entry.value).ok());
        let state = self.state.borrow();
        Ok(match (stored, state.deny_list()) {
            (Some((signed, list)), known) if known.is_none_or(|known| known.epoch <= list.epoch) => Some(signed),
            _ => state.deny_list_envelope().cloned(),
        })
    }

    async fn remove_evicted(&self, list: &DenyList) -> Result<(), Refused> {
        for (cluster, through) in &list.evictions {
            let member = self.store.get(&layout::member(cluster.as_str())).await?;
            let evicted = |entry: &Entry| {
                let member = self.verifier.stored_member(&entry.value);
                member.is_ok_and(|(_, verified)| verified.generation() <= *through)
            };
            if let Some(member) = member.filter(evicted) {
                let (_, verified) =
                    self.verifier.stored_member(&member.value).map_err(|error| Refused::unverified("member", error))?;
                let trust_domain = verified.federation().trust_domain(cluster);
                let bundle = self.store.get(&layout::bundle(&trust_domain)).await?;
                self.delete_all(bundle.into_iter().chain([member]).collect()).await?;
            }
        }
        Ok(())
    }
}

/// What one deny-list changes about the other, for a person.
fn difference(before: Option<&DenyList>, after: &DenyList) -> String {
    let none = BTreeSet::new();
    let names = |list: &BTreeSet<ClusterName>| list.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let clusters = (before.map(|list| names(&list.clusters)).unwrap_or_default(), names(&after.clusters));
    let ids = (before.map_or(&none, |list| &list.spiffe_ids), &after.spiffe_ids);
    let evicted = after
        .evictions
        .iter()
        .filter(|(cluster, through)| before.is_none_or(|before| before.evictions.get(*cluster) != Some(*through)));
    let evicted: Vec<_> = evicted.map(|(cluster, through)| format!("{cluster} through generation {through}")).collect();
    let mut parts = Vec::new();
    let mut say = |what: &str, names: Vec<String>| {
        if !names.is_empty() {
            let more = names.len().saturating_sub(SPELLED_OUT);
            let shown = names.iter().take(SPELLED_OUT).cloned().collect::<Vec<_>>().join(", ");
            let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
            parts.push(format!("{what} {shown}{rest}"));
        }
    };
    say("quarantined", clusters.1.difference(&clusters.0).chain(ids.1.difference(ids.0)).cloned().collect());
    say("released", clusters.0.difference(&clusters.1).chain(ids.0.difference(ids.1)).cloned().collect());
    say("evicted", evicted);
    let age = SystemTime::now().duration_since(after.issued).unwrap_or_default().as_secs();
    parts.push(format!("signed {age} s before"));
    parts.join("; ")
}
