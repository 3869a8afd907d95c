//! The gateway between real TLS clients and real TLS endpoints.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod control_plane;
mod discovery;
mod drain;
mod egress;
mod hostile;
mod installed;
mod istio;
mod lab;
mod load_balancer;
mod program;
mod refusals;
mod relaying;
mod routing;
mod weights;
