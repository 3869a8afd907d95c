//! The federator with a thousand clusters of a hundred exports each, on three etcd members.
//!
//! ```text
//!   this process: synthetic control-planes ── mTLS, federation.v1 ──► federator, 2 replicas ──► etcd, 3 members
//! ```
//!
//! There are a hundred namespaces; a cluster has ten of them, exports from all ten and hears of all ten: a change concerns a
//! tenth of the clusters. A change is what a control-plane makes of one: the export and the heads, signed, in one message.
//! The synthetic side is the client that control-planes use, with a connection and a certificate for each cluster. It keeps
//! no records, and verifies one in a thousand of those that come. It shares the machine with what is measured, and carries
//! what etcd's members say to each other: its own share is printed.

mod cluster;
mod machine;
mod phases;
mod plane;
mod tracker;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use federation_store::lab::{EtcdCluster, LabOptions};

use crate::bench::{Goal, conclude};
use crate::lab::network::Network;
use cluster::{Cluster, NAMESPACES, OWN_NAMESPACES, Publisher};
use machine::Replicas;
use plane::Joined;
use tracker::Tracker;

/// How many replicas there are.
const REPLICAS: u8 = 2;
/// The most milliseconds from a change to the last cluster that has the namespace, of 99 of a hundred changes.
const PROPAGATION: f64 = 250.0;
/// The most bytes of a replica's memory for an export.
const EXPORT: f64 = 400.0;
/// The most KiB of a replica's memory for a session.
const SESSION: f64 = 64.0;

#[derive(Parser)]
struct Arguments {
    /// Clusters.
    #[arg(long, default_value_t = 1000)]
    clusters: usize,
    /// Exports of each.
    #[arg(long, default_value_t = 100)]
    exports: usize,
    /// Changes a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds of changes; half of that while sessions reconnect.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Exit with 1 when a goal is missed.
    #[arg(long, env = "STRICT", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0", action = clap::ArgAction::Set)]
    strict: bool,
}

/// Everything that runs.
struct Bench {
    arguments: Arguments,
    joined: Arc<Vec<Joined>>,
    tracker: Arc<Tracker>,
    publishers: Vec<Publisher>,
    clusters: Vec<Cluster>,
    replicas: Replicas,
    etcd: EtcdCluster,
    /// Changes made so far.
    changes: usize,
    goals: Vec<Goal>,
}

/// The program.
///
/// # Errors
/// Whatever keeps it from measuring; records that are lost or not as their cluster signed them.
pub fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(Box::pin(run(arguments)))
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        arguments.clusters > 1 && arguments.exports > 0 && arguments.rate > 0,
        "there is nothing to measure"
    );
    let begun = Instant::now();
    let directory = tempfile::Builder::new().prefix("isthmus-bench-federation-").tempdir()?;
    let mut network = Network::reserve()?;
    let joined = plane::make(directory.path(), arguments.clusters)?;
    let etcd = Box::pin(EtcdCluster::start(LabOptions::default())).await?;
    let program = std::env::current_exe()?.with_file_name("federator");
    let replicas = Replicas::start(&program, directory.path(), network.next_block(), &etcd, REPLICAS)?;
    let publishers = joined.iter().enumerate();
    let publishers = publishers.map(|(number, it)| Publisher::new(number, arguments.exports, Arc::clone(&it.speaker)));
    let publishers = publishers.collect::<anyhow::Result<_>>()?;
    let tracker = Arc::new(Tracker::new(&joined));
    let (joined, clusters, goals) = (Arc::new(joined), Vec::new(), Vec::new());
    say(format!(
        "{} clusters x {} exports; {NAMESPACES} namespaces, {OWN_NAMESPACES} of them in each cluster; {REPLICAS} replicas, 3 etcd members",
        arguments.clusters, arguments.exports
    ))?;
    let mut bench = Bench { arguments, joined, tracker, publishers, clusters, replicas, etcd, changes: 0, goals };
    let empty = bench.empty().await?;
    bench.publish_everything().await?;
    bench.restart(empty).await?;
    bench.first_sync().await?;
    bench.steady_changes().await?;
    bench.lose_a_replica().await?;
    bench.begin_anew().await?;
    let (verified, forged) = bench.tracker.verified();
    say(format!("verified by receivers: {verified} records; the whole run took {:.0?}", begun.elapsed()))?;
    anyhow::ensure!(forged == 0, "{forged} records are not as their cluster signed them");
    Ok(conclude(&bench.goals, bench.arguments.strict)?)
}

fn say(line: impl Display) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}
