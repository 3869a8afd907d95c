//! What a large cluster costs its control-plane, and how fast a burst of exports gets through, on real API servers.
//!
//! ```text
//!   east: 5,000 Services, 50,000 endpoints, 500 exported ──► control-plane: start, memory, CPU at 100 endpoint changes a second
//!                1,000 more exports at once ──► federator ──► ServiceImports of west and north
//! ```
//!
//! The endpoints of exported services have pods with a sidecar; the slices of the others are written as a controller would
//! write them. An endpoint change is a pod that came back under another address, half of them behind exported services.

mod objects;
mod watch;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;

use crate::bench::clock::Processes;
use crate::bench::{Goal, conclude};
use crate::client;
use crate::kubernetes::{Deployed, KubernetesLab, READY};
use crate::lab::binaries::Binaries;
use crate::lab::wait;
use objects::{Sizes, World};

/// The longest that a burst of exports may take to the imports of two other clusters.
const BURST_GOAL: Duration = Duration::from_secs(5);

/// The most records that an endpoint change may cost the federation.
const RECORDS_GOAL: f64 = 0.01;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Endpoint changes a second.
const CHANGES: u32 = 100;

#[derive(Parser)]
struct Arguments {
    /// A hundredth of everything, for trying the bench itself: its figures are not to be believed.
    #[arg(long)]
    quick: bool,
    /// Seconds of endpoint changes, and of silence before them.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Exit with 1 when a goal is missed.
    #[arg(long, env = "STRICT", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0", action = clap::ArgAction::Set)]
    strict: bool,
}

/// The program.
///
/// # Errors
/// The lab does not start, or something never arrives.
pub async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let directory = tempfile::Builder::new().prefix("isthmus-bench-kubernetes-").tempdir()?;
    let binaries = Binaries::beside_this_program()?;
    let mut lab = Box::pin(KubernetesLab::start_with(directory.path(), &["east", "west", "north"], binaries)).await?;
    let outcome = Box::pin(measure(&arguments, &mut lab)).await;
    lab.stop().await;
    if outcome.is_err() {
        // The logs are needed.
        let _ = directory.keep();
    }
    Ok(conclude(&outcome?, arguments.strict)?)
}

async fn measure(arguments: &Arguments, lab: &mut KubernetesLab) -> anyhow::Result<Vec<Goal>> {
    let mut screen = std::io::stdout();
    let sizes = if arguments.quick { Sizes::quick() } else { Sizes::full() };
    let time = Duration::from_secs(arguments.seconds);
    let begun = Instant::now();
    let world = World::make(lab, &sizes).await?;
    let Sizes { services, exported, endpoints, .. } = sizes;
    writeln!(
        screen,
        "{services} services, {exported} exported, {} endpoints: made in {:.1} s",
        services * endpoints,
        begun.elapsed().as_secs_f64()
    )?;
    world.imported(lab, exported, PATIENCE).await?;
    writeln!(
        screen,
        "exported services are imported {:.1} s after the first object was made",
        begun.elapsed().as_secs_f64()
    )?;

    let started = restart(&mut lab.clusters[0]).await?;
    writeln!(screen, "start-up: ready in {:.2} s, with a Lease that was given back", started.as_secs_f64())?;
    world.imported(lab, exported, PATIENCE).await?;
    let east = &lab.clusters[0];
    let processes = Processes::of(east.control_plane.id().context("the control-plane has ended")?);
    let idle = cpu(&processes, time).await;
    let memory = processes.anonymous();
    writeln!(screen, "steady: {:.1} MiB of anonymous memory, {:.2} % of a core", mebibytes(memory), idle * 100.0)?;

    let records = published(lab).await?;
    let (busy, changes) = tokio::join!(cpu(&processes, time), world.churn(CHANGES, time));
    let changes = changes?;
    let told = published(lab).await? - records;
    let rate = f64::from(changes) / time.as_secs_f64();
    let per_hundred = (busy - idle).max(0.0) * 100.0 * 100.0 / rate;
    writeln!(
        screen,
        "churn: {rate:.0} endpoint changes a second, {per_hundred:.2} % of a core for 100 of them, {told:.0} records to the federation"
    )?;
    writeln!(screen, "after it: {:.1} MiB", mebibytes(processes.anonymous()))?;

    let burst = world.burst(lab, PATIENCE).await?;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    writeln!(
        screen,
        "burst: {} exports, the API took {:.0} ms to take them; imported",
        sizes.burst,
        milliseconds(burst.created)
    )?;
    for (cluster, time) in &burst.imported {
        writeln!(screen, "  in {cluster} after {:.0} ms", milliseconds(*time))?;
    }
    let last = burst.imported.iter().map(|(_, time)| *time).max().unwrap_or(PATIENCE);
    Ok(vec![
        Goal::new("kubernetes_records_per_endpoint_change", Some(told / f64::from(changes.max(1))), RECORDS_GOAL),
        Goal::new("kubernetes_burst_of_1000_exports_seconds", Some(last.as_secs_f64()), BURST_GOAL.as_secs_f64()),
    ])
}

/// Ends the control-plane and starts it again; until it is ready.
async fn restart(cluster: &mut Deployed) -> anyhow::Result<Duration> {
    cluster.control_plane.stop().await;
    let begun = Instant::now();
    cluster.control_plane.restart()?;
    cluster.control_plane.ready(PATIENCE).await?;
    Ok(begun.elapsed())
}

/// The share of a core that is used over a time.
async fn cpu(processes: &Processes, time: Duration) -> f64 {
    let (begun, before) = (Instant::now(), processes.cpu());
    tokio::time::sleep(time).await;
    processes.cpu().saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64()
}

/// Records that clusters have offered to the federator so far.
async fn published(lab: &KubernetesLab) -> anyhow::Result<f64> {
    let address = (lab.federation.federator_address(0), 15020).into();
    let text = wait::until("the federator's metrics", READY, || client::get(address, "/metrics")).await?.body;
    let lines = text.lines().filter(|line| line.starts_with("isthmus_federator_published_records_total"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

fn mebibytes(bytes: u64) -> f64 {
    u32::try_from(bytes >> 10).map_or(f64::INFINITY, f64::from) / 1024.0
}
