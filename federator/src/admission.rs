//! What a member may write: pure. Records are verified, held against the index and the quota, and made into one transaction.
//!
//! ```text
//!   records ─► examine: size, signature, delegation ─► plan: newer? within the quota? ─► one transaction
//!                                                                   expect epoch, expect each key as the index has it
//! ```
//!
//! The transaction expects everything that the plan relied on. What is absent relies on the cluster's stored heads: a
//! record that is not above them is an old word on a key that they no longer list, whose withdrawal may have been
//! collected, and is refused.

use std::collections::HashMap;
use std::time::Duration;

use federation::RecordKey;
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::{PublishResult, Refusal};
use federation_api::payload::Payload;
use federation_api::record::v1::{Signed, Statement};
use federation_api::verify::{RecordError, VerifiedMember};
use federation_store::{MAX_OPERATIONS, Revision, Transaction, layout};
use prost::Message;

use crate::index::{Index, Usage, store_key};
use crate::quota::Quota;

/// Records in one transaction: room for the epoch and the heads among its expectations.
pub const MOST_RECORDS: usize = MAX_OPERATIONS - 2;
/// Bytes of records in one transaction, well below what a store takes.
const MOST_BYTES: usize = 1024 * 1024;

/// A session's right to publish: the key `epochs/<cluster>` as it was when the session took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// The key.
    pub key: String,
    /// Its revision.
    pub modified: Revision,
    /// The number, growing with every session that asked to publish.
    pub number: u64,
}

/// A record that was offered, judged by itself.
#[derive(Debug)]
pub struct Offer {
    named: Statement,
    judged: Result<Judged, Refusal>,
}

#[derive(Debug)]
struct Judged {
    key: RecordKey,
    store_key: String,
    position: (u64, u64),
    live: bool,
    signed: Signed,
    value: Vec<u8>,
}

/// What is to become of one offer.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Refused(Refusal),
    Known(Revision),
    Written,
}

/// What is to become of offers.
#[derive(Debug)]
pub struct Plan {
    /// To be committed, when anything is to be written.
    pub transaction: Option<Transaction>,
    /// How many records it writes.
    pub writes: usize,
    verdicts: Vec<Verdict>,
}

fn refuse(reason: Reason, detail: String) -> Refusal {
    Refusal { reason: reason.into(), detail, retry_after_ms: 0 }
}

impl Offer {
    /// Judges a record by itself: size, signature, delegation.
    #[must_use]
    pub fn examine(member: &VerifiedMember, quota: &Quota, signed: Signed) -> Self {
        // For the answer only: nothing of it is believed before it is verified.
        let named = Statement::decode(signed.message.clone()).unwrap_or_default();
        let named = Statement { key: named.key, sequence: named.sequence, ..Statement::default() };
        Self { named, judged: judge(member, quota, signed) }
    }

    fn size(&self) -> usize {
        self.judged.as_ref().map_or(0, |judged| judged.value.len() + 3 * judged.store_key.len())
    }
}

fn judge(member: &VerifiedMember, quota: &Quota, signed: Signed) -> Result<Judged, Refusal> {
    if signed.message.len() > quota.record_bytes {
        let text = format!("recordBytes: {} bytes, at most {} are allowed", signed.message.len(), quota.record_bytes);
        return Err(refuse(Reason::Quota, text));
    }
    let statement = member.verify(&signed).map_err(|error| refusal(&error))?;
    let store_key = store_key(member.cluster(), &statement.key)
        .ok_or_else(|| refuse(Reason::Malformed, format!("{} is not kept by the federator", statement.key)))?;
    Ok(Judged {
        store_key,
        position: (statement.generation, statement.sequence),
        live: !matches!(statement.payload, Payload::Withdrawal),
        key: statement.key,
        value: signed.encode_to_vec(),
        signed,
    })
}

/// How many of the offers fit into one transaction; at least one.
#[must_use]
pub fn fitting(offers: &[Offer]) -> usize {
    let mut bytes = 0;
    let fits = |offer: &&Offer| {
        bytes += offer.size();
        bytes <= MOST_BYTES
    };
    offers.iter().take(MOST_RECORDS).take_while(fits).count().max(1).min(offers.len())
}

/// Holds offers against what is stored. `free` updates are allowed now; what is over that may come again after `pause`.
#[must_use]
pub fn plan(
    member: &VerifiedMember,
    epoch: Option<&Epoch>,
    offers: &[Offer],
    index: &Index,
    quota: &Quota,
    free: usize,
    pause: impl Fn(usize) -> Duration,
) -> Plan {
    let Some(epoch) = epoch else {
        return Plan::refused(offers, &refuse(Reason::NotPublisher, "this session did not ask to publish".to_owned()));
    };
    let heads = index.record(member.cluster(), "heads");
    let floor = heads.map(|heads| heads.position());
    let mut planning = Planning {
        index,
        quota,
        floor,
        usage: index.usage(member.cluster()),
        transaction: Transaction::new().expecting(&epoch.key, epoch.modified),
        newest: newest(offers),
        relies_on_heads: false,
        writes: 0,
        free,
    };
    let verdicts: Vec<_> = offers
        .iter()
        .map(|offer| match &offer.judged {
            Err(refusal) => Verdict::Refused(refusal.clone()),
            Ok(judged) => planning.judge(member, judged, &pause).unwrap_or_else(Verdict::Refused),
        })
        .collect();
    let heads_key = layout::heads(member.cluster().as_str());
    let mut transaction = planning.transaction;
    if planning.relies_on_heads && !transaction.expect.iter().any(|expect| expect.key == heads_key) {
        transaction = transaction.expecting(heads_key, heads.map_or(0, |heads| heads.revision()));
    }
    let writes = planning.writes;
    Plan { transaction: (writes > 0).then_some(transaction), writes, verdicts }
}

/// The highest position of each key: only that is worth writing.
fn newest(offers: &[Offer]) -> HashMap<&str, (u64, u64)> {
    let mut newest: HashMap<&str, (u64, u64)> = HashMap::new();
    for judged in offers.iter().filter_map(|offer| offer.judged.as_ref().ok()) {
        let position = newest.entry(&judged.store_key).or_default();
        *position = judged.position.max(*position);
    }
    newest
}

struct Planning<'a> {
    index: &'a Index,
    quota: &'a Quota,
    floor: Option<(u64, u64)>,
    usage: Usage,
    transaction: Transaction,
    newest: HashMap<&'a str, (u64, u64)>,
    relies_on_heads: bool,
    writes: usize,
    free: usize,
}

impl Planning<'_> {
    fn judge(
        &mut self,
        member: &VerifiedMember,
        judged: &Judged,
        pause: impl Fn(usize) -> Duration,
    ) -> Result<Verdict, Refusal> {
        if self.newest.get(judged.store_key.as_str()).is_some_and(|newest| *newest > judged.position) {
            return Err(refuse(Reason::Stale, "a newer record of the key is in the same message".to_owned()));
        }
        if self.transaction.operations.iter().any(|operation| operation.key() == judged.store_key) {
            return Err(refuse(Reason::Stale, "the key is in the same message twice".to_owned()));
        }
        let stored = self.index.record(member.cluster(), &judged.key.to_string());
        let replaced = match stored {
            Some(stored) if stored.position() == judged.position => {
                if stored.signed().message == judged.signed.message {
                    return Ok(Verdict::Known(stored.revision()));
                }
                let text = format!("sequence {} was used for other content", judged.position.1);
                return Err(refuse(Reason::Equivocation, text));
            }
            Some(stored) if stored.position() > judged.position => {
                let text =
                    format!("(generation, sequence) {:?} is stored, offered {:?}", stored.position(), judged.position);
                return Err(refuse(Reason::Stale, text));
            }
            stored => stored,
        };
        if replaced.is_none() {
            self.relies_on_heads = true;
            if let Some(floor) = self.floor.filter(|floor| *floor >= judged.position) {
                let text =
                    format!("the stored heads say at {floor:?} that there is none, offered {:?}", judged.position);
                return Err(refuse(Reason::Stale, text));
            }
        }
        let mut after = self.usage;
        if let Some(replaced) = replaced {
            after.records -= 1;
            after.bytes -= replaced.size();
            after.exports -= usize::from(replaced.is_live_export());
        }
        after.records += 1;
        after.bytes += judged.value.len();
        after.exports += usize::from(judged.live && matches!(judged.key, RecordKey::Export(_) | RecordKey::Slice(..)));
        self.within(&after, judged.live || replaced.is_none())?;
        if self.writes >= self.free {
            let limit = self.quota.updates_per_second;
            let text = format!("updatesPerSecond: at most {limit} records a second, and the burst is used up");
            let pause = u32::try_from(pause(self.writes + 1).as_millis()).unwrap_or(u32::MAX).max(1);
            return Err(Refusal { retry_after_ms: pause, ..refuse(Reason::Quota, text) });
        }
        self.usage = after;
        self.writes += 1;
        let transaction = std::mem::take(&mut self.transaction);
        self.transaction = transaction
            .expecting(&judged.store_key, replaced.map_or(0, |record| record.revision()))
            .put(&judged.store_key, judged.value.clone());
        Ok(Verdict::Written)
    }

    /// What only takes back is always within the quota.
    fn within(&self, after: &Usage, adds: bool) -> Result<(), Refusal> {
        let limits = [
            ("exports", self.usage.exports, after.exports, self.quota.exports),
            ("records", self.usage.records, after.records, self.quota.records),
            ("bytes", self.usage.bytes, after.bytes, self.quota.bytes),
        ];
        match limits.into_iter().find(|(_, before, after, limit)| adds && after > limit && after > before) {
            None => Ok(()),
            Some((name, before, _, limit)) => {
                let text = format!("{name}: the cluster has {before}, at most {limit} are allowed");
                Err(refuse(Reason::Quota, text))
            }
        }
    }
}

impl Plan {
    /// All are refused for this, but for those that have a fault of their own.
    #[must_use]
    pub fn refused(offers: &[Offer], refusal: &Refusal) -> Self {
        let verdicts = offers.iter().map(|offer| {
            let own = offer.judged.as_ref().err();
            Verdict::Refused(own.unwrap_or(refusal).clone())
        });
        Self { transaction: None, writes: 0, verdicts: verdicts.collect() }
    }

    /// The answers, once what was to be written is stored durably at `revision`.
    #[must_use]
    pub fn results(self, offers: &[Offer], revision: Revision) -> Vec<PublishResult> {
        let result = |(verdict, offer): (Verdict, &Offer)| {
            let (revision, refusal) = match verdict {
                Verdict::Refused(refusal) => (0, Some(refusal)),
                Verdict::Known(revision) => (revision, None),
                Verdict::Written => (revision, None),
            };
            PublishResult { key: offer.named.key.clone(), sequence: offer.named.sequence, revision, refusal }
        };
        self.verdicts.into_iter().zip(offers).map(result).collect()
    }

    /// The answers when the epoch was no longer this session's: nothing was written.
    #[must_use]
    pub fn fenced(self, offers: &[Offer]) -> Vec<PublishResult> {
        let refusal = refuse(Reason::NotPublisher, "another session of the cluster publishes".to_owned());
        Self::refused(offers, &refusal).results(offers, 0)
    }

    /// The answers when the store took no more: nothing was written, which this refusal says.
    #[must_use]
    pub fn without_space(mut self, offers: &[Offer], refusal: &Refusal) -> Vec<PublishResult> {
        for verdict in self.verdicts.iter_mut().filter(|verdict| **verdict == Verdict::Written) {
            *verdict = Verdict::Refused(refusal.clone());
        }
        self.results(offers, 0)
    }
}

fn refusal(error: &RecordError) -> Refusal {
    let reason = match error {
        RecordError::NotDelegated(_) => Reason::NotDelegated,
        RecordError::Size(_)
        | RecordError::Decode
        | RecordError::Key(_)
        | RecordError::Disagreement { .. }
        | RecordError::Field(_) => Reason::Malformed,
        RecordError::Signature
        | RecordError::Federation(_)
        | RecordError::Cluster(_)
        | RecordError::Generation { .. }
        | RecordError::Sequence(_)
        | RecordError::TrustDomain(_) => Reason::NotYours,
    };
    refuse(reason, error.to_string())
}
