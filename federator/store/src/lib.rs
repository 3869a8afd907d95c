//! A revisioned key-value store: one trait, and the embedded backend that a federation without etcd runs on.
//!
//! ```text
//!            commit(expect…, operations…)                     watch(prefix, after)
//!   program ───────────────┐                                        ▲
//!                          ▼                                        │ one batch a revision, in order
//!   revision   1 ──── 2 ──── 3 ──── 4 ──── 5 ──── 6 ──── 7 ──── 8   │
//!              └─ compacted ─┘      └────────── history ─────────┴──┘
//!                                      range(prefix, page.at)
//! ```
//!
//! Every transaction that changes something takes the next [`Revision`] of the whole store; an [`Entry`] remembers the
//! revision that created it and the one that modified it last. The shape is etcd's, so that etcd can stand behind the
//! trait without emulation: compare on the modification revision, at most [`MAX_OPERATIONS`] operations a transaction,
//! requests up to [`MAX_REQUEST_BYTES`], leases whose keys disappear together.
//!
//! What every backend keeps, and [`contract`] checks:
//!
//! - A transaction is applied whole or not at all, and transactions are linearizable. What was acknowledged survives a
//!   crash of the process and of the machine.
//! - A read after an acknowledged commit sees it. A range read at a revision is the state of exactly that revision, on
//!   every page.
//! - A watch reports every later revision that touches its prefix once, in order and whole, or ends with an error;
//!   it never skips. Below the compacted revision it reports [`WatchError::Compacted`].
//! - The keys of a lease are deleted in one revision when it expires or is revoked, and never before its time.
//! - Keys are plain strings and a prefix is a plain string prefix: end it with `/` to mean "the keys below". Where the
//!   keys lie inside a shared database (etcd keys live below one configurable prefix) is the backend's concern, and
//!   callers never see it.
//! - Revisions are comparable within one [`Incarnation`] only: a restore from a backup starts another one.
//!
//! [`follow`] keeps a copy of a prefix over all of this. [`layout`] builds the federation's keys; what the values hold
//! is not this crate's concern.

pub mod contract;
pub mod layout;

mod embedded;
mod entry;
mod error;
mod follow;
mod store;
mod transaction;

pub use embedded::{Activity, EmbeddedOptions, EmbeddedStore, OpenError};
pub use entry::{Change, Entry, Incarnation, LeaseId, Revision, WatchBatch};
pub use error::{Source, StoreError, WatchError};
pub use follow::{FollowError, Followed, follow};
pub use store::{Page, RangePage, Snapshot, Store, WatchStream};
pub use transaction::{
    Committed, Expect, MAX_KEY_BYTES, MAX_OPERATIONS, MAX_REQUEST_BYTES, MAX_VALUE_BYTES, Operation, Transaction,
};
