//! `make bench-kubernetes`: a large cluster, and a burst of exports, on real API servers.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    e2e::bench_kubernetes::main().await
}
