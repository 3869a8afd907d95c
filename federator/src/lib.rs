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
//! - [`credentials`]: the service's own certificate, renewed, and the federation's roots, followed over their rotation.
//! - Pure, so that the simulation can drive them: [`index`], the newest record of every key and the log of revisions that
//!   sessions have their cursors in; [`protocol`], one session's side of `federation.v1`; [`admission`], what a member may
//!   write, with its [`quota`]; [`collect`], what may be deleted.
//! - [`cache`] keeps the index equal to the store through one watch; [`publish`] commits; [`liveness`] and [`presence`] are
//!   who is connected, apart from what exists.
//! - [`session`] drives one control-plane's stream; [`rpc`] opens them, and `wire` frames what they say as `federation.v1`;
//!   [`registry`] and [`metrics`] show them to operators. What they have used and freed `heap` gives back to the system.
//!
//! Invariants:
//! - The caller's cluster comes from its certificate. It can write only records under its own publish key, and only from
//!   the newest session that asked to publish (the session epoch, a key that every transaction compares).
//! - A record is replaced only by one with a higher (generation, sequence). Nothing is deleted because a session ended: only
//!   for its owner's signed word, or the operator's.
//! - "Stored" is said after the store has it durably.
//! - A session costs its cursor and a few messages, however slow it is. The store sees one watch and one lease a replica.

pub mod admission;
pub mod cache;
pub mod collect;
pub mod config;
pub mod credentials;
mod debug;
mod heap;
pub mod index;
pub mod liveness;
pub mod members;
pub mod metrics;
pub mod presence;
pub mod program;
pub mod protocol;
pub mod publish;
pub mod quota;
pub mod registry;
pub mod replica;
pub mod rpc;
#[doc = include_str!("../SCALE.md")]
pub mod scale {}
pub mod session;
pub mod trust;
mod wire;

pub use config::Config;
