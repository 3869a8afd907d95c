//! Sidecars against each other, over real sockets and real TLS, with a control-plane in this process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod applications;
mod calls;
mod capture;
mod client;
mod cluster;
mod control_plane;
mod failover;
mod gateway;
mod hostile;
mod identity;
mod inbound;
mod lifecycle;
mod local_services;
mod namespace;
mod overload;
mod policy;
mod servers;
mod spread;
mod strict;
mod trust_age;
mod tunnels;
mod upgrades;
