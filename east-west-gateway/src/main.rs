//! A layer-4 SNI router between clusters, holding no keys of the traffic it passes.

use std::process::ExitCode;

use mesh_runtime::Flags;

fn main() -> ExitCode {
    let flags = Flags::parse();
    mesh_runtime::run("east-west-gateway", &flags.config, east_west_gateway::run)
}
