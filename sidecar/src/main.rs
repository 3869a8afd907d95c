//! Originates and terminates mTLS for one workload; balances, fails over, retries.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sidecar::{Config, capture, waiting};

/// The exit code for a command or a configuration that makes no sense.
const MISUSE: u8 = 2;

/// Runs a sidecar, or, with a command, does one thing and ends.
#[derive(Debug, Parser)]
#[command(
    name = "sidecar",
    version,
    about = "Originates and terminates mTLS for one workload; balances, fails over, retries"
)]
struct Arguments {
    /// The configuration file (YAML).
    #[arg(long, value_name = "FILE", env = "ISTHMUS_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Changes or shows what the kernel hands over of the application's traffic. Needs CAP_NET_ADMIN, and `nft`.
    Capture {
        #[command(subcommand)]
        action: Capture,
    },
    /// Ends with 0 once the sidecar of this configuration is ready, with 1 when it is not in time.
    Wait {
        /// How long to wait, such as 60s.
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = mesh_runtime::duration::parse)]
        timeout: std::time::Duration,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Capture {
    /// Installs the rules of the configuration in place of those that are there, in one step.
    Install,
    /// Removes the rules, if there are any.
    Remove,
    /// Prints the rules that are installed.
    Show,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = arguments.config.as_deref();
    match (arguments.command, config) {
        (None, Some(config)) => mesh_runtime::run("sidecar", config, sidecar::run),
        (Some(Command::Capture { action: Capture::Remove }), _) => end(capture::remove()),
        (Some(Command::Capture { action: Capture::Show }), _) => show(),
        (Some(Command::Capture { action: Capture::Install }), Some(config)) => {
            with(config, |config| end(capture::install(config)))
        }
        (Some(Command::Wait { timeout }), Some(config)) => {
            with(config, |config| end(waiting::until_ready(config.runtime.health, timeout)))
        }
        (_, None) => {
            say(&mut std::io::stderr(), "sidecar: --config FILE is needed");
            ExitCode::from(MISUSE)
        }
    }
}

fn with(file: &Path, act: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    let environment =
        std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    match mesh_runtime::load("sidecar", file, environment) {
        Ok(config) => act(&config),
        Err(error) => {
            for problem in &error.problems {
                say(&mut std::io::stderr(), &format!("sidecar: {problem}"));
            }
            ExitCode::from(MISUSE)
        }
    }
}

fn show() -> ExitCode {
    match capture::show() {
        Ok(rules) => {
            say(&mut std::io::stdout(), rules.as_deref().unwrap_or("nothing is captured").trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => end(Err(error)),
    }
}

fn end(result: Result<(), impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&mut std::io::stderr(), &format!("sidecar: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// One line. A reader who went away has no use for it.
fn say(to: &mut impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}
