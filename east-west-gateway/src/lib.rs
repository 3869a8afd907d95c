//! A layer-4 SNI router between clusters: it sees ClientHellos and ciphertext, and holds no key of what it passes.
//!
//! ```text
//!   other clusters' sidecars                                              control-plane
//!        │ TLS, SNI outbound_.<port>_.<subset>_.<host>                          │ discovery.v1: Route resources
//!        ▼                                                                      ▼
//!   [Gateway] accept ─► admission ─► hello ─► [Routes] ─► [Candidates] ─► dial ─► relay ══► sidecar 15008
//!                          │           │         │             │            │        │
//!                        reset       alert     alert         alert       another   access event
//! ```
//!
//! The same from inside, with `egress` configured: the cluster's own sidecars that may not dial out connect to 15444, [`Remotes`](remotes)
//! take the place of routes, gateways of the cluster that the SNI names the place of endpoints.
//!
//! What always holds:
//! - A connection from outside goes to an endpoint of an exported service of this cluster, or nowhere: whatever SNI is made up.
//! - A connection from inside goes to a gateway of another cluster, or nowhere; from elsewhere it is reset. So no circle can form, and
//!   nobody outside can use a gateway as a relay.
//! - Who is refused is told by a TLS alert at once, so that a caller goes elsewhere without waiting.
//! - A connection sees one state of the routes; a bad resource leaves the last good one in place.
//! - Without a control-plane the gateway goes on, and starts again, with its last good state. It has no `maxTrustAge`: it judges
//!   nobody's certificate, and the sidecars at both ends of what it passes judge, and end, their sessions by themselves.
//! - Connections, hellos and what they cost are bounded, in all, per source and per service; without descriptors or memory new
//!   connections are shed and old ones kept.
//! - Each thread has its own runtime, listeners and connections; what threads share is read without a lock.
//! - A successor on the same port takes over without a connection refused or lost.

mod admission;
mod close_reason;
pub mod config;
mod connection;
mod debug;
mod discovery;
mod gateway;
mod metrics;
mod own_identity;
mod pressure;
mod program;
pub mod remotes;
pub mod routes;
mod state_metrics;
mod takeover;
mod workers;

pub use close_reason::{CloseReason, Refusal};
pub use config::Config;
pub use connection::Side;
pub use gateway::Gateway;
pub use metrics::Metrics;
pub use program::{Bound, bind, run, run_on};
