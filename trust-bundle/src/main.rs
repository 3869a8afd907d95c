//! `trust-bundle`: serves trust, makes a federation (`trust-bundle init`), issues what an operator needs (`… issue`),
//! or writes what it keeps to a file and takes it from there (`… export`, `… import`).

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use federation::FederationDomain;
use federation_store::backup;
use trust_bundle::init::{FederationFile, Holder, InitError, init, issue};
use trust_bundle::{Config, program};

/// What the configuration's variables of the environment are named after, and what a backup says whose it is.
const PROGRAM: &str = "trust-bundle";

#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    flags: Option<mesh_runtime::Flags>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Makes a federation: the operator's membership root and certificate, and what the services need.
    Init {
        /// Where the folders operator/, service/ and federator/ are made; they must not exist yet.
        #[arg(long)]
        dir: PathBuf,
        /// The federation's domain, for example mesh.example.
        #[arg(long)]
        federation: FederationDomain,
        /// host:port of a trust-bundle replica; may be repeated.
        #[arg(long = "trust-bundle-address", required = true)]
        trust_bundle_addresses: Vec<String>,
        /// host:port of a federator replica; may be repeated.
        #[arg(long = "federator-address", required = true)]
        federator_addresses: Vec<String>,
        /// The operator's name.
        #[arg(long, default_value = "admin")]
        operator: String,
    },
    /// Writes a certificate, its key and the federation's present roots for an operator or the federator: for a new one, or
    /// for one that was away while the authority was replaced. Runs where a replica's folder service/ is.
    Issue {
        /// The folder service/ of a replica.
        #[arg(long, value_name = "DIR")]
        service: PathBuf,
        /// The operator's name; without it the certificate is the federator's.
        #[arg(long, value_name = "NAME")]
        operator: Option<String>,
        /// Where the files are written; others that are there stay.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    #[command(flatten)]
    Backup(backup::Command),
}

fn complain(error: &dyn std::fmt::Display) -> ExitCode {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "trust-bundle: {error}");
    ExitCode::FAILURE
}

fn ended(outcome: Result<(), InitError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.command, arguments.flags) {
        (Some(Command::Init { dir, federation, trust_bundle_addresses, federator_addresses, operator }), _) => {
            let file = FederationFile { federation, trust_bundle_addresses, federator_addresses };
            ended(init(&dir, &file, &operator, SystemTime::now()))
        }
        (Some(Command::Issue { service, operator, out }), _) => {
            let holder = operator.map_or(Holder::Federator, Holder::Operator);
            ended(issue(&service, &holder, &out, SystemTime::now()))
        }
        (Some(Command::Backup(command)), _) => {
            mesh_runtime::run_command(PROGRAM, command.config(), async |config: Config| {
                Ok(command.run(PROGRAM, config.store).await?)
            })
        }
        (None, Some(flags)) => {
            mesh_runtime::run(PROGRAM, &flags.config, |config: Config, process| program::run(config, process))
        }
        (None, None) => complain(&"--config FILE or a command is needed, see --help"),
    }
}
