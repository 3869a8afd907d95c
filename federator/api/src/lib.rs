//! The contracts on every wire, the join token, signed records, and one resumable client per stream.
//!
//! ```text
//!   membership root ──signs──► Delegation ──token key──► PublishKeyGrant ──publish key──► Statement
//!   (operator, offline)        [token]                   [verify]                         [signing]
//!                                                                                            │ wire
//!              RecordSet ◄── VerifiedStatement ◄── clamp to the delegation ◄── convert ◄── verify
//!              [records]     [verify]              (federation::delegation)   [convert]
//! ```
//!
//! - [`record`], [`trust`], [`federation`], [`discovery`], [`mesh`]: the generated messages and services, each in its `v1`.
//! - [`signing`]: keys, each of which signs only what its place in the chain allows. [`token`]: what a cluster joins with.
//! - [`verify`], [`deny_list`]: bytes first, decoded afterwards; nothing that did not verify leaves them.
//! - [`payload`], [`convert`]: wire messages and the domain's types; an error names the field.
//! - [`publications`]: what a cluster says, has signed, and takes back after a restore.
//! - [`records`]: a receiver's newest word of each cluster on each key, and whether something is withheld.
//! - [`audit`]: the chain of the operators' record.
//! - [`client`]: trust, federation and discovery streams that reconnect, resume and never delete by absence.
//! - [`verdict`]: the first bytes between two sidecars.
//!
//! What must hold: a signature for one purpose is void for every other; a receiver takes only a higher
//! (generation, sequence) of a key, unless newer heads of its owner list a lower one; an equal one with other bytes is
//! equivocation; no bytes of a peer panic, and none make anything grow past a named limit.

pub mod audit;
pub mod client;
pub mod convert;
pub mod deny_list;
mod generated;
pub mod payload;
pub mod publications;
pub mod records;
mod redacted;
pub mod signing;
pub mod token;
mod unix;
pub mod verdict;
pub mod verify;

pub use generated::{discovery, federation, mesh, record, trust};
