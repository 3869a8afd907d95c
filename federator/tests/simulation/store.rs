//! A store that answers at once; who asks it bears the delays. It can be restored from a backup.

use std::collections::BTreeMap;

use bytes::Bytes;
use federation_store::{Committed, Operation, Revision, Transaction};

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
                Operation::Put { key, value, .. } => {
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

    /// Goes back to a backup: another history begins.
    pub(crate) fn restore(&mut self, backup: &Self) {
        let incarnation = self.incarnation + 1;
        *self = Self { incarnation, ..backup.clone() };
    }
}
