//! One per cluster: watches services, publishes exports, writes imports, issues SVIDs, serves discovery and DNS.

use std::process::ExitCode;

use mesh_runtime::Flags;

fn main() -> ExitCode {
    let flags = Flags::parse();
    mesh_runtime::run("control-plane", &flags.config, control_plane::run)
}
