//! `federator`: serves the federation's exports.

use std::process::ExitCode;

use federator::{Config, program};
use mesh_runtime::Flags;

fn main() -> ExitCode {
    let flags = Flags::parse();
    mesh_runtime::run("federator", &flags.config, |config: Config, process| program::run(config, process))
}
