//! `make conformance`: the official suite of the Multi-Cluster Services API against two clusters with real API servers.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    e2e::kubernetes::conformance::main().await
}
