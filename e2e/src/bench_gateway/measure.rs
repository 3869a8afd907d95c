//! One visit: a proxy is started, put under each load in turn, and ended.

use std::{sync::Arc, time::Duration};

use clap::ValueEnum;
use tokio::task::JoinSet;

use super::{
    hello::Target,
    load::{self, Stream},
    peers::{Peer, Running, Setting},
};
use crate::bench::{
    clock::{Clock, Processes, percentile},
    comparison::Peer as _,
};

/// One of the loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Load {
    /// Connections without traffic.
    Idle,
    /// Few connections with much.
    Bulk,
    /// New connections with one exchange each.
    Connections,
    /// Bulk and new connections in mutual TLS.
    Tls,
    /// Small messages, at saturation and at a fixed rate.
    Messages,
}

/// How much of each load.
pub(super) struct Sizes {
    pub(super) loads: Vec<Load>,
    bulk_connections: usize,
    bulk_bytes_each: u64,
    tls_bulk_connections: usize,
    phase: Duration,
    rate: u32,
    idle: usize,
    idle_time: Duration,
}

/// Connections of the loads of small messages and of new connections.
const CONCURRENCY: usize = 32;
/// From the last of the idle connections to the measurement of their idleness.
const SETTLING: Duration = Duration::from_millis(5500);
/// Idle connections that are opened at a time.
const OPENING: usize = 50;

impl Sizes {
    pub(super) fn full() -> Self {
        Self {
            loads: Load::value_variants().to_vec(),
            bulk_connections: 4,
            bulk_bytes_each: 1 << 29,
            tls_bulk_connections: 2,
            phase: Duration::from_secs(2),
            rate: 2000,
            idle: 5000,
            idle_time: Duration::from_secs(2),
        }
    }

    pub(super) fn quick() -> Self {
        Self {
            bulk_bytes_each: 1 << 28,
            phase: Duration::from_secs(1),
            idle: 1000,
            idle_time: Duration::from_secs(1),
            ..Self::full()
        }
    }
}

/// What a visit has shown, of the loads that were run. Without a proxy there is no CPU time and no memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// CPU-seconds per GB (10^9 bytes), and GB per second.
    pub(super) bulk_cpu: Option<f64>,
    pub(super) bulk_rate: Option<f64>,
    /// CPU-microseconds per connection, and connections per second.
    pub(super) connection_cpu: Option<f64>,
    pub(super) connection_rate: Option<f64>,
    /// The same with mutual TLS end to end.
    pub(super) tls_bulk_cpu: Option<f64>,
    pub(super) tls_bulk_rate: Option<f64>,
    pub(super) tls_connection_cpu: Option<f64>,
    pub(super) tls_connection_rate: Option<f64>,
    /// CPU-microseconds per message, and messages per second, as fast as it goes.
    pub(super) saturated_cpu: Option<f64>,
    pub(super) saturated_rate: Option<f64>,
    /// CPU-microseconds per message, and latencies in microseconds, at the fixed rate.
    pub(super) paced_cpu: Option<f64>,
    pub(super) paced_p50: Option<f64>,
    pub(super) paced_p99: Option<f64>,
    /// KiB of anonymous memory per idle connection, and CPU-milliseconds per second for all of them.
    pub(super) idle_memory: Option<f64>,
    pub(super) idle_cpu: Option<f64>,
}

/// Puts one proxy under all loads.
pub(super) async fn visit(setting: &Setting, peer: Peer, sizes: &Sizes) -> anyhow::Result<Figures> {
    let running = setting.start(peer)?;
    let (target, tls) = (setting.target(peer), setting.tls_target(peer));
    // Once through everything, so that nothing is measured that happens once.
    load::connections(&target, CONCURRENCY, sizes.phase / 8).await?;
    let clock = Clock::of(running.as_ref().map(Running::id));
    let mut figures = Figures::default();
    for load in Load::value_variants().iter().filter(|load| sizes.loads.contains(load)) {
        match load {
            // Bare relays keep what they use for each, pipes or buffers: nobody's limit.
            Load::Idle if !peer.is_rival() && peer != Peer::Gateway => {}
            // Before anything else grows the heap, which would hide what idle connections need.
            Load::Idle => idle(&target, &clock, sizes.idle, sizes.idle_time, &mut figures).await?,
            Load::Bulk => {
                load::bulk(&target, sizes.bulk_connections, sizes.bulk_bytes_each / 16).await?;
                (figures.bulk_cpu, figures.bulk_rate) = bulk(&target, &clock, sizes.bulk_connections, sizes).await?;
            }
            Load::Connections => {
                (figures.connection_cpu, figures.connection_rate) =
                    clock.each(load::connections(&target, CONCURRENCY, sizes.phase)).await?;
            }
            Load::Tls => {
                (figures.tls_bulk_cpu, figures.tls_bulk_rate) =
                    bulk(&tls, &clock, sizes.tls_bulk_connections, sizes).await?;
                (figures.tls_connection_cpu, figures.tls_connection_rate) =
                    clock.each(load::connections(&tls, CONCURRENCY, sizes.phase)).await?;
            }
            Load::Messages => messages(&target, &clock, sizes, &mut figures).await?,
        }
    }
    Ok(figures)
}

async fn bulk(
    target: &Target,
    clock: &Clock,
    connections: usize,
    sizes: &Sizes,
) -> anyhow::Result<(Option<f64>, Option<f64>)> {
    let bytes = sizes.bulk_bytes_each * connections as u64;
    clock.bulk(bytes, load::bulk(target, connections, sizes.bulk_bytes_each)).await
}

async fn messages(target: &Target, clock: &Clock, sizes: &Sizes, figures: &mut Figures) -> anyhow::Result<()> {
    let mut streams = Vec::new();
    for _ in 0..CONCURRENCY {
        streams.push(load::open_echo(target).await?);
    }
    (figures.saturated_cpu, figures.saturated_rate) = clock.each(load::saturate(&mut streams, sizes.phase)).await?;

    let mut latencies: Arc<[Duration]> = Arc::default();
    let paced = async {
        latencies = load::at_rate(&mut streams, sizes.rate, sizes.phase).await?;
        Ok(latencies.len() as u64)
    };
    (figures.paced_cpu, _) = clock.each(paced).await?;
    (figures.paced_p50, figures.paced_p99) = (percentile(&latencies, 50), percentile(&latencies, 99));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
async fn idle(
    target: &Target,
    clock: &Clock,
    connections: usize,
    time: Duration,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let anonymous = || clock.processes().iter().map(Processes::anonymous).sum::<u64>();
    let before = anonymous();
    let mut streams: Vec<Box<dyn Stream>> = Vec::with_capacity(connections);
    while streams.len() < connections {
        let mut opening = JoinSet::new();
        for _ in 0..OPENING {
            let target = target.clone();
            opening.spawn(async move { load::open_echo(&target).await });
        }
        while let Some(opened) = opening.join_next().await {
            streams.push(opened??);
        }
    }
    figures.idle_memory = Some(anonymous().saturating_sub(before) as f64 / 1024.0 / streams.len() as f64);
    // What follows an establishment is not idleness yet.
    tokio::time::sleep(SETTLING).await;
    figures.idle_cpu = clock.rest(time).await;
    drop(streams);
    // Until their ends are dealt with, which is not the next load's.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}
