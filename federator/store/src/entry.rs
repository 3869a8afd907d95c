//! What is stored, and what a watch reports.

use std::fmt;

use bytes::Bytes;

/// A point in the store's history. Every transaction that changes something takes the next one; 0 is before all of
/// them, and as a modification revision it means that a key is absent.
pub type Revision = u64;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key, as it was put.
    pub key: String,
    /// The value, at most [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES).
    pub value: Bytes,
    /// The revision that put the key when it was absent.
    pub created: Revision,
    /// The revision that put the key last: what a compare-and-swap names.
    pub modified: Revision,
    /// The lease that the last put attached the key to.
    pub lease: Option<LeaseId>,
}

/// One key's part in a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was put; the entry is what it held after that revision.
    Put(Entry),
    /// The key was deleted, by a transaction or with its lease.
    Delete {
        /// The deleted key.
        key: String,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete { key } => key,
        }
    }
}

/// All that one revision changed below a watch's prefix.
///
/// Without changes it is a progress note: everything up to `revision` has been reported, and a watch may be resumed after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision; resume a watch after it.
    pub revision: Revision,
    /// The changes, each key at most once.
    pub changes: Vec<Change>,
}

/// A lease: keys attached to it live while it is kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

impl LeaseId {
    /// The lease with a backend's number for it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The backend's number for this lease.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One unbroken history of a store. A restore from a backup starts another, in which the same revision number may mean
/// another state: whoever resumes by revision compares this first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(u64);

impl Incarnation {
    /// The incarnation with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, for the wire.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
