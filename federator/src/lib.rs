//! federator: the federation's shared service that answers *what*: which cluster exports which service, with which
//! ports, where, how healthy.
//!
//! ```text
//!  control-plane of a member                     federator (replicas share one store)
//!  ┌───────────┐  Publish: signed records   ┌────────────────────────────────────────────────┐
//!  │ publisher │ ─────────────────────────► │ publish: verify, fence, one transaction ──► store
//!  └───────────┘                            │                                             │  │
//!  ┌───────────┐  Changes, snapshots        │ session: cursor + interest ◄── cache ◄── one watch
//!  │ any other │ ◄───────────────────────── │ liveness: one leased key a cluster             │
//!  └───────────┘                            │ members ◄── trust.v1 watch of trust-bundle     │
//!                                           └────────────────────────────────────────────────┘
//! ```
//!
//! - [`members`]: whose records are believed, followed over `trust.v1` and kept on disk.
//! - [`cache`]: the newest record of every key, indexed by the revision that wrote it. A session's backlog is the part of
//!   that index above its cursor, so a slow session costs one number, and resuming is the same as being slow.
//! - [`publish`]: what a member may write. [`liveness`]: who is connected, apart from what exists.
//! - [`session`]: one control-plane's stream; [`rpc`] serves them as `federation.v1`.
//!
//! Invariants:
//! - The caller's cluster comes from its certificate. It can write only records under its own publish key, and only from
//!   the newest session that asked to publish (the session epoch, a key that every transaction compares).
//! - A record is replaced only by one with a higher (generation, sequence). Nothing is deleted because a session ended.
//! - "Stored" is said after the store has it durably.

pub mod cache;
pub mod config;
pub mod liveness;
pub mod members;
pub mod program;
pub mod publish;
pub mod rpc;
pub mod session;
pub mod trust;

pub use config::Config;
