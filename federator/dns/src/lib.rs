//! The zone `clusterset.local`: what it says, and the server that says it.
//!
//! ```text
//!   imports, namespaces        Arc<ArcSwap<Zone>>              UDP and TCP
//!   ──────────────────► Zone::build ──► snapshot ◄── respond ◄──► serve
//!   (their owner)           pure       a hash of names   pure     sockets
//! ```
//!
//! The records are those of the Multi-Cluster Services DNS specification 1.0.0 (KEP-1645, `specification.md`), which
//! follows kubernetes/dns for headless services and SRV records.
//!
//! # What always holds
//!
//! 1. A lookup is one hash of the name, compared without case; nothing is scanned. Questions for addresses, nearly all there
//!    are, are answered from encoded records without an allocation; both ways of answering say the same.
//! 2. A zone is an immutable snapshot. Its owner replaces it as a whole; a query sees one or the other.
//! 3. A name that is not known before the first full sync is `SERVFAIL`, never `NXDOMAIN`: a resolver must not remember
//!    that a service is missing when nobody has asked yet.
//! 4. `<cluster>.<service>` is never served, not even as an empty non-terminal of the names below it: the
//!    specification asks for `NXDOMAIN` there.
//! 5. No packet can stop the server: what cannot be parsed is answered `FORMERR`, or not at all if it is not even a
//!    header or claims to be a response.
//! 6. Connections are bounded in number, per source too, and in idle time.
//!
//! Names outside the zone are `REFUSED`. Answers that do not fit a UDP packet are empty and truncated, and complete
//! over TCP.

mod metrics;
mod respond;
mod serve;
pub mod zone;

pub use metrics::{Metrics, Transport};
pub use respond::{Kind, respond};
pub use serve::serve;
pub use zone::{Answer, Finding, HeadlessEndpoint, Zone, ZoneContents, ZoneKind, ZonePort, ZoneProblem, ZoneService};
