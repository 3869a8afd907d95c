//! Mutual TLS by SPIFFE identity: rustls configurations that judge a peer by the roots of the peer's *own* trust domain,
//! and the plumbing that every program shares for RPC and for plain streams.
//!
//! ```text
//!        [Identity] own chain + key, swapped live          [TrustStore] roots by trust domain, swapped live
//!              │                                                │  + the deny-list
//!              ▼                                                ▼
//!   server_config / client_config ───► verifier: leaf rules → deny-list → roots of the leaf's trust domain
//!              │                                 → RFC 5280 path (webpki) → expected identities (client side)
//!              ▼
//!   handshake::{accept, connect}        rpc::{incoming, channel, peer}
//!              │                                 │
//!              └────────► [Peer] ◄───────────────┘   TrustStore::distrusted(peer): close live connections
//! ```
//!
//! Invariants:
//! - TLS 1.3 only, the hybrid post-quantum group first. No tickets, no resumption, no early data: a resumed session would
//!   skip the verifier, and with it a quarantine.
//! - Roots are never pooled. The trust domain is read from the leaf inside the verifier, and only its roots are tried.
//! - The next handshake uses the newest roots, deny-list and identity; listeners and configurations stay.
//! - A client names the identities it expects before it connects; an empty list expects nobody.
//! - No bytes of a peer can panic the process, and no handshake lasts longer than its deadline.

mod config;
mod guard;
pub mod handshake;
mod identity;
mod peer;
mod provider;
pub mod rpc;
mod trust;
mod verify;

pub use config::{ClientAuth, client_config, server_config};
pub use guard::Guarded;
pub use identity::{Identity, IdentityError, RequestError, new_key_and_csr};
pub use peer::{Peer, peer_id};
pub use provider::provider;
pub use spiffe_identity::pem;
pub use trust::{DenyList, TrustStore};
pub use verify::{ExpectedPeer, MAX_CHAIN, PeerError, Purpose};
