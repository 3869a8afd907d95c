//! The second half of `make bench-identity`: how long a quarantined cluster still reaches applications.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    e2e::bench_identity::main().await
}
