//! One visit: a pair is started, put under each load in turn, and ended.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;

use super::{
    load,
    pairs::{Pair, RunningPair, Setting},
};
use crate::bench::clock::{Clock, percentile};
use crate::bench_gateway::peers::Running;

/// One of the loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Load {
    /// Nothing, and connections that have been quiet since their first request.
    Idle,
    /// Small HTTP/1.1 requests as fast as they go, and at a fixed rate.
    Http1,
    /// Small HTTP/2 requests as fast as they go.
    Http2,
    /// A connection for each request.
    Churn,
    /// Few connections with much.
    Bulk,
}

/// How much of each load.
pub(super) struct Sizes {
    pub(super) loads: Vec<Load>,
    pub(super) phase: Duration,
    pub(super) bulk_bytes_each: u64,
    pub(super) idle: usize,
}

/// Connections of HTTP/1.1.
const CONCURRENCY: usize = 32;
/// Connections of HTTP/2, and requests at a time on each: no more together than a sidecar lets through to a slow application.
const HTTP2: (usize, usize) = (4, 24);
/// Connections of bulk.
const BULK: usize = 2;
/// Requests a second.
const RATE: u32 = 1500;
/// After a start, until its memory is looked at.
const SETTLING: Duration = Duration::from_millis(400);
/// A pair has answered its first request by now.
const STARTING: Duration = Duration::from_secs(20);

impl Sizes {
    pub(super) fn full() -> Self {
        let loads = Load::value_variants().to_vec();
        Self { loads, phase: Duration::from_millis(2500), bulk_bytes_each: 1 << 28, idle: 1000 }
    }

    pub(super) fn quick() -> Self {
        Self { phase: Duration::from_millis(500), bulk_bytes_each: 1 << 26, idle: 200, ..Self::full() }
    }
}

/// What a visit has shown. CPU is that of both sides together; without a pair there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// CPU-microseconds per request, and requests per second.
    pub(super) http1_cpu: Option<f64>,
    pub(super) http1_rate: Option<f64>,
    pub(super) http2_cpu: Option<f64>,
    pub(super) http2_rate: Option<f64>,
    /// At the fixed rate, with latencies in microseconds.
    pub(super) paced_cpu: Option<f64>,
    pub(super) paced_p50: Option<f64>,
    pub(super) paced_p99: Option<f64>,
    pub(super) churn_cpu: Option<f64>,
    pub(super) churn_rate: Option<f64>,
    /// CPU-seconds per GB (10^9 bytes), and GB per second.
    pub(super) bulk_cpu: Option<f64>,
    pub(super) bulk_rate: Option<f64>,
    /// Resident MiB of the larger side, before any load.
    pub(super) idle_memory: Option<f64>,
    /// KiB by which the side grows on which it grows more, per idle connection.
    pub(super) connection_memory: Option<f64>,
}

/// Puts one pair under all loads.
pub(super) async fn visit(setting: &Setting, pair: Pair, sizes: &Sizes) -> anyhow::Result<Figures> {
    let running = setting.start(pair)?;
    let clock = Clock::of(running.processes.iter().map(Running::id));
    first_answer(&running).await?;
    let mut figures = Figures::default();
    for load in Load::value_variants().iter().filter(|load| sizes.loads.contains(load)) {
        match load {
            // Before anything else grows the heap, which would hide what idle connections need.
            Load::Idle => idle(&running, &clock, sizes, &mut figures).await?,
            Load::Http1 => http1(&running, &clock, sizes, &mut figures).await?,
            Load::Http2 => {
                let run = |time| load::http2(&running.targets[1], HTTP2.0, HTTP2.1, time);
                run(sizes.phase / 5).await?;
                (figures.http2_cpu, figures.http2_rate) = clock.each(run(sizes.phase)).await.context("HTTP/2")?;
            }
            Load::Churn => {
                let run = |time| load::churn(&running.targets[0], CONCURRENCY, time);
                (figures.churn_cpu, figures.churn_rate) = clock.each(run(sizes.phase)).await.context("churn")?;
            }
            Load::Bulk => bulk(&running, &clock, sizes, &mut figures).await?,
        }
    }
    Ok(figures)
}

/// Each process's resident memory, in KiB.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn resident(clock: &Clock) -> Vec<f64> {
    clock.processes().iter().map(|process| process.resident() as f64 / 1024.0).collect()
}

async fn first_answer(running: &RunningPair) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match load::open(&running.targets[0], 1).await {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > STARTING => return Err(error.context("no answer after the start")),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn idle(running: &RunningPair, clock: &Clock, sizes: &Sizes, figures: &mut Figures) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLING).await;
    let before = resident(clock);
    figures.idle_memory = before.iter().copied().max_by(f64::total_cmp).map(|kibibytes| kibibytes / 1024.0);
    let connections = load::open(&running.targets[0], sizes.idle).await.context("idle connections")?;
    tokio::time::sleep(SETTLING).await;
    let grown = resident(clock).iter().zip(&before).map(|(after, before)| after - before).max_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let count = connections.len() as f64;
    figures.connection_memory = grown.map(|grown| grown / count);
    drop(connections);
    // Until their ends are dealt with, which is not the next load's.
    tokio::time::sleep(SETTLING).await;
    Ok(())
}

async fn http1(running: &RunningPair, clock: &Clock, sizes: &Sizes, figures: &mut Figures) -> anyhow::Result<()> {
    let mut connections = load::open(&running.targets[0], CONCURRENCY).await?;
    load::saturate(&mut connections, sizes.phase / 5).await?;
    let saturating = clock.each(load::saturate(&mut connections, sizes.phase)).await;
    (figures.http1_cpu, figures.http1_rate) = saturating.context("HTTP/1.1")?;
    let mut latencies = Vec::new();
    let paced = async {
        latencies = load::at_rate(&mut connections, RATE, sizes.phase).await?;
        Ok(latencies.len() as u64)
    };
    (figures.paced_cpu, _) = clock.each(paced).await.context("at the fixed rate")?;
    (figures.paced_p50, figures.paced_p99) = (percentile(&latencies, 50), percentile(&latencies, 99));
    Ok(())
}

async fn bulk(running: &RunningPair, clock: &Clock, sizes: &Sizes, figures: &mut Figures) -> anyhow::Result<()> {
    let run = |bytes_each| load::bulk(&running.targets[0], BULK, bytes_each);
    run(sizes.bulk_bytes_each / 16).await.context("bulk")?;
    let measured = clock.bulk(sizes.bulk_bytes_each * BULK as u64, run(sizes.bulk_bytes_each)).await;
    (figures.bulk_cpu, figures.bulk_rate) = measured.context("bulk")?;
    Ok(())
}
