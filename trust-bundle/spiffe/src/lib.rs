//! SPIFFE identities, without input or output, clock or randomness: what a name may look like, what a certificate must
//! say before anybody believes it, and how a trust domain publishes its roots.
//!
//! ```text
//!   spiffe://east.mesh.example/ns/shop/sa/cart        [SpiffeId]  = [TrustDomain] + path
//!            └─ trust domain ─┘└── path ─────┘            │
//!                                                         ▼ exactly one URI SAN
//!   [Bundle] of east.mesh.example ── roots ──► … ──► leaf certificate      (an X.509-SVID)
//!      JWKS      check_authority         check_authority    check_leaf
//! ```
//!
//! Invariants:
//! - A [`SpiffeId`] or [`TrustDomain`] that exists is valid by the SPIFFE-ID standard; parsing never panics.
//! - A leaf is judged by the roots of *its own* trust domain only. Bundles are keyed by trust domain and never merged.
//! - These checks come on top of RFC 5280 path building (`mesh-tls` does that, with webpki), and never replace it: a
//!   general web verifier accepts leaves that SPIFFE forbids.
//! - What a receiver holds ([BundleSet]) never goes back, and no key is a root of two trust domains.
//! - A bundle is fetched ([federation]) over https only, from the server that was configured, within bounds of size and time.
//! - A key is replaced in phases ([Rotation]): known by all before it signs, gone only after what it signed.
//! - A bundle without `keys` is an error (keep the last good one); a bundle with `"keys": []` is valid and rejects every
//!   SVID of its trust domain.

mod authority;
mod bundle;
mod bundle_set;
mod certificate;
pub mod federation;
mod id;
mod leaf;
pub mod pem;
mod role;
mod rotation;
mod trust_domain;

pub use authority::{AuthorityError, check_authority};
pub use bundle::{
    Bundle, BundleError, DEFAULT_REFRESH_HINT, JsonError, JwkError, KeyError, MAX_AUTHORITIES, MAX_BUNDLE_BYTES,
};
pub use bundle_set::{Accepted, BundleSet, MAX_TRUST_DOMAINS, OfferError, owner_of_shared_key, root_keys};
pub use certificate::{BACKDATE, CertificateError, Validity, validity};
pub use id::{IdError, MAX_ID_BYTES, SpiffeId};
pub use leaf::{LeafError, check_leaf};
pub use role::PlaneRole;
pub use rotation::{Action, Generation, HINTS_BEFORE_USE, Pace, Phase, Rotation, Waiting, Watcher};
pub use rustls_pki_types::CertificateDer;
pub use trust_domain::{MAX_TRUST_DOMAIN_BYTES, TrustDomain, TrustDomainError};
