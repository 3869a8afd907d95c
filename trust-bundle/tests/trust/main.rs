//! The service over real TLS, with the clients that the federation's programs use, on the embedded store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bundles;
mod cluster;
mod ending;
mod joining;
mod keeping;
mod making;
mod operating;
mod plane;
mod process;
mod racing;
mod renewing;
mod replicas;
mod rotating;
mod silence;
mod watching;
