//! A trust domain's certificate authority: its root, its key on disk, and X.509-SVIDs from certificate requests.
//!
//! ```text
//!   who asks ──token──► [Attestor] ──► [Workload] ──► SPIFFE ID ─┐      (the control-plane decides)
//!        └────CSR────────────────────────────────────────────────┤
//!                     public key + proof of possession           ▼
//!   ca.crt, ca.key ──twice a week──► online intermediate ──► [Authority] ──► [Svid]: leaf, intermediate, without the root
//!   (sealed, or away)                                            └─ roots() ──► the trust domain's bundle
//!                                                                       ▲
//!   [RootRotation]: next root beside it ► signs ► the old one runs out ─┘
//! ```
//!
//! Invariants:
//! - Of a request only the public key counts, and only after its signature proved possession of the private one. What it
//!   asks for (names, CA:TRUE, usages, validity) is not read.
//! - An authority signs for its own trust domain only, and never past the end of any certificate above the leaf.
//! - A root's key is read from its file to make an intermediate (seven days, the next one made at half, in use when a sixth
//!   is left), and dropped. While it is away or sealed the intermediate signs on. A chain that the operator brought signs as
//!   it is.
//! - Each root and intermediate has a subject of its own, so that a verifier never tries one's key on another's leaf.
//! - Private keys are written with mode 0600, whole or not at all, and never leave the process otherwise; with a [SealingKey]
//!   a root's lies encrypted.
//! - A root is replaced in steps that may each be repeated, and what was under way goes on after a crash at any point.

mod attest;
mod authority;
mod disk;
mod files;
mod issue;
mod online;
mod request;
mod root;
mod rotation;
mod seal;
mod signer;

pub use attest::{AttestError, Attestor, Workload};
pub use authority::{Authority, OpenError, RootError};
pub use files::AuthorityFiles;
pub use issue::{DEFAULT_LIFETIME, IssueError, Svid, key_digest, mark};
pub use online::{Due, INTERMEDIATE_LIFETIME};
pub use request::{MAX_REQUEST_BYTES, RequestError};
pub use root::ROOT_LIFETIME;
pub use rotation::{RootRotation, RootStep, RotateError};
pub use seal::{SealError, SealingKey};
