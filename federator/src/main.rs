//! `federator`: serves the federation's exports, or writes what it keeps to a file and takes it from there (`federator
//! export`, `… import`).

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use federation_store::backup;
use federator::{Config, program};

/// What the configuration's variables of the environment are named after, and what a backup says whose it is.
const PROGRAM: &str = "federator";

#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    flags: Option<mesh_runtime::Flags>,
    #[command(subcommand)]
    command: Option<backup::Command>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.command, arguments.flags) {
        (Some(command), _) => mesh_runtime::run_command(PROGRAM, command.config(), async |config: Config| {
            Ok(command.run(PROGRAM, config.store).await?)
        }),
        (None, Some(flags)) => {
            mesh_runtime::run(PROGRAM, &flags.config, |config: Config, process| program::run(config, process))
        }
        (None, None) => {
            // With stderr gone there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "{PROGRAM}: --config FILE or a command is needed, see --help");
            ExitCode::FAILURE
        }
    }
}
