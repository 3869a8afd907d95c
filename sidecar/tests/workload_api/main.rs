//! The SPIFFE Workload API of a sidecar, over its real socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
#[path = "../mesh/cluster.rs"]
#[expect(dead_code, reason = "shared with the tests of the mesh, which use the rest")]
mod cluster;
#[path = "../mesh/control_plane.rs"]
mod control_plane;
mod files;
mod refusals;
mod svids;
