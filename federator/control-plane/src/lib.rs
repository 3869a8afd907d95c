//! One per cluster: watches services, publishes exports, writes imports, issues SVIDs, serves discovery and DNS.

pub mod conditions;
pub mod config;
pub mod local;
pub mod membership;
pub mod peers;
pub mod publications;
pub mod reconciler;
pub mod resources;
pub mod snapshot;
pub mod state;
pub mod vips;
