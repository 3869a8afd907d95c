//! The lab: any number of clusters as real processes on loopback; the shop that runs on them; the demo.

pub mod bench_gateway;
pub mod bench_identity;
pub mod client;
pub mod demo;
pub mod lab;
pub mod load;
pub mod shop;
pub mod ticks;
