//! A pair of sidecars beside Envoy pairs and HAProxy pairs doing the same job.
//!
//! ```text
//!   load ──captured──► client's side ══ mutual TLS ══► server's side ──► backend
//!    │                       │ both sides' process clocks │
//!    └── HTTP/1.1 and HTTP/2, balanced request by request; or the same bytes over raw TCP, left as they are
//! ```
//!
//! The pairs are visited in turn, each started afresh with one worker a side; every second round goes backwards. What is
//! compared is CPU time per unit of work, in medians over the rounds: rates move with the machine, this hardly. It is to be
//! run in a network namespace of its own, where the kernel redirects the load's connections to whichever pair is visited.

mod backend;
mod captured;
mod load;
mod measure;
mod own;
mod pairs;
mod report;
mod rivals;

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::bench::{conclude, replace_table};
use measure::Sizes;
use own::Own;
use pairs::Setting;
use report::Report;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Rounds; the figures are medians over them.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Shorter phases, for trying the bench itself: its figures are not to be believed.
    #[arg(long)]
    quick: bool,
    /// Only these, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these loads: idle, http1, http2, churn, bulk.
    #[arg(long, value_delimiter = ',', value_enum)]
    loads: Vec<measure::Load>,
    /// The sidecar's program; by default the one beside this program.
    #[arg(long)]
    sidecar: Option<PathBuf>,
    /// Where the table and the figures go.
    #[arg(long, default_value = "target/bench-sidecar")]
    output: PathBuf,
    /// A file whose table, after a line `<!-- bench-sidecar -->`, is replaced by the one of this run.
    #[arg(long)]
    readme: Option<PathBuf>,
    /// Exit with 1 when a goal is missed.
    #[arg(long, env = "STRICT", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0", action = clap::ArgAction::Set)]
    strict: bool,
}

#[derive(Subcommand)]
enum Role {
    /// Answers behind the pairs.
    Backend { listen: SocketAddr },
}

/// The program.
///
/// # Errors
/// The network is not the bench's own, a pair does not start, or breaks a request.
pub fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Role::Backend { listen }) = arguments.role {
        threads()?.block_on(backend::serve(listen))?;
        return Ok(ExitCode::SUCCESS);
    }
    bench(&arguments)
}

fn threads() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn bench(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    captured::prepare()?;
    let directory = tempfile::Builder::new().prefix("isthmus-bench-sidecar-").tempdir()?;
    let mut sizes = if arguments.quick { Sizes::quick() } else { Sizes::full() };
    if !arguments.loads.is_empty() {
        sizes.loads.clone_from(&arguments.loads);
    }
    let runtime = threads()?;
    let own = runtime.block_on(Box::pin(Own::prepare(&directory.path().join("lab"))))?;
    let sidecar = match &arguments.sidecar {
        Some(sidecar) => sidecar.clone(),
        None => std::env::current_exe()?.with_file_name("sidecar"),
    };
    let setting = Setting::new(directory.path(), sidecar, own)?;
    let _backend = setting.start_backend()?;
    let available = |pair| setting.available(pair);
    let visit = |pair| runtime.block_on(measure::visit(&setting, pair, &sizes));
    let report = Report::of_rounds(report::COLUMNS, arguments.rounds, &arguments.only, available, visit)?;
    let goals = report::goals(&report);
    std::fs::create_dir_all(&arguments.output)?;
    std::fs::write(arguments.output.join("sidecar.md"), report.table())?;
    std::fs::write(arguments.output.join("sidecar.json"), report.json(&goals)?)?;
    if let Some(readme) = &arguments.readme {
        replace_table(readme, "bench-sidecar", &report.table())?;
    }
    writeln!(std::io::stdout(), "\n{}", report.table())?;
    Ok(conclude(&goals, arguments.strict)?)
}
