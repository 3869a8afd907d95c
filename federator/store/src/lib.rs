//! A revisioned key-value store: one trait, etcd behind it in production, and an embedded backend for a federation
//! without etcd.
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
//! [`EtcdStore`] stands on three or more etcd members; what it does when they fail is told there. Its tests run on real
//! members that are killed, paused, cut off and filled up (`lab`, a feature of this crate).
//!
//! # Operating etcd
//!
//! - **Rights.** Each program has a prefix of its own, for example `/isthmus/federator/`, and a user named by the common
//!   name of its certificate (`--client-cert-auth`, `etcdctl auth enable`):
//!   `etcdctl role grant-permission federator --prefix=true readwrite /isthmus/federator/`. The trailing `/` matters: a
//!   prefix is a string prefix. Neither program needs, or should have, a right on the other's keys.
//! - **History.** Let etcd compact: `--auto-compaction-mode=periodic --auto-compaction-retention=1h`. A replica or a
//!   session that was away for longer reads everything once, and takes the difference. Defragment members one at a time.
//! - **Space.** `--quota-backend-bytes` at most 8 GiB. When it is used up, puts fail with [`StoreError::NoSpace`] until
//!   `etcdctl compact`, `defrag` and `alarm disarm`; what is there stays readable, and traffic does not depend on it.
//! - **Backup.** `etcdctl snapshot save FILE` at one member: it holds both programs' keys at one revision.
//! - **Restore.** Stop all members, then for each of them
//!   `etcdctl snapshot restore FILE --data-dir NEW --name … --initial-cluster … --initial-advertise-peer-urls …
//!   --initial-cluster-token NEW-TOKEN`, and start them on the new directories. The new token makes the restored history
//!   a new [`Incarnation`]: programs that were running end and start again, sessions get one snapshot and take the
//!   difference, and clusters publish again what the backup is too old to know. No export rolls back, since each
//!   cluster's records carry its own sequence, and whoever has seen a later one ignores the earlier.
//! - **Watch.** `…_store_watch_heard_timestamp_seconds` (older than 5 s: the replica follows nothing), `…_store_failures`
//!   by request and kind (`no_space`, `refused` need an operator), `…_store_request_duration_seconds`.
//!
//! [`follow`] keeps a copy of a prefix over all of this. [`layout`] builds the federation's keys; what the values hold
//! is not this crate's concern.

pub mod backup;
pub mod contract;
pub mod layout;

mod any;
mod embedded;
mod entry;
mod error;
mod etcd;
mod follow;
#[cfg(feature = "lab")]
pub mod lab;
mod store;
mod transaction;

pub use any::{AnyStore, EmbeddedConfig, OpenStoreError, StoreConfig};
pub use embedded::{Activity, EmbeddedOptions, EmbeddedStore, OpenError};
pub use entry::{Change, Entry, Incarnation, LeaseId, Revision, WatchBatch};
pub use error::{Source, StoreError, WatchError};
pub use etcd::{EtcdConfig, EtcdStore};
pub use follow::{FollowError, Followed, follow};
pub use store::{Page, RangePage, Snapshot, Store, WatchStream};
pub use transaction::{
    Committed, Expect, MAX_KEY_BYTES, MAX_OPERATIONS, MAX_REQUEST_BYTES, MAX_VALUE_BYTES, Operation, Transaction,
};
