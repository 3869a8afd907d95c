//! A store that answers at once; who asks it bears the delays. It can be restored from a backup.

use std::collections::BTreeMap;

use bytes::Bytes;
use federation_store::{Committed, LeaseId, Operation, Revision, Transaction};

/// What one revision changed; no value: deleted.
pub(crate) type Changes = Vec<(String, Option<Bytes>)>;

/// A key's revision and value.
pub(crate) type Contents = BTreeMap<String, (Revision, Bytes)>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) incarnation: u64,
    pub(crate) revision: Revision,
    pub(crate) contents: Contents,
    /// Above this revision every change is kept.
    pub(crate) compacted: Revision,
    history: BTreeMap<Revision, Changes>,
    /// Leases, and when each was last kept alive.
    kept: BTreeMap<LeaseId, u64>,
    leased: BTreeMap<String, LeaseId>,
}

impl Store {
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Committed {
        transaction.check().unwrap();
        for expect in &transaction.expect {
            if self.contents.get(&expect.key).map_or(0, |(modified, _)| *modified) != expect.modified {
                return Committed::Conflict { key: expect.key.clone() };
            }
        }
        self.revision += 1;
        let mut changes = Vec::new();
        for operation in &transaction.operations {
            match operation {
                Operation::Put { key, value, lease } => {
                    self.leased.remove(key);
                    self.leased.extend(lease.map(|lease| (key.clone(), lease)));
                    self.contents.insert(key.clone(), (self.revision, value.clone()));
                    changes.push((key.clone(), Some(value.clone())));
                }
                Operation::Delete { key } => {
                    if self.contents.remove(key).is_some() {
                        changes.push((key.clone(), None));
                    }
                }
            }
        }
        self.history.insert(self.revision, changes);
        Committed::Done(self.revision)
    }

    /// Keeps a lease alive, or begins one.
    pub(crate) fn keep(&mut self, lease: LeaseId, now: u64) {
        self.kept.insert(lease, now);
    }

    pub(crate) fn is_kept(&self, lease: LeaseId) -> bool {
        self.kept.contains_key(&lease)
    }

    /// Leases that were not kept alive run out, and their keys go.
    pub(crate) fn expire(&mut self, now: u64, ttl: u64) {
        self.kept.retain(|_, kept| now - *kept <= ttl);
        let over: Vec<_> = self.leased.iter().filter(|(_, lease)| !self.kept.contains_key(*lease)).collect();
        let transaction = over.into_iter().fold(Transaction::new(), |transaction, (key, _)| transaction.delete(key));
        if !transaction.operations.is_empty() {
            self.leased.retain(|_, lease| self.kept.contains_key(lease));
            let _ = self.commit(&transaction);
        }
    }

    pub(crate) fn modified(&self, key: &str) -> Revision {
        self.contents.get(key).map_or(0, |(modified, _)| *modified)
    }

    /// The changes after a revision, oldest first; `None` when they are not kept any more.
    pub(crate) fn after(&self, revision: Revision) -> Option<impl Iterator<Item = (&Revision, &Changes)>> {
        (revision >= self.compacted).then(|| self.history.range(revision + 1..))
    }

    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Goes back to a backup: another history begins. Leases that ran then run again.
    pub(crate) fn restore(&mut self, backup: &Self, now: u64) {
        let incarnation = self.incarnation + 1;
        *self = Self { incarnation, ..backup.clone() };
        self.kept.values_mut().for_each(|kept| *kept = now);
    }
}
