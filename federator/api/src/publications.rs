//! The cluster's own records: what it wants to say, what it has signed, and what the federator answered.
//!
//! Pure: control-planes and the simulation of the federation run the same rules. A record is signed again only when its
//! content changes, so a restart sends no burst of news; a record that is no longer wanted is replaced by a signed
//! withdrawal, never by silence. Each batch ends with new heads.
//!
//! Who comes back from a backup has forgotten what it said since. The federation tells publishers their own records too:
//! what is newer there is taken back, and then withdrawn or signed anew, as it is wanted now. Where the federation was set
//! back as well nobody can say so, and a slow clock may have used sequences that others have seen long ago; so heads are
//! signed again now and then, and receivers that hold the lost words learn from the newer heads what counts.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use federation::RecordKey;
use prost::Message as _;

use crate::federation::v1::refusal::Reason;
use crate::federation::v1::{PublishResult, Refusal};
use crate::payload::Payload;
use crate::record::v1::{Signed, Statement};
use crate::records::{Head, HeadScope};
use crate::signing::{SequenceClock, SignError, Speaker};
use crate::verify::VerifiedMember;

/// Withdrawals that are kept to be said again, at most; the oldest go first.
const MAX_WITHDRAWALS: usize = 4_096;
/// Refused records are signed again at most this often.
const SIGN_AGAIN: Duration = Duration::from_secs(1);

/// What the federator answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet.
    Pending,
    /// Stored durably.
    Stored,
    /// Refused.
    Refused(String),
}

#[derive(Clone, Debug)]
struct Own {
    payload: Payload,
    sequence: u64,
    signed: Signed,
    answer: Answer,
}

/// Who speaks after the present speaker, of the same membership.
#[derive(Debug)]
pub struct Successor {
    /// With sequences above this one.
    pub after: u64,
    /// With the key of the next grant.
    pub speaker: Speaker,
}

/// Own records under one membership.
#[derive(Debug)]
pub struct Publications {
    speaker: Speaker,
    successor: Option<Successor>,
    member: VerifiedMember,
    /// Heads are signed again after so long.
    refresh: Duration,
    heads_signed: Option<Instant>,
    clock: SequenceClock,
    records: BTreeMap<RecordKey, Own>,
    /// The federator holds something newer under these keys: what is held here went back in time.
    behind: BTreeSet<RecordKey>,
    signed_again: Option<Instant>,
}

impl Publications {
    /// Goes on with what was signed before, as far as it is of this membership. Heads are signed again every `refresh`.
    #[must_use]
    pub fn new(
        speaker: Speaker,
        successor: Option<Successor>,
        member: VerifiedMember,
        saved: Vec<Signed>,
        refresh: Duration,
    ) -> Self {
        let mut publications = Self {
            speaker,
            successor,
            member,
            refresh,
            heads_signed: None,
            clock: SequenceClock::after(0),
            records: BTreeMap::new(),
            behind: BTreeSet::new(),
            signed_again: None,
        };
        for signed in saved {
            publications.take(signed, Answer::Pending);
        }
        publications
    }

    /// Takes a record of this cluster as the federation has it: what is newer than what is held here was forgotten in a
    /// restore, and counts until something else is said. Returns whether it does.
    pub fn told(&mut self, signed: Signed) -> bool {
        self.take(signed, Answer::Stored)
    }

    fn take(&mut self, signed: Signed, answer: Answer) -> bool {
        // What it names is believed only once it verifies; that it is known already needs no signature.
        let named = Statement::decode(signed.message.as_ref()).ok().and_then(|named| named.key.parse().ok());
        let known = named.and_then(|key: RecordKey| self.records.get(&key));
        if known.is_some_and(|own| own.signed.message == signed.message) {
            return false;
        }
        let Ok(statement) = self.member.verify(&signed) else { return false };
        self.clock = SequenceClock::after(self.clock.last().max(statement.sequence));
        match self.records.get(&statement.key).map(|own| own.sequence.cmp(&statement.sequence)) {
            Some(Ordering::Greater) => false,
            // The sequence was used before, for something else, and forgotten.
            Some(Ordering::Equal) => self.behind.insert(statement.key),
            Some(Ordering::Less) | None => {
                let own = Own { payload: statement.payload, sequence: statement.sequence, signed, answer };
                self.records.insert(statement.key, own);
                true
            }
        }
    }

    /// Goes on with other keys of the same membership. Records that the key they were signed with may not have are to be
    /// signed again: [`sign_again`](Self::sign_again).
    pub fn rekey(&mut self, speaker: Speaker, successor: Option<Successor>, member: VerifiedMember) {
        if let Some(successor) = &successor {
            let void = self.records.iter().filter(|(_, own)| own.sequence > successor.after);
            self.behind.extend(void.map(|(key, _)| key.clone()));
        }
        (self.speaker, self.successor, self.member) = (speaker, successor, member);
    }

    /// Whose key a statement with this sequence is to be signed with.
    fn speaker_of(&self, sequence: u64) -> &Speaker {
        let successor = self.successor.as_ref().filter(|successor| sequence > successor.after);
        successor.map_or(&self.speaker, |successor| &successor.speaker)
    }

    /// The last sequence that was used.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.clock.last()
    }

    /// Says `wanted` from now on: all records that are to be live, but bundle and heads. Returns what is newly signed.
    ///
    /// # Errors
    /// [`SignError`]: a payload that is not of its key's kind.
    pub fn say(&mut self, wanted: &BTreeMap<RecordKey, Payload>, now: SystemTime) -> Result<Vec<Signed>, SignError> {
        let mut news = Vec::new();
        let live =
            self.records.iter().filter(|(key, own)| **key != RecordKey::Heads && own.payload != Payload::Withdrawal);
        let gone: Vec<_> = live.map(|(key, _)| key).filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            news.push(self.sign(&key, Payload::Withdrawal, now)?);
        }
        for (key, payload) in wanted {
            if self.records.get(key).is_none_or(|own| own.payload != *payload) {
                news.push(self.sign(key, payload.clone(), now)?);
            }
        }
        let heads = Payload::Heads(self.heads());
        if self.records.get(&RecordKey::Heads).is_none_or(|own| own.payload != heads) {
            news.push(self.sign(&RecordKey::Heads, heads, now)?);
        }
        self.forget_old_withdrawals();
        Ok(news)
    }

    /// Takes the federator's answers. Returns whether one is news.
    pub fn answer(&mut self, results: &[PublishResult]) -> bool {
        let mut changed = false;
        for result in results {
            let Ok(key) = result.key.parse::<RecordKey>() else { continue };
            let Some(own) = self.records.get_mut(&key) else { continue };
            if own.sequence != result.sequence {
                continue;
            }
            let answer = result.refusal.as_ref().map_or(Answer::Stored, |refusal| Answer::Refused(describe(refusal)));
            let reason = result.refusal.as_ref().map(Refusal::reason);
            if matches!(reason, Some(Reason::Stale | Reason::Equivocation)) {
                self.behind.insert(key);
            }
            changed |= own.answer != answer;
            own.answer = answer;
        }
        changed
    }

    /// When [`sign_again`](Self::sign_again) has something to do.
    #[must_use]
    pub fn sign_again_due(&self, now: Instant) -> Instant {
        let behind = (!self.behind.is_empty()).then(|| self.signed_again.map_or(now, |at| at + SIGN_AGAIN));
        let refresh = self.heads_signed.map_or(now, |at| at + self.refresh);
        behind.map_or(refresh, |behind| behind.min(refresh))
    }

    /// Signs anew, with higher sequences, what was refused for something newer of this cluster's own: its state came
    /// from a backup. The heads are of what is signed then, and are signed again when they have become old.
    ///
    /// # Errors
    /// [`SignError`]
    pub fn sign_again(&mut self, now: Instant, system: SystemTime) -> Result<Vec<Signed>, SignError> {
        let mut news = Vec::new();
        let said = *self.heads_signed.get_or_insert(now);
        if self.sign_again_due(now) > now {
            return Ok(news);
        }
        let refresh = said + self.refresh <= now && self.records.contains_key(&RecordKey::Heads);
        self.heads_signed = Some(now);
        let mut behind = std::mem::take(&mut self.behind);
        if behind.is_empty() && !refresh {
            return Ok(news);
        }
        self.signed_again = Some(now);
        behind.remove(&RecordKey::Heads);
        for key in behind {
            if let Some(own) = self.records.get(&key) {
                let payload = own.payload.clone();
                news.push(self.sign(&key, payload, system)?);
            }
        }
        let heads = Payload::Heads(self.heads());
        news.push(self.sign(&RecordKey::Heads, heads, system)?);
        Ok(news)
    }

    /// The federator has answered for every record.
    #[must_use]
    pub fn all_answered(&self) -> bool {
        self.records.values().all(|own| own.answer != Answer::Pending)
    }

    /// What the federator answered to the record of a key.
    #[must_use]
    pub fn answered(&self, key: &RecordKey) -> Option<&Answer> {
        self.records.get(key).filter(|own| own.payload != Payload::Withdrawal).map(|own| &own.answer)
    }

    /// Every record, withdrawals included: to be sent where nothing is known, and to be written down.
    #[must_use]
    pub fn envelopes(&self) -> Vec<Signed> {
        self.records.values().map(|own| own.signed.clone()).collect()
    }

    /// What the federation ought to hold on a key: its sequence and value.
    #[must_use]
    pub fn said(&self, key: &RecordKey) -> Option<(u64, &Payload)> {
        self.records.get(key).map(|own| (own.sequence, &own.payload))
    }

    /// The next sequence, and who signs with it, for a record that is published apart from the set.
    pub fn next_sequence(&mut self, now: SystemTime) -> (u64, &Speaker) {
        let sequence = self.clock.next(now);
        (sequence, self.speaker_of(sequence))
    }

    /// Who speaks.
    #[must_use]
    pub fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    fn sign(&mut self, key: &RecordKey, payload: Payload, now: SystemTime) -> Result<Signed, SignError> {
        let sequence = self.clock.next(now);
        let signed = self.speaker_of(sequence).sign(sequence, now, key, &payload)?;
        self.records.insert(key.clone(), Own { payload, sequence, signed: signed.clone(), answer: Answer::Pending });
        Ok(signed)
    }

    fn heads(&self) -> Vec<Head> {
        let mut scopes: BTreeMap<HeadScope, Vec<(&RecordKey, u64)>> = BTreeMap::new();
        for (key, own) in &self.records {
            let Some(scope) = HeadScope::of(key) else { continue };
            let lines = scopes.entry(scope).or_default();
            if own.payload != Payload::Withdrawal {
                lines.push((key, own.sequence));
            }
        }
        let live = scopes.into_iter().filter(|(_, lines)| !lines.is_empty());
        live.map(|(scope, lines)| Head::of(scope, lines)).collect()
    }

    fn forget_old_withdrawals(&mut self) {
        let mut withdrawn: Vec<_> = self
            .records
            .iter()
            .filter(|(_, own)| own.payload == Payload::Withdrawal)
            .map(|(key, own)| (own.sequence, key.clone()))
            .collect();
        withdrawn.sort_unstable();
        let many = withdrawn.len().saturating_sub(MAX_WITHDRAWALS);
        for (_, key) in withdrawn.into_iter().take(many) {
            self.records.remove(&key);
        }
    }
}

fn describe(refusal: &Refusal) -> String {
    let reason = match refusal.reason() {
        Reason::Unspecified => "refused",
        Reason::NotYours => "not this cluster's record",
        Reason::Stale => "a higher sequence is stored already",
        Reason::Equivocation => "another content is stored with the same sequence",
        Reason::NotDelegated => "outside of the delegation",
        Reason::Quota => "over the quota",
        Reason::Malformed => "malformed",
        Reason::NotPublisher => "another session publishes for this cluster",
        Reason::NoSpace => "the federation's store is full",
    };
    if refusal.detail.is_empty() { reason.to_owned() } else { format!("{reason}: {}", refusal.detail) }
}
