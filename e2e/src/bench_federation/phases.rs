//! What is done to the federation, one phase after the other, and what each has shown.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::cluster::{Cluster, State, namespaces};
use super::machine::Etcd;
use super::tracker::quantile;
use super::{Bench, EXPORT, PROPAGATION, SESSION, say};
use crate::bench::Goal;

/// The most time for any phase.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long memory and processors may take to settle.
const SETTLE: Duration = Duration::from_secs(4);
/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long the last changes of a series may take to arrive.
const STRAGGLERS: Duration = Duration::from_secs(20);

const MIB: f64 = 1024.0 * 1024.0;

impl Bench {
    fn count(&self) -> f64 {
        self.clusters.len().max(1) as f64
    }

    fn replica_count(&self) -> f64 {
        self.replicas.addresses.len() as f64
    }

    /// Memory of replicas that hold nothing, in bytes.
    pub(super) async fn empty(&mut self) -> anyhow::Result<f64> {
        self.replicas.ready().await?;
        sleep(SETTLE).await;
        self.replicas.memory()
    }

    /// Every cluster publishes all it has, through a session that hears of no namespace.
    pub(super) async fn publish_everything(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        for number in 0..self.arguments.clusters {
            self.open(number, BTreeSet::new(), number);
            let records = self.publishers[number].everything()?;
            self.clusters[number].session.publish(records);
            // The signing of others does not keep this one's session waiting.
            tokio::task::yield_now().await;
        }
        let answered = async {
            while self.clusters.iter().any(|cluster| cluster.session.unanswered() > 0) {
                sleep(POLL).await;
            }
        };
        timeout(PATIENCE, answered).await.context("not everything was stored in time")?;
        let records = self.arguments.clusters * (self.arguments.exports + 1);
        let seconds = begun.elapsed().as_secs_f64();
        say(format!("first publication of everything, signing included: {records} records in {seconds:.1} s"))?;
        self.clusters.clear();
        Ok(())
    }

    /// New replicas on a full store: what an export costs.
    pub(super) async fn restart(&mut self, empty: f64) -> anyhow::Result<()> {
        let took = self.replicas.restart().await?;
        sleep(SETTLE).await;
        let (full, replicas) = (self.replicas.memory()?, self.replica_count());
        let exports = (self.arguments.clusters * self.arguments.exports) as f64;
        let each = (full - empty) / replicas / exports;
        say(format!(
            "a replica without sessions: {:.1} MiB empty, {:.1} MiB with all records ({each:.0} bytes an export), read in {took:.1?}",
            empty / replicas / MIB,
            full / replicas / MIB
        ))?;
        self.goals.push(Goal::new("federation_bytes_per_export", Some(each), EXPORT));
        Ok(())
    }

    /// Everybody comes at once with nothing.
    pub(super) async fn first_sync(&mut self) -> anyhow::Result<()> {
        let (before, clock, begun) = (self.replicas.memory()?, self.replicas.clock()?, Instant::now());
        let told = self.tracker.told();
        for replica in 0..self.replicas.addresses.len() {
            self.replicas.forget_peak(replica)?;
        }
        for number in 0..self.arguments.clusters {
            self.open(number, namespaces(number)?, number);
        }
        self.until_all("the first full sync", |_| true, |state| state.complete).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let [replicas, etcd, own] = self.replicas.clock()?.cores_since(&clock);
        let told = self.tracker.told() - told;
        say(format!("first full sync of all: {seconds:.1} s, {told} records told"))?;
        say(format!(
            "  cores used: replicas {replicas:.2}, etcd {etcd:.2}, synthetic side {own:.2}; {}",
            self.peaks()?
        ))?;
        self.check_complete()?;
        sleep(SETTLE).await;
        let idle = self.replicas.clock()?;
        sleep(SETTLE).await;
        let [replicas, etcd, own] = self.replicas.clock()?.cores_since(&idle);
        let each = (self.replicas.memory()? - before) / self.count() / 1024.0;
        say(format!(
            "a session: {each:.1} KiB; idle cores: replicas {replicas:.3}, etcd {etcd:.3}, synthetic side {own:.3}"
        ))?;
        self.goals.push(Goal::new("federation_kib_per_session", Some(each), SESSION));
        let (watchers, replicas) = (Etcd::read(&self.etcd).await?.watchers, self.replica_count());
        let each = (watchers >= replicas).then_some(watchers / replicas);
        self.goals.push(Goal::new("federation_etcd_watchers_per_replica", each, 1.0));
        say(format!("etcd serves {watchers} watches to {replicas} replicas"))?;
        Ok(())
    }

    /// Nobody lacks a record of a namespace that it has.
    fn check_complete(&self) -> anyhow::Result<()> {
        let mut exports: HashMap<_, usize> = HashMap::new();
        for publisher in &self.publishers {
            for number in 0..self.arguments.exports {
                let (_, namespace) = publisher.key(number).context("a cluster without exports")?;
                *exports.entry(namespace).or_default() += 1;
            }
        }
        for (number, cluster) in self.clusters.iter().enumerate() {
            let wanted: usize = namespaces(number)?.iter().filter_map(|namespace| exports.get(namespace)).sum();
            // And everybody's heads.
            let (wanted, told) = (wanted + self.clusters.len(), cluster.records.load(Ordering::Relaxed));
            ensure!(told >= wanted, "cluster {number} was told {told} records of {wanted}");
        }
        Ok(())
    }

    /// Changes at a steady rate.
    pub(super) async fn steady_changes(&mut self) -> anyhow::Result<()> {
        let (etcd, clock) = (Etcd::read(&self.etcd).await?, self.replicas.clock()?);
        let told = self.tracker.told();
        let made = self.change(self.arguments.seconds).await?;
        let [replicas, etcd_cores, own] = self.replicas.clock()?.cores_since(&clock);
        let etcd = Etcd::read(&self.etcd).await?.since(etcd);
        let told = (self.tracker.told() - told) as f64 / made as f64;
        let p99 = self.propagation("changes")?;
        self.goals.push(Goal::new("federation_propagation_p99_ms", p99, PROPAGATION));
        let per_thousand = replicas / f64::from(self.arguments.rate) * 1000.0;
        say(format!(
            "  records told a change: {told:.0}; CPU of the replicas for 1,000 changes/s: {per_thousand:.2} cores"
        ))?;
        say(format!("  cores used: replicas {replicas:.2}, etcd {etcd_cores:.2}, synthetic side {own:.2}"))?;
        let per_change = |number: f64| number / made as f64;
        say(format!(
            "  etcd for a change: {:.2} proposals, {:.2} puts; {:.2} keys compared by each member, {:.2} reads asked for",
            per_change(etcd.proposals),
            per_change(etcd.puts),
            per_change(etcd.compared),
            per_change(etcd.reads)
        ))?;
        let each = self.replicas.memory()? / self.replica_count() / MIB;
        say(format!("  a replica with its sessions and all records: {each:.1} MiB"))?;
        Ok(())
    }

    /// One replica is killed under changes: its half of the sessions comes to the other one.
    pub(super) async fn lose_a_replica(&mut self) -> anyhow::Result<()> {
        let lost = "federator-1";
        let before: Vec<_> = self.clusters.iter().map(Cluster::now).collect();
        let moving = |number: usize| before[number].replica == lost;
        let (cpu, begun) = (self.replicas.cpu(0)?, Instant::now());
        self.replicas.forget_peak(0)?;
        self.replicas.kill(1).await?;
        let seconds = self.arguments.seconds.div_ceil(2);
        let clusters = std::mem::take(&mut self.clusters);
        let back = async {
            for (number, cluster) in clusters.iter().enumerate().filter(|(number, _)| moving(*number)) {
                cluster.until(|state| state.connected > before[number].connected && state.complete).await;
            }
            begun.elapsed()
        };
        let back = timeout(PATIENCE, back).await.context("not all sessions came back in time")?;
        let cpu = self.replicas.cpu(0)?.saturating_sub(cpu);
        self.clusters = clusters;
        let moved = (0..self.clusters.len()).filter(|number| moving(*number));
        let (mut count, mut resumed) = (0, 0);
        for number in moved {
            (count, resumed) = (count + 1, resumed + usize::from(self.clusters[number].now().resumed));
        }
        say(format!(
            "a replica is killed: {count} sessions current again at the other one after {back:.1?}, {resumed} of them resumed, the others by snapshot"
        ))?;
        let peak = self.replicas.peak(0)? / MIB;
        say(format!("  CPU of that one until then: {:.2} s; its peak: {peak:.1} MiB", cpu.as_secs_f64()))?;
        self.change(seconds).await?;
        self.propagation("  changes with all sessions at one replica")?;
        self.replicas.revive(1).await
    }

    /// Half of the sessions come at once with nothing, to a replica that has just started.
    pub(super) async fn begin_anew(&mut self) -> anyhow::Result<()> {
        let half: Vec<_> = (0..self.clusters.len()).filter(|number| number % 2 == 1).collect();
        let (cpu, begun, told) = (self.replicas.cpu(1)?, Instant::now(), self.tracker.told());
        self.replicas.forget_peak(1)?;
        for number in &half {
            let cluster = self.connect(*number, namespaces(*number)?, 1);
            self.clusters[*number] = cluster;
        }
        self.until_all("a snapshot for half of the sessions", |number| number % 2 == 1, |state| state.complete).await?;
        let (took, cpu) = (begun.elapsed(), self.replicas.cpu(1)?.saturating_sub(cpu));
        let snapshots = half.iter().filter(|number| !self.clusters[**number].now().resumed).count();
        say(format!(
            "half of the sessions come with nothing: {} current after {took:.1?}, {snapshots} of them by snapshot, {} records told",
            half.len(),
            self.tracker.told() - told
        ))?;
        let peak = self.replicas.peak(1)? / MIB;
        say(format!("  CPU of their replica until then: {:.2} s; its peak: {peak:.1} MiB", cpu.as_secs_f64()))?;
        Ok(())
    }

    /// Changes exports of clusters in turn, and waits for their arrival; returns how many.
    async fn change(&mut self, seconds: u32) -> anyhow::Result<usize> {
        let count = self.clusters.len();
        let interests = (0..count).map(namespaces).collect::<anyhow::Result<Vec<_>>>()?;
        let rate = self.arguments.rate;
        let mut ticks = interval(Duration::from_secs(1) / rate);
        // The rate is kept, whatever a tick has taken.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let made = (rate * seconds) as usize;
        for _ in 0..made {
            let (cluster, key, receivers) = loop {
                let number = self.changes;
                self.changes += 1;
                let cluster = number * 31 % count;
                let (key, namespace) =
                    self.publishers[cluster].key(number + number / count).context("a cluster without exports")?;
                let others = interests.iter().enumerate();
                let receivers =
                    others.filter(|(other, interest)| *other != cluster && interest.contains(&namespace)).count();
                if receivers > 0 {
                    break (cluster, key, receivers);
                }
            };
            ticks.tick().await;
            let begun = Instant::now();
            let ready = u32::try_from(self.changes % 1000)?;
            let (sequence, records) = self.publishers[cluster].change(&key, ready)?;
            self.tracker.begin(cluster, sequence, begun, receivers);
            self.clusters[cluster].session.publish(records);
        }
        let finished = async {
            while self.tracker.unfinished() > 0 {
                sleep(POLL).await;
            }
        };
        // Those that are left are told.
        let _ = timeout(STRAGGLERS, finished).await;
        Ok(made)
    }

    /// Tells how long changes took; the 99th percentile to the last receiver, when all have arrived.
    fn propagation(&self, what: &str) -> anyhow::Result<Option<f64>> {
        let unfinished = self.tracker.unfinished();
        let mut figures = self.tracker.take();
        let (changes, rate) = (figures.last.len(), self.arguments.rate);
        let mut line = format!("{what}: {changes} at {rate}/s");
        for (receivers, durations) in [("each", &mut figures.each), ("all", &mut figures.last)] {
            let [p50, p99] = [0.5, 0.99].map(|share| quantile(durations, share).unwrap_or(f64::NAN));
            line +=
                &format!("; to {receivers} of the clusters that have the namespace p50 {p50:.0} ms, p99 {p99:.0} ms");
        }
        say(format!("{line}; {unfinished} unfinished"))?;
        Ok(quantile(&mut figures.last, 0.99).filter(|_| unfinished == 0))
    }

    fn peaks(&self) -> anyhow::Result<String> {
        let peaks = (0..self.replicas.addresses.len()).map(|replica| Ok(self.replicas.peak(replica)? / MIB));
        let peaks = peaks.collect::<anyhow::Result<Vec<f64>>>()?;
        Ok(format!("peak of a replica {:.1} MiB", peaks.into_iter().fold(0.0, f64::max)))
    }

    fn open(&mut self, number: usize, namespaces: BTreeSet<federation::Namespace>, first: usize) {
        let cluster = self.connect(number, namespaces, first);
        self.clusters.push(cluster);
    }

    fn connect(&self, number: usize, namespaces: BTreeSet<federation::Namespace>, first: usize) -> Cluster {
        Cluster::open(number, namespaces, (&self.replicas.addresses, first), &self.joined, &self.tracker)
    }

    async fn until_all(
        &self,
        what: &str,
        whom: impl Fn(usize) -> bool,
        reached: impl Fn(&State) -> bool,
    ) -> anyhow::Result<()> {
        let all = async {
            for (_, cluster) in self.clusters.iter().enumerate().filter(|(number, _)| whom(*number)) {
                cluster.until(&reached).await;
            }
        };
        timeout(PATIENCE, all).await.with_context(|| format!("{what}: not in time"))
    }
}
