//! How a store refuses or fails.

use crate::{LeaseId, Revision};

/// What lies behind a backend's failure.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a call did not do what was asked. A lost compare-and-swap is not an error but
/// [`Committed::Conflict`](crate::Committed::Conflict).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// More expectations, or more operations, than a transaction may hold.
    #[error("a transaction of {count} operations or expectations: at most {limit} are possible")]
    TooManyOperations {
        /// The larger of the two counts.
        count: usize,
        /// [`MAX_OPERATIONS`](crate::MAX_OPERATIONS).
        limit: usize,
    },
    /// The transaction's keys and values are too large together.
    #[error("a transaction of {size} bytes: at most {limit} are possible")]
    RequestTooLarge {
        /// Its size as it is counted, in bytes.
        size: usize,
        /// [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES).
        limit: usize,
    },
    /// A single value is too large.
    #[error("the value of {key:?} has {size} bytes: at most {limit} are possible")]
    ValueTooLarge {
        /// The key it was meant for.
        key: String,
        /// The value's size in bytes.
        size: usize,
        /// [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES).
        limit: usize,
    },
    /// A key is empty or longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    #[error("a key of {size} bytes: between 1 and {limit} are possible")]
    InvalidKey {
        /// The key's size in bytes.
        size: usize,
        /// [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
        limit: usize,
    },
    /// A transaction operates twice on one key.
    #[error("two operations on {key:?} in one transaction")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The lease expired, was revoked, or never was.
    #[error("there is no lease {lease}")]
    LeaseNotFound {
        /// The lease that was named.
        lease: LeaseId,
    },
    /// The revision asked for is no longer kept.
    #[error("the history is compacted: it starts at revision {oldest}")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision asked for does not exist yet.
    #[error("the store has only reached revision {current}")]
    FutureRevision {
        /// The store's newest revision.
        current: Revision,
    },
    /// The store was closed, or stopped after a failure it reported before.
    #[error("the store is closed")]
    Closed,
    /// No answer came to a commit, nor to the attempts at reading back what became of it: it may have been applied, or
    /// may be applied yet.
    #[error("whether the transaction was applied is not known")]
    OutcomeUnknown(#[source] Source),
    /// The backend's quota is used up: etcd refuses to put until somebody compacts, defragments and disarms its alarm.
    /// Nothing of this transaction was applied, unless it was too large to be told apart (see
    /// [`Store::commit`](crate::Store::commit)).
    #[error("the store has no space left")]
    NoSpace(#[source] Source),
    /// The backend cannot answer now; nothing was applied.
    #[error("the store is unavailable")]
    Unavailable(#[source] Source),
    /// The backend failed in a way that trying again will not mend. A commit may have been applied all the same.
    #[error("the store failed")]
    Storage(#[source] Source),
}

impl StoreError {
    /// Whether the same call may succeed later without anything else being done.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::Unavailable(_))
    }
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Revisions after the one asked for are no longer kept: read a [snapshot](crate::Store::snapshot), compare it with
    /// what is known, and watch after the snapshot's revision.
    #[error("the history is compacted: it starts at revision {oldest}")]
    Compacted {
        /// The oldest revision a watch can start after.
        oldest: Revision,
    },
    /// The store was closed, or stopped after a failure.
    #[error("the store is closed")]
    Closed,
    /// The backend cannot go on now; watch again after the last revision seen.
    #[error("the store is unavailable")]
    Unavailable(#[source] Source),
    /// The backend failed in a way that watching again will not mend.
    #[error("the store failed")]
    Storage(#[source] Source),
}
