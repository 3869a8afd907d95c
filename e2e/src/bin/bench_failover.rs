//! `make bench-failover`: every row of the failover table, many times.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    Box::pin(e2e::bench_failover::main()).await
}
