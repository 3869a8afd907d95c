//! The gateway beside nginx, HAProxy and Envoy doing the same job, and beside two bare relays that read no name.
//!
//! ```text
//!   load ──► proxy under test, one worker ──► backend
//!    │             │ its own process clock       │
//!    └── raw: a genuine ClientHello, then one command and cheap bytes: the proxy is the bottleneck
//!        or mutual TLS, end to end
//! ```
//!
//! The proxies are visited in turn, each started afresh; every second round goes backwards. What is compared is the proxy's CPU
//! time per unit of work, in medians over the rounds: rates move with the machine, this hardly.

mod backend;
mod bare;
mod hello;
mod load;
mod measure;
pub(crate) mod peers;
mod report;
mod tls;

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::bench::{conclude, replace_table};
use measure::Sizes;
use peers::Setting;
use report::Report;

/// The server name that leads to the backend.
pub(crate) const SERVER_NAME: &str = "outbound_.8080_._.bench.shop.svc.clusterset.local";

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
    /// Only these loads: idle, bulk, connections, tls, messages.
    #[arg(long, value_delimiter = ',', value_enum)]
    loads: Vec<measure::Load>,
    /// The gateway's program; by default the one beside this program.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Where the table, the plot and the figures go.
    #[arg(long, default_value = "target/bench-gateway")]
    output: PathBuf,
    /// A file whose table, after a line `<!-- bench-gateway -->`, is replaced by the one of this run.
    #[arg(long)]
    readme: Option<PathBuf>,
    /// Exit with 1 when a goal is missed.
    #[arg(long, env = "STRICT", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0", action = clap::ArgAction::Set)]
    strict: bool,
}

#[derive(Subcommand)]
enum Role {
    /// Answers commands behind the proxies; its keys are in the directory.
    Backend { listen: SocketAddr, keys: PathBuf },
    /// A relay that splices everything to one target.
    BareSplice { listen: SocketAddr, target: SocketAddr },
    /// A relay that copies everything to one target.
    BareTokio { listen: SocketAddr, target: SocketAddr },
}

/// The program.
///
/// # Errors
/// A peer cannot be installed or started, or breaks a connection.
pub fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Backend { listen, keys }) => {
            let tls = tls::acceptor(&keys)?;
            threads()?.block_on(backend::serve(listen, tls))?;
        }
        Some(Role::BareSplice { listen, target }) => one_thread()?.block_on(bare::splice_all(listen, target))?,
        Some(Role::BareTokio { listen, target }) => one_thread()?.block_on(bare::copy_all(listen, target))?,
        None => return bench(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}

fn threads() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn one_thread() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// An address of this run's own.
fn own_address(port: u16) -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 250, high, low), port))
}

fn bench(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let directory = tempfile::Builder::new().prefix("isthmus-bench-gateway-").tempdir()?;
    let setting = Setting::prepare(directory.path(), arguments.gateway.clone(), own_address(1), own_address(2))?;
    let mut sizes = if arguments.quick { Sizes::quick() } else { Sizes::full() };
    if !arguments.loads.is_empty() {
        sizes.loads.clone_from(&arguments.loads);
    }
    let runtime = threads()?;
    let _backend = setting.start_backend()?;
    let available = |peer| setting.available(peer);
    let visit = |peer| runtime.block_on(measure::visit(&setting, peer, &sizes));
    let report = Report::of_rounds(report::COLUMNS, arguments.rounds, &arguments.only, available, visit)?;
    let goals = report::goals(&report);
    std::fs::create_dir_all(&arguments.output)?;
    std::fs::write(arguments.output.join("gateway.md"), report.table())?;
    std::fs::write(arguments.output.join("gateway.svg"), report::plot(&report))?;
    std::fs::write(arguments.output.join("gateway.json"), report.json(&goals)?)?;
    if let Some(readme) = &arguments.readme {
        replace_table(readme, "bench-gateway", &report.table())?;
    }
    writeln!(std::io::stdout(), "\n{}", report.table())?;
    Ok(conclude(&goals, arguments.strict)?)
}
