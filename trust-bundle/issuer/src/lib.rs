//! A trust domain's certificate authority: its root, its key on disk, and X.509-SVIDs from certificate requests.
//!
//! ```text
//!   who asks ──token──► [Attestor] ──► [Workload] ──► SPIFFE ID ─┐      (the control-plane decides)
//!        └────CSR────────────────────────────────────────────────┤
//!                     public key + proof of possession           ▼
//!   ca.crt, ca.key ─────► [Authority] ──────────► [Svid]: leaf … up to, without, the root
//!                            └─ root() ──► the trust domain's bundle
//! ```
//!
//! Invariants:
//! - Of a request only the public key counts, and only after its signature proved possession of the private one. What it
//!   asks for (names, CA:TRUE, usages, validity) is not read.
//! - An authority signs for its own trust domain only, and never past the end of any certificate above the leaf.
//! - Each root has a subject of its own, so that a verifier never tries one root's key on another root's leaf.
//! - The private key is written with mode 0600, whole or not at all, and never leaves the process otherwise.

mod attest;
mod authority;
mod files;
mod issue;
mod request;
mod root;

pub use attest::{AttestError, Attestor, Workload};
pub use authority::{Authority, OpenError};
pub use files::AuthorityFiles;
pub use issue::{BACKDATE, DEFAULT_LIFETIME, IssueError, Svid};
pub use request::{MAX_REQUEST_BYTES, RequestError};
pub use root::ROOT_LIFETIME;
