//! The federation's domain, pure: no I/O, no clock, no runtime.
//!
//! ```text
//!   Export (one cluster's word on one service)          FailoverPolicy, Locality, round-trip times
//!     │  clamp to the Delegation                                        │
//!     ▼                                                                 ▼
//!   merge(exports of all clusters) ──► Import (+ Conflicts) ──► order ──► groups, for a balancer
//! ```
//!
//! - [`name`], [`sni`]: the names on every wire, parsed once.
//! - [`export`], [`record`]: what a cluster says; [`delegation`]: what it may say.
//! - [`merge`]: KEP-1645's rules that make one import of many exports.
//! - [`order`]: which group of endpoints a client tries first.
//! - [`capacity`]: when a change of capacity is worth telling the federation.
//! - [`slot`]: rendezvous hashing from a slot in the SNI to an endpoint.
//!
//! Time is an argument wherever it matters, so that every decision can be simulated and replayed.

pub mod capacity;
pub mod delegation;
pub mod export;
pub mod locality;
pub mod merge;
pub mod name;
pub mod order;
pub mod record;
pub mod slot;
pub mod sni;

pub use export::{Export, Gateway, GatewayAddress, HeadlessEndpoint, Port, Protocol, ServiceType, ZoneCapacity};
pub use locality::Locality;
pub use name::{ClusterName, FederationDomain, HostLabel, MeshHost, Namespace, ServiceHost, ServiceId, ServiceName};
pub use record::RecordKey;
pub use sni::Sni;
