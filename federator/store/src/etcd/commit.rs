//! Transactions, each applied at most once and its outcome known, also when an answer got lost.
//!
//! An attempt that is not answered may have been applied, or may be applied later. So a transaction that puts something,
//! or deletes what it expects to be there, also puts its own random mark into a *slot*, a key beside the entries, and
//! expects the slot as it was:
//!
//! ```text
//! if    <expectations>  and  commits/17 modified by 4711       the attempt and its repetition exclude each other:
//! then  <operations>    and  put commits/17 = <mark>           whichever comes first moves the slot
//! else  read what was expected, and commits/17                 the mark in the slot: an earlier attempt was applied
//! ```
//!
//! A store has [`SLOTS`] slots, so at most so many transactions are under way at once. Which ones is drawn when it is
//! opened; two stores that share a slot only make each other look again.

use std::sync::{Mutex, PoisonError};

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use super::fault::Fault;
use super::keys::{Keys, number, revision};
use super::members::{DEADLINE, Members, PAUSE};
use crate::{
    Committed, LeaseId, MAX_OPERATIONS, MAX_REQUEST_BYTES, Operation, Revision, Source, StoreError, Transaction,
};

/// How many slots one open store uses.
const SLOTS: u16 = 64;
/// How many slots there are for all.
const ALL_SLOTS: u16 = 4096;
/// What a slot adds to a request, at most.
const SLOT_BYTES: usize = 1024;

/// The slots of one open store.
#[derive(Debug)]
pub(super) struct Slots {
    free: Mutex<Vec<Slot>>,
    permits: Semaphore,
}

/// A key beside the entries, and the revision that modified it last, as far as is known.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u16,
    modified: Revision,
}

impl Slots {
    pub(super) fn draw() -> Self {
        let first = rand::random_range(0..ALL_SLOTS / SLOTS) * SLOTS;
        let free = (first..first + SLOTS).map(|number| Slot { number, modified: 0 }).collect();
        Self { free: Mutex::new(free), permits: Semaphore::new(usize::from(SLOTS)) }
    }

    async fn take(&self) -> Result<Held<'_>, StoreError> {
        let permit = self.permits.acquire().await.map_err(|_| StoreError::Closed)?;
        let slot = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().ok_or(StoreError::Closed)?;
        Ok(Held { slots: self, slot, mark: rand::random(), _permit: permit })
    }
}

/// A slot in use; it goes back when dropped.
struct Held<'s> {
    slots: &'s Slots,
    slot: Slot,
    mark: u128,
    _permit: SemaphorePermit<'s>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.slots.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
    }
}

impl Held<'_> {
    fn unmoved(&self, keys: &Keys) -> Compare {
        Compare::mod_revision(keys.commit_slot(self.slot.number), CompareOp::Equal, number(self.slot.modified))
    }
}

/// What etcd said to a transaction.
enum Verdict {
    Applied(Revision),
    /// An earlier attempt was applied as this revision.
    AppliedBefore(Revision),
    /// Another store moved the slot; an expectation may fail, too.
    SlotMoved(Revision),
    /// This expectation does not hold.
    Conflict(String),
}

/// Commits a transaction. One that only deletes is made to expect what it deletes, as that is found: a repetition is then
/// told from the first, and deletes nothing that was put in between.
pub(super) async fn commit(
    members: &Members,
    keys: &Keys,
    slots: &Slots,
    transaction: &Transaction,
) -> Result<Committed, StoreError> {
    let expected = |key: &str| transaction.expect.iter().any(|expect| expect.key == key);
    let blind = |operation: &Operation| matches!(operation, Operation::Delete { key } if !expected(key));
    let deletes = !transaction.operations.is_empty() && transaction.operations.iter().all(blind);
    if !deletes || transaction.expect.len() + transaction.operations.len() >= MAX_OPERATIONS {
        return Commit::new(members, keys, slots, transaction).await?.run().await;
    }
    loop {
        let present = present(members, keys, transaction).await?;
        let mut guarded = Transaction { expect: transaction.expect.clone(), operations: Vec::new() };
        for (key, modified) in present {
            guarded = guarded.expecting(&key, modified).delete(&key);
        }
        match Commit::new(members, keys, slots, &guarded).await?.run().await? {
            Committed::Conflict { key } if !expected(&key) => {}
            committed => return Ok(committed),
        }
    }
}

/// Which of the keys that a transaction operates on are there, and when each was modified.
async fn present(
    members: &Members,
    keys: &Keys,
    transaction: &Transaction,
) -> Result<Vec<(String, Revision)>, StoreError> {
    let look = |operation: &Operation| TxnOp::get(keys.of(operation.key()), Some(GetOptions::new().with_keys_only()));
    let looks: Vec<TxnOp> = transaction.operations.iter().map(look).collect();
    let read = members.repeat("get", |mut client| {
        let look = Txn::new().and_then(looks.clone());
        async move { client.txn(look).await }
    });
    let found = read.await?.op_responses().into_iter().map(found);
    let operated = transaction.operations.iter().map(|operation| operation.key().to_owned());
    Ok(operated.zip(found).map(|(key, (modified, _))| (key, modified)).filter(|(_, modified)| *modified != 0).collect())
}

/// One transaction under way.
struct Commit<'s> {
    members: &'s Members,
    keys: &'s Keys,
    transaction: &'s Transaction,
    held: Option<Held<'s>>,
    /// Why it is not known whether an earlier attempt was, or will be, applied.
    unclear: Option<Source>,
}

impl<'s> Commit<'s> {
    async fn new(
        members: &'s Members,
        keys: &'s Keys,
        slots: &'s Slots,
        transaction: &'s Transaction,
    ) -> Result<Self, StoreError> {
        // A slot is a change: only what surely changes something may take a revision.
        let changes = transaction.operations.iter().any(|operation| match operation {
            Operation::Put { .. } => true,
            Operation::Delete { key } => {
                transaction.expect.iter().any(|expect| expect.key == *key && expect.modified != 0)
            }
        });
        let room = transaction.operations.len().max(transaction.expect.len()) < MAX_OPERATIONS
            && transaction.size() + SLOT_BYTES <= MAX_REQUEST_BYTES;
        let held = if changes && room { Some(slots.take().await?) } else { None };
        Ok(Self { members, keys, transaction, held, unclear: None })
    }

    async fn run(mut self) -> Result<Committed, StoreError> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let request = self.request();
            let fault = match self.members.attempt("txn", |mut client| async move { client.txn(request).await }).await {
                Ok(response) => match self.judge(&response)? {
                    Verdict::Applied(revision) | Verdict::AppliedBefore(revision) => {
                        return Ok(Committed::Done(revision));
                    }
                    Verdict::Conflict(key) => return self.conflict(key).await,
                    Verdict::SlotMoved(modified) => {
                        if let Some(source) = self.unclear.take() {
                            return Err(StoreError::OutcomeUnknown(source));
                        }
                        self.move_slot(modified);
                        continue;
                    }
                },
                Err(fault) => fault,
            };
            let late = Instant::now() + PAUSE >= deadline;
            match fault {
                Fault::NotDone(source) if late => {
                    return Err(self.unclear.map_or(StoreError::Unavailable(source), StoreError::OutcomeUnknown));
                }
                Fault::NotDone(_) => {}
                Fault::Unknown(source) if late || !self.may_repeat() => return Err(StoreError::OutcomeUnknown(source)),
                Fault::Unknown(source) => self.unclear = Some(source),
                Fault::NoSpace(source) => match self.no_space(source).await {
                    // Without the mark it needs no space, and what it deletes is what it expects.
                    Err(StoreError::NoSpace(_)) if self.held.is_some() && self.only_deletes() => {
                        self.held = None;
                        continue;
                    }
                    outcome => return outcome,
                },
                fault => return Err(fault.into_store_error(self.lease(), 0)),
            }
            sleep(PAUSE).await;
        }
    }

    fn request(&self) -> Txn {
        let expected = self.transaction.expect.iter();
        let mut compares: Vec<Compare> = expected
            .map(|expect| Compare::mod_revision(self.keys.of(&expect.key), CompareOp::Equal, number(expect.modified)))
            .collect();
        let mut operations: Vec<TxnOp> =
            self.transaction.operations.iter().map(|operation| self.operation(operation)).collect();
        let look =
            |expect: &crate::Expect| TxnOp::get(self.keys.of(&expect.key), Some(GetOptions::new().with_keys_only()));
        let mut otherwise: Vec<TxnOp> = self.transaction.expect.iter().map(look).collect();
        if let Some(held) = &self.held {
            let key = self.keys.commit_slot(held.slot.number);
            compares.push(held.unmoved(self.keys));
            operations.push(TxnOp::put(key.clone(), held.mark.to_be_bytes().to_vec(), None));
            otherwise.push(TxnOp::get(key, None));
        }
        Txn::new().when(compares).and_then(operations).or_else(otherwise)
    }

    fn operation(&self, operation: &Operation) -> TxnOp {
        match operation {
            Operation::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.number().cast_signed()));
                TxnOp::put(self.keys.of(key), value.to_vec(), options)
            }
            Operation::Delete { key } => TxnOp::delete(self.keys.of(key), None),
        }
    }

    fn judge(&mut self, response: &TxnResponse) -> Result<Verdict, StoreError> {
        let now = response.header().map_or(0, |header| revision(header.revision()));
        if response.succeeded() {
            self.move_slot(now);
            return Ok(Verdict::Applied(now));
        }
        // One answer for each expectation, in order, and then the slot's.
        let found: Vec<(Revision, Vec<u8>)> = response.op_responses().into_iter().map(found).collect();
        if let (Some(held), Some((modified, value))) = (&mut self.held, found.get(self.transaction.expect.len())) {
            if value[..] == held.mark.to_be_bytes() {
                held.slot.modified = *modified;
                return Ok(Verdict::AppliedBefore(*modified));
            }
            if *modified != held.slot.modified {
                return Ok(Verdict::SlotMoved(*modified));
            }
        }
        let expected = self.transaction.expect.iter().zip(&found);
        let failed = expected.into_iter().find(|(expect, (modified, _))| expect.modified != *modified);
        let (expect, _) =
            failed.ok_or_else(|| StoreError::Storage("a transaction failed although all holds".into()))?;
        Ok(Verdict::Conflict(expect.key.clone()))
    }

    /// A conflict is final only when no earlier attempt can still be applied.
    async fn conflict(mut self, key: String) -> Result<Committed, StoreError> {
        let Some(source) = self.unclear.take() else { return Ok(Committed::Conflict { key }) };
        let Some(held) = &self.held else { return Err(StoreError::OutcomeUnknown(source)) };
        let slot = self.keys.commit_slot(held.slot.number);
        let fence = Txn::new()
            .when([held.unmoved(self.keys)])
            .and_then([TxnOp::put(slot.clone(), rand::random::<u128>().to_be_bytes().to_vec(), None)])
            .or_else([TxnOp::get(slot, None)]);
        let fenced = self.members.attempt("txn", |mut client| async move { client.txn(fence).await }).await;
        match fenced {
            Ok(response) if response.succeeded() => {
                self.move_slot(response.header().map_or(0, |header| revision(header.revision())));
                Ok(Committed::Conflict { key })
            }
            Ok(response) => self
                .read_back(response.op_responses().into_iter().map(found).next(), StoreError::OutcomeUnknown(source)),
            Err(_) => Err(StoreError::OutcomeUnknown(source)),
        }
    }

    /// etcd says this also to the transaction that met the limit, which it applied.
    async fn no_space(&self, source: Source) -> Result<Committed, StoreError> {
        let Some(held) = &self.held else { return Err(StoreError::NoSpace(source)) };
        let slot = self.keys.commit_slot(held.slot.number);
        let read = self.members.repeat("get", |mut client| {
            let slot = slot.clone();
            async move { client.get(slot, None).await }
        });
        match read.await {
            Ok(response) => {
                let pair = response.kvs().first().map(|pair| (revision(pair.mod_revision()), pair.value().to_vec()));
                self.read_back(pair, StoreError::NoSpace(source))
            }
            Err(_) => Err(StoreError::OutcomeUnknown(source)),
        }
    }

    /// Done, when the slot holds this transaction's mark.
    fn read_back(&self, slot: Option<(Revision, Vec<u8>)>, otherwise: StoreError) -> Result<Committed, StoreError> {
        let mark = self.held.as_ref().map(|held| held.mark.to_be_bytes());
        match slot {
            Some((modified, value)) if mark.is_some_and(|mark| value == mark) => Ok(Committed::Done(modified)),
            _ => Err(otherwise),
        }
    }

    /// Whether a second application would be noticed: by the slot, or because what it changes is also what it expects.
    fn may_repeat(&self) -> bool {
        let mut operations = self.transaction.operations.iter();
        let expected = |key| self.transaction.expect.iter().any(|expect| expect.key == key);
        self.held.is_some()
            || self.transaction.operations.is_empty()
            || operations.any(|operation| expected(operation.key()))
    }

    fn only_deletes(&self) -> bool {
        self.transaction.operations.iter().all(|operation| matches!(operation, Operation::Delete { .. }))
    }

    fn move_slot(&mut self, modified: Revision) {
        if let Some(held) = &mut self.held {
            held.slot.modified = modified;
        }
    }

    /// The lease that was named, to say which one is gone.
    fn lease(&self) -> LeaseId {
        let named = self.transaction.operations.iter().find_map(|operation| match operation {
            Operation::Put { lease, .. } => *lease,
            Operation::Delete { .. } => None,
        });
        named.unwrap_or(LeaseId::new(0))
    }
}

/// When a key was modified, and its value; 0 for an absent key.
fn found(response: TxnOpResponse) -> (Revision, Vec<u8>) {
    let TxnOpResponse::Get(read) = response else { return (0, Vec::new()) };
    read.kvs().first().map_or((0, Vec::new()), |pair| (revision(pair.mod_revision()), pair.value().to_vec()))
}
