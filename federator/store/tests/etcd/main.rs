//! The store on a real etcd cluster of three members, with TLS and client certificates, and with them broken.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod backup;
mod contract;
mod faults;
mod quota;
mod restore;
mod rights;
mod support;
