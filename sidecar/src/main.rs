//! Originates and terminates mTLS for one workload; balances, fails over, retries.

use std::process::ExitCode;

use mesh_runtime::Flags;

fn main() -> ExitCode {
    let flags = Flags::parse();
    mesh_runtime::run("sidecar", &flags.config, sidecar::run)
}
