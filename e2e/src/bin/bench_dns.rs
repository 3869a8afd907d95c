//! `make bench-dns`: `federation-dns` beside Knot DNS, on this machine, in one run.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    e2e::bench_dns::main()
}
