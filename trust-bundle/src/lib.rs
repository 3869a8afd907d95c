//! trust-bundle: the federation's shared service that answers *who*: which clusters are members, and which roots speak
//! for each trust domain.
//!
//! ```text
//!  operator, offline                     trust-bundle (replicas share one store)
//!  ┌──────────────────┐  token           ┌───────────────────────────────────────────┐
//!  │ membership root  │ ───────► member ─┤ Join ─► members/…, bundles/…, tokens/…    │
//!  │ (init writes it) │                  │ PublishBundle ─► bundles/…      store     │
//!  └──────────────────┘                  │ Watch ◄── state ◄── one watch of the store│
//!                                        └───────────────────────────────────────────┘
//! ```
//!
//! - [`init`] makes a federation: the membership root for the operator, the federation's own authority for the service.
//! - [`verify`] judges every record, sent or stored; [`membership`] decides joins, bundles, departures and deny-lists,
//!   [`tokens`] knows the tokens; [`state`] is what watchers are told, [`watchers`] how far they are, at whichever replica;
//!   [`authority`] is the federation's own certificate authority, [`rotation`] replaces its root;
//!   [`standing`] says who was shut out; [`audit`] records who did what, [`allowance`] bounds how often; [`contact`] says whether
//!   the store is still heard; [`rpc`] serves it all as `trust.v1`;
//!   [`endpoint`] serves the bundles to software outside the federation.
//!
//! Invariants:
//! - The service holds no key that can mint a membership or a workload's identity: the membership root's secret half never
//!   reaches it, and what it signs are the federation plane's own certificates.
//! - A token joins once: what makes a member and what marks its token used is one transaction, and the last step that can
//!   fail.
//! - A change and its entry in the audit record are one transaction.
//! - A control-plane's certificate is good for the membership that it was issued for, and for no later one.
//! - A caller gets nothing but certificates for its own identity, puts nothing but its own bundle, and gets nothing at all
//!   once the operator's deny-list names it.
//! - Nothing is forgotten because a watcher or a store member went away; a membership ends only by the operator's
//!   word, or its own.
//! - A replica that does not hear its store serves no watch: who watches knows all there is, but for the last seconds.
//! - A root's key is one trust domain's.
//! - Every stored record is verified before it is stored, and again by whoever receives it.

pub mod allowance;
pub mod audit;
pub mod authority;
pub mod config;
pub mod contact;
pub mod endpoint;
pub mod init;
pub mod membership;
pub mod metrics;
pub mod program;
pub mod rotation;
pub mod rpc;
pub mod standing;
pub mod state;
pub mod tokens;
pub mod verify;
pub mod watchers;

pub use config::Config;
