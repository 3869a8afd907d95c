//! Every row of the failover table, many times: what callers saw of each fault, and for how long.
//!
//! ```text
//!   home    servers, gateways, readiness, control-planes      ┐
//!   dark    a cluster's packets are dropped, and pass again   │ side by side, each a federation of its own,
//!   plane   etcd, federators, trust-bundles                   │ under 200 requests a second, half GET, half gRPC
//!   quarantine                                                ┘ (streams that never rest)
//! ```
//!
//! It is to be run in a network namespace of its own: packets are dropped there. A fault is counted from before it is made, and
//! what was killed is known to be gone before anything is judged.

mod blackhole;
mod dark;
mod home;
mod plane;
mod report;
mod rows;
mod stage;

use std::{io::Write, path::PathBuf, pin::Pin, process::ExitCode, time::Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use futures_util::future::try_join_all;

use crate::{
    bench::{conclude, replace_table},
    bench_identity,
    lab::binaries::Binaries,
    ticks::lab::{Settings, TickingLab},
};
use report::Report;
use rows::{Injection, Row};
use stage::Plan;

#[derive(Parser)]
struct Arguments {
    /// How often each fault is injected.
    #[arg(long, default_value_t = 50)]
    injections: usize,
    /// Only these rows, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// One federation after the other instead of side by side: longer, and fit for a machine that has other things to do.
    #[arg(long)]
    in_turn: bool,
    /// Where the table and the figures go.
    #[arg(long, default_value = "target/bench-failover")]
    output: PathBuf,
    /// A file whose table, after a line `<!-- bench-failover -->`, is replaced by the one of this run.
    #[arg(long)]
    readme: Option<PathBuf>,
    /// Exit with 1 when a goal is missed.
    #[arg(long, env = "STRICT", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0", action = clap::ArgAction::Set)]
    strict: bool,
}

/// The program.
///
/// # Errors
/// A federation does not start, or one does not recover from a fault.
pub async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(arguments.injections > 0, "--injections: at least 1");
    let unknown = arguments.only.iter().find(|name| Row::ALL.iter().all(|row| row.name() != *name));
    ensure!(unknown.is_none(), "--only: no row {}; there are {:?}", unknown.cloned().unwrap_or_default(), names());
    let wanted = |row: &&Row| arguments.only.is_empty() || arguments.only.iter().any(|name| name == row.name());
    let rows: Vec<Row> = Row::ALL.iter().filter(wanted).copied().collect();
    let directory = tempfile::Builder::new().prefix("isthmus-bench-failover-").tempdir()?;
    let (report, binaries) = (Report::default(), Binaries::beside_this_program()?);
    let plan = Plan {
        injections: arguments.injections,
        rows: &rows,
        binaries: &binaries,
        directory: directory.path().to_owned(),
        report: &report,
    };
    let began = Instant::now();
    let stages = [
        Box::pin(async { home::play(&plan).await.context("home") }) as Stage<'_>,
        Box::pin(async { dark::play(&plan).await.context("dark") }),
        Box::pin(async { plane::play(&plan).await.context("plane") }),
        Box::pin(async { quarantine(&plan).await.context("quarantine") }),
    ];
    if arguments.in_turn {
        for stage in stages {
            stage.await?;
        }
    } else {
        try_join_all(stages).await?;
    }
    std::fs::create_dir_all(&arguments.output)?;
    std::fs::write(arguments.output.join("failover.md"), report.table())?;
    std::fs::write(arguments.output.join("failover.json"), report.json()?)?;
    if let Some(readme) = &arguments.readme {
        replace_table(readme, "bench-failover", &report.table())?;
    }
    let mut screen = std::io::stdout();
    writeln!(screen, "\nin {} s\n{}", began.elapsed().as_secs(), report.table())?;
    Ok(conclude(&report.goals(), arguments.strict)?)
}

/// Rows that are played on one federation.
type Stage<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

fn names() -> Vec<&'static str> {
    Row::ALL.iter().map(|row| row.name()).collect()
}

impl Plan<'_> {
    /// A row is complete.
    fn told(&self, row: Row) -> anyhow::Result<()> {
        Ok(writeln!(std::io::stdout(), "{}", self.report.line(row))?)
    }
}

/// As `bench_identity` measures it.
async fn quarantine(plan: &Plan<'_>) -> anyhow::Result<()> {
    if !plan.wants(Row::Quarantined) {
        return Ok(());
    }
    let folder = plan.directory.join("quarantine");
    let settings = Settings { binaries: Some(plan.binaries), ..Settings::default() };
    let mut ticking = TickingLab::start(&folder, 2, settings).await?;
    let operator = ticking.lab.federation.operator();
    for number in 0..plan.injections {
        let measured = Box::pin(bench_identity::quarantine(&mut ticking, &operator)).await;
        let (time, _) = measured.with_context(|| format!("injection {}", number + 1))?;
        plan.report.add(Row::Quarantined, Injection { time, requests: 0, failed: Vec::new(), interrupted: 0 });
    }
    plan.told(Row::Quarantined)?;
    ticking.lab.stop().await;
    Ok(())
}
