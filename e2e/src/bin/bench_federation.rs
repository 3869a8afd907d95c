//! `make bench-federation`: what the federator costs with a thousand clusters.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    e2e::bench_federation::main()
}
