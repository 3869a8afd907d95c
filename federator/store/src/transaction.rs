//! Compare-and-swap over several keys, within the limits of every backend.

use std::collections::HashSet;

use bytes::Bytes;

use crate::{LeaseId, Revision, StoreError};

/// The most operations, and the most expectations, in one transaction: etcd's default `--max-txn-ops`.
pub const MAX_OPERATIONS: usize = 128;
/// The largest transaction, in bytes: etcd's default `--max-request-bytes`.
pub const MAX_REQUEST_BYTES: usize = 1536 * 1024;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// What an expectation or operation costs besides its key and value: protobuf framing and the backend's own key prefix.
const ITEM_OVERHEAD_BYTES: usize = 128;

/// Operations to apply together, if every expectation holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold for the operations to be applied.
    pub expect: Vec<Expect>,
    /// What to do, each key at most once.
    pub operations: Vec<Operation>,
}

/// A key's modification revision, as the writer believes it to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The key; it need not be one that the transaction changes.
    pub key: String,
    /// [`Entry::modified`](crate::Entry::modified) of the key, or 0 for an absent key.
    pub modified: Revision,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Create the key or replace its value and lease.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The lease to live with; `None` detaches the key from the one it had.
        lease: Option<LeaseId>,
    },
    /// Delete the key. Deleting an absent key changes nothing.
    Delete {
        /// The key.
        key: String,
    },
}

impl Operation {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key } => key,
        }
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a conflict is not an error, and changes nothing"]
pub enum Committed {
    /// It was applied, as this revision; when its operations changed nothing, the store's current one.
    Done(Revision),
    /// An expectation did not hold, and nothing was applied.
    Conflict {
        /// The first expectation that failed.
        key: String,
    },
}

impl Committed {
    /// The revision, unless there was a conflict.
    pub fn done(&self) -> Option<Revision> {
        match self {
            Committed::Done(revision) => Some(*revision),
            Committed::Conflict { .. } => None,
        }
    }
}

impl Transaction {
    /// A transaction that expects and does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also expects that `key` was modified last by `modified`; 0 means that it is absent.
    #[must_use]
    pub fn expecting(mut self, key: impl Into<String>, modified: Revision) -> Self {
        self.expect.push(Expect { key: key.into(), modified });
        self
    }

    /// Also expects that there is no `key`.
    #[must_use]
    pub fn expecting_absent(self, key: impl Into<String>) -> Self {
        self.expecting(key, 0)
    }

    /// Also puts `key`, without a lease.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.operations.push(Operation::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Also puts `key`, to live as long as `lease`.
    #[must_use]
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        self.operations.push(Operation::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Also deletes `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.operations.push(Operation::Delete { key: key.into() });
        self
    }

    /// The size that counts against [`MAX_REQUEST_BYTES`]. An expectation's key counts twice: a backend may have to
    /// name it again to learn which one failed.
    pub fn size(&self) -> usize {
        let expected: usize = self.expect.iter().map(|expect| 2 * expect.key.len() + ITEM_OVERHEAD_BYTES).sum();
        let operated: usize = self.operations.iter().map(operation_size).sum();
        expected + operated
    }

    /// Whether every backend could take it; backends call this before anything else.
    ///
    /// # Errors
    ///
    /// The limit that it breaks: [`StoreError::TooManyOperations`], [`StoreError::InvalidKey`],
    /// [`StoreError::ValueTooLarge`], [`StoreError::DuplicateKey`] or [`StoreError::RequestTooLarge`].
    pub fn check(&self) -> Result<(), StoreError> {
        let count = self.expect.len().max(self.operations.len());
        if count > MAX_OPERATIONS {
            return Err(StoreError::TooManyOperations { count, limit: MAX_OPERATIONS });
        }
        self.expect.iter().try_for_each(|expect| check_key(&expect.key))?;
        let mut seen = HashSet::with_capacity(self.operations.len());
        for operation in &self.operations {
            check_operation(operation)?;
            if !seen.insert(operation.key()) {
                return Err(StoreError::DuplicateKey { key: operation.key().to_owned() });
            }
        }
        let size = self.size();
        if size > MAX_REQUEST_BYTES {
            return Err(StoreError::RequestTooLarge { size, limit: MAX_REQUEST_BYTES });
        }
        Ok(())
    }
}

fn operation_size(operation: &Operation) -> usize {
    let value = match operation {
        Operation::Put { value, .. } => value.len(),
        Operation::Delete { .. } => 0,
    };
    operation.key().len() + value + ITEM_OVERHEAD_BYTES
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(StoreError::InvalidKey { size: key.len(), limit: MAX_KEY_BYTES });
    }
    Ok(())
}

fn check_operation(operation: &Operation) -> Result<(), StoreError> {
    check_key(operation.key())?;
    match operation {
        Operation::Put { key, value, .. } if value.len() > MAX_VALUE_BYTES => {
            Err(StoreError::ValueTooLarge { key: key.clone(), size: value.len(), limit: MAX_VALUE_BYTES })
        }
        _ => Ok(()),
    }
}
