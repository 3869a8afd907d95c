//! The lab: any number of clusters as real processes on loopback; the shop that runs on them; the demo. In [`kubernetes`],
//! clusters that have real API servers.

mod bench;
pub mod bench_dns;
pub mod bench_failover;
pub mod bench_federation;
pub mod bench_gateway;
pub mod bench_identity;
pub mod bench_kubernetes;
pub mod bench_sidecar;
pub mod client;
pub mod demo;
pub mod kubernetes;
pub mod lab;
pub mod load;
pub mod shop;
pub mod ticks;
