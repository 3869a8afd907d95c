//! The audit record: what was done, and what was refused, in the order in which it happened.
//!
//! ```text
//!   audit/1 ◄─digest─ audit/2 ◄─digest─ audit/3 ◄─digest─ audit-head
//! ```
//!
//! A change and its entry are one transaction, so neither is there without the other. What is refused is bounded in its
//! rate, since anybody can be refused; the entry after a pause says how many were left out. The newest [`MAX_ENTRIES`] are
//! kept. What members do over and over is bounded as well ([`Changes`](crate::allowance::Changes)): none of them can push out what it did.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use federation_api::audit::digest_of;
use federation_api::trust::v1::{AuditEntry, StoredAuditHead};
use federation_store::{Committed, Page, Store, StoreError, Transaction, layout};
use prost::Message;
use tracing::error;

use crate::allowance::{Allowance, Bucket};

/// How many entries are kept. Refusals of one kind alone take two months to push the oldest one out.
pub const MAX_ENTRIES: u64 = 100_000;
/// How many refusals of one action are recorded at once, and how long it takes until one more may be.
const REFUSALS: Allowance = Allowance { at_once: 30, every: Duration::from_secs(60) };
/// A field is cut to so many characters: some of them were written by whoever was refused.
const MAX_FIELD: usize = 500;
/// Entries that are read at a time.
const PAGE: usize = 200;
/// How often a refusal tries to be recorded while others record theirs.
const ATTEMPTS: usize = 200;

/// Something that somebody did, or tried to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The SPIFFE ID of the caller's certificate; for a join the token's id.
    pub who: String,
    /// For example `member.joined`.
    pub action: &'static str,
    /// A cluster, a token, a trust domain.
    pub subject: String,
    /// For a person.
    pub detail: String,
}

/// The record in the store. Clones share it.
#[derive(Debug, Clone)]
pub struct AuditLog<S> {
    store: S,
    refusals: Arc<Mutex<BTreeMap<&'static str, Bucket>>>,
}

impl<S: Store> AuditLog<S> {
    /// The record in this store.
    pub fn new(store: S) -> Self {
        Self { store, refusals: Arc::default() }
    }

    /// The transaction, which also records that it was done. A conflict may be another entry's: stage again.
    ///
    /// # Errors
    /// The store's.
    pub async fn stage(&self, transaction: Transaction, note: &Note) -> Result<Transaction, StoreError> {
        self.stage_outcome(transaction, note, "").await
    }

    async fn stage_outcome(
        &self,
        transaction: Transaction,
        note: &Note,
        refused: &str,
    ) -> Result<Transaction, StoreError> {
        let stored = self.store.get(layout::AUDIT_HEAD).await?;
        let head = match stored.as_ref().map(|entry| StoredAuditHead::decode(entry.value.clone())) {
            None => StoredAuditHead::default(),
            Some(Ok(head)) => head,
            Some(Err(error)) => {
                error!(%error, "the end of the audit record is unreadable: looking for it");
                self.find_head().await?
            }
        };
        let cut = |text: &str| text.chars().take(MAX_FIELD).collect::<String>();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let entry = AuditEntry {
            number: head.number + 1,
            time_ms: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX),
            who: cut(&note.who),
            action: note.action.to_owned(),
            subject: cut(&note.subject),
            detail: cut(&note.detail),
            refused: cut(refused),
            previous: head.digest,
        };
        let next = StoredAuditHead { number: entry.number, digest: digest_of(&entry) };
        let transaction = transaction
            .expecting(layout::AUDIT_HEAD, stored.map_or(0, |entry| entry.modified))
            .put(layout::AUDIT_HEAD, next.encode_to_vec())
            .put(layout::audit(entry.number), entry.encode_to_vec());
        Ok(match entry.number.checked_sub(MAX_ENTRIES) {
            Some(oldest @ 1..) => transaction.delete(layout::audit(oldest)),
            _ => transaction,
        })
    }

    /// Records what was done outside of the store.
    ///
    /// # Errors
    /// The store's.
    pub async fn done(&self, note: &Note) -> Result<(), StoreError> {
        self.append(note, "").await
    }

    /// Records a refusal, if there were not too many of its kind. What cannot be recorded is logged: a refusal stands.
    pub async fn refused(&self, note: &Note, reason: &str) {
        let omitted = {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            refusals.entry(note.action).or_insert_with(|| Bucket::full(REFUSALS, now)).take(now)
        };
        let Some(omitted) = omitted else { return };
        let mut note = note.clone();
        if omitted > 0 {
            note.detail = format!("{} ({omitted} more were refused and not recorded)", note.detail);
        }
        if let Err(error) = self.append(&note, reason).await {
            error!(%error, action = note.action, "a refusal is not recorded");
        }
    }

    async fn append(&self, note: &Note, refused: &str) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            let transaction = self.stage_outcome(Transaction::new(), note, refused).await?;
            if let Committed::Done(_) = self.store.commit(transaction).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("too many others write to the audit record".into()))
    }

    /// Some of the entries after `number`, oldest first; none: there are no more.
    ///
    /// # Errors
    /// The store's.
    pub async fn after(&self, number: u64) -> Result<Vec<AuditEntry>, StoreError> {
        let page = Page { after: Some(layout::audit(number)), ..Page::first(PAGE) };
        let read = self.store.range(layout::AUDIT, page).await?;
        let mut entries = Vec::with_capacity(read.entries.len());
        for entry in read.entries {
            match AuditEntry::decode(entry.value) {
                Ok(entry) => entries.push(entry),
                // The reader's chain shows the gap.
                Err(error) => error!(key = entry.key, %error, "an audit entry is unreadable"),
            }
        }
        Ok(entries)
    }

    async fn find_head(&self) -> Result<StoredAuditHead, StoreError> {
        let mut head = StoredAuditHead::default();
        loop {
            let entries = self.after(head.number).await?;
            let Some(last) = entries.last() else { return Ok(head) };
            head = StoredAuditHead { number: last.number, digest: digest_of(last) };
        }
    }
}
