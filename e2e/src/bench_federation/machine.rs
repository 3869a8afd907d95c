//! The replicas as processes, what they use, and what etcd's members count.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use federation_store::EtcdConfig;
use federation_store::lab::{EtcdCluster, MEMBERS};

use crate::bench::clock::Processes;
use crate::client;
use crate::lab::network::Block;
use crate::lab::process::{Plan, Process};

/// How long a replica may take to read the store.
const READY: Duration = Duration::from_secs(120);
/// Clock ticks of a second in `/proc/*/stat`.
const TICKS: f64 = 100.0;
/// Where etcd's lab has the members' metrics.
const ETCD_METRICS: u16 = 2382;
/// What each member counts of its clients' calls, and which of them are reads.
const CALLS: &str = "grpc_server_handled_total{";
const RANGE: &str = "grpc_method=\"Range\"";

/// The replicas, running or not.
pub(super) struct Replicas {
    processes: Vec<Process>,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Replicas {
    /// Starts replicas of `program` on what [`plane::make`](super::plane::make) wrote.
    pub(super) fn start(
        program: &Path,
        directory: &Path,
        block: Block,
        etcd: &EtcdCluster,
        count: u8,
    ) -> anyhow::Result<Self> {
        let (mut processes, mut addresses) = (Vec::new(), Vec::new());
        for replica in 0..count {
            let state = directory.join(format!("state-{replica}"));
            std::fs::create_dir_all(&state)?;
            std::fs::copy(directory.join("trust.last-good"), state.join("trust.last-good"))?;
            let address = block.address(0, replica + 1);
            let EtcdConfig { endpoints, ca_file, certificate_file, key_file, prefix } = etcd.config("/bench/");
            // All synthetic clusters come from one address.
            let mut config = format!(
                "runtime: {{admin: \"{address}:15020\", health: \"{address}:15021\", log: {{format: text}}}}\n\
                 listen: \"{address}:15012\"\nserviceDirectory: {}\nstateDirectory: {}\nreplica: federator-{replica}\n\
                 pendingHandshakesPerSource: 1024\nstore:\n  etcd:\n    endpoints: {endpoints:?}\n    prefix: {prefix}\n",
                directory.join("service").display(),
                state.display(),
            );
            for (field, file) in [("caFile", ca_file), ("certificateFile", certificate_file), ("keyFile", key_file)] {
                writeln!(config, "    {field}: {}", file.display())?;
            }
            let path = directory.join(format!("federator-{replica}.yaml"));
            std::fs::write(&path, config)?;
            processes.push(Process::start(Plan {
                name: format!("federator-{replica}"),
                program: program.to_owned(),
                arguments: vec!["--config".to_owned(), path.display().to_string()],
                log: directory.join(format!("federator-{replica}.log")),
                health: Some((address, 15021).into()),
            })?);
            addresses.push((address, 15012).into());
        }
        Ok(Self { processes, addresses })
    }

    /// Waits until they serve; returns how long that took.
    pub(super) async fn ready(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        for process in &mut self.processes {
            process.ready(READY).await?;
        }
        Ok(begun.elapsed())
    }

    /// Ends all of them and starts them anew.
    pub(super) async fn restart(&mut self) -> anyhow::Result<Duration> {
        for process in &mut self.processes {
            process.stop().await;
        }
        self.processes.iter_mut().try_for_each(Process::restart)?;
        self.ready().await
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self, replica: usize) -> anyhow::Result<()> {
        self.processes[replica].kill().await
    }

    /// Starts the killed one.
    pub(super) async fn revive(&mut self, replica: usize) -> anyhow::Result<()> {
        self.processes[replica].restart()?;
        self.ready().await.map(drop)
    }

    fn id(&self, replica: usize) -> anyhow::Result<u32> {
        self.processes[replica].id().context("the replica has ended")
    }

    /// Anonymous resident memory of all together, in bytes.
    pub(super) fn memory(&self) -> anyhow::Result<f64> {
        let ids: Vec<_> = (0..self.processes.len()).map(|replica| self.id(replica)).collect::<anyhow::Result<_>>()?;
        Ok(ids.into_iter().map(|id| Processes::of(id).anonymous() as f64).sum())
    }

    /// Processor time of one so far.
    pub(super) fn cpu(&self, replica: usize) -> anyhow::Result<Duration> {
        Ok(Processes::of(self.id(replica)?).cpu())
    }

    /// The most resident memory since [`Replicas::forget_peak`], in bytes.
    pub(super) fn peak(&self, replica: usize) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id(replica)?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? * 1024.0)
    }

    /// Lets the peak begin anew: `proc_pid_clear_refs(5)`.
    pub(super) fn forget_peak(&self, replica: usize) -> anyhow::Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.id(replica)?), "5")?)
    }

    /// Processor time so far of everybody.
    pub(super) fn clock(&self) -> anyhow::Result<Clock> {
        let replicas = (0..self.processes.len()).map(|replica| self.cpu(replica)).sum::<anyhow::Result<Duration>>()?;
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |place: usize| fields.get(place).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default();
        let own = (ticks(11) + ticks(12)) / TICKS;
        let all = Processes::of(std::process::id()).cpu().as_secs_f64();
        let replicas = replicas.as_secs_f64();
        Ok(Clock { replicas, etcd: (all - own - replicas).max(0.0), own, at: Instant::now() })
    }
}

/// Processor seconds of the replicas, etcd's members, and this process.
pub(super) struct Clock {
    pub(super) replicas: f64,
    pub(super) etcd: f64,
    pub(super) own: f64,
    at: Instant,
}

impl Clock {
    /// Cores that each has used since `before`.
    pub(super) fn cores_since(&self, before: &Self) -> [f64; 3] {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        [self.replicas - before.replicas, self.etcd - before.etcd, self.own - before.own].map(|used| used / seconds)
    }
}

/// What etcd's members have counted.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Etcd {
    /// Agreed on by the members: each is written to every member's log.
    pub(super) proposals: f64,
    /// Keys put.
    pub(super) puts: f64,
    /// Keys that each member looked up by itself: what transactions compare.
    pub(super) compared: f64,
    /// Reads that were asked for, of all members together.
    pub(super) reads: f64,
    /// Watches, all members together.
    pub(super) watchers: f64,
}

impl Etcd {
    pub(super) async fn read(etcd: &EtcdCluster) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for member in 0..MEMBERS {
            let endpoint = etcd.endpoint(member);
            let host = endpoint.trim_start_matches("https://").split(':').next().unwrap_or_default();
            let address = SocketAddr::new(host.parse()?, ETCD_METRICS);
            let text = client::get(address, "/metrics").await?.body;
            let counter = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                line.and_then(|value| value.trim().parse::<f64>().ok())
                    .with_context(|| format!("etcd does not count {name}"))
            };
            // Every member applies what all have agreed on.
            sum.proposals = sum.proposals.max(counter("etcd_server_proposals_committed_total")?);
            sum.puts = sum.puts.max(counter("etcd_mvcc_put_total")?);
            let calls = text.lines().filter(|line| line.starts_with(CALLS) && line.contains(RANGE));
            let reads: f64 = calls.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
            sum.reads += reads;
            sum.compared += (counter("etcd_mvcc_range_total")? - reads) / MEMBERS as f64;
            sum.watchers += counter("etcd_debugging_mvcc_watcher_total")?;
        }
        Ok(sum)
    }

    /// What was added since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            proposals: self.proposals - before.proposals,
            puts: self.puts - before.puts,
            compared: self.compared - before.compared,
            reads: self.reads - before.reads,
            watchers: self.watchers,
        }
    }
}
