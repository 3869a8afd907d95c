//! `make bench-sidecar`: a pair of sidecars beside what one could pick instead, on this machine, in one run.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    e2e::bench_sidecar::main()
}
