//! One per cluster: watches services, publishes exports, writes imports, issues SVIDs, serves discovery and DNS.

pub mod conditions;
pub mod config;
pub mod discovery;
pub mod driver;
pub mod local;
pub mod membership;
pub mod peers;
pub mod plane;
pub mod proxies;
pub mod publications;
pub mod reconciler;
pub mod resources;
pub mod snapshot;
pub mod source;
pub mod state;
pub mod tokens;
pub mod vips;
