//! One per cluster: watches services, publishes exports, writes imports, issues SVIDs, serves discovery and DNS.

pub mod config;
pub mod local;
pub mod vips;
