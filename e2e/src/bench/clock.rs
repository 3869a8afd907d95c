//! What processes and their children have used.

use std::{
    fs,
    time::{Duration, Instant},
};

/// A process with its descendants, as they are now.
pub(crate) struct Processes(Vec<u32>);

impl Processes {
    /// The process and all that it has started.
    pub(crate) fn of(root: u32) -> Self {
        let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid: u32| Some((pid, parent(pid)?)))
            .collect();
        let mut all = vec![root];
        let mut next = 0;
        while let Some(current) = all.get(next).copied() {
            all.extend(parents.iter().filter(|(_, parent)| *parent == current).map(|(pid, _)| pid));
            next += 1;
        }
        Self(all)
    }

    /// Processor time so far, of all threads that live: `schedstat` counts nanoseconds.
    pub(crate) fn cpu(&self) -> Duration {
        let threads = self.0.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
        let nanoseconds = threads.filter_map(|thread| {
            let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split_ascii_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Anonymous memory that is resident, in bytes.
    pub(crate) fn anonymous(&self) -> u64 {
        self.status("RssAnon:")
    }

    /// All memory that is resident, in bytes: the program's own pages too.
    pub(crate) fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, field: &str) -> u64 {
        let kibibytes = self.0.iter().filter_map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(field))?.strip_suffix("kB")?;
            line.trim().parse::<u64>().ok()
        });
        kibibytes.sum::<u64>() * 1024
    }
}

/// The processes under test; none where nothing is in between, and then none of their figures.
pub(crate) struct Clock(Vec<Processes>);

impl Clock {
    /// These processes with their descendants.
    pub(crate) fn of(roots: impl IntoIterator<Item = u32>) -> Self {
        Self(roots.into_iter().map(Processes::of).collect())
    }

    /// The processes, each with its descendants.
    pub(crate) fn processes(&self) -> &[Processes] {
        &self.0
    }

    fn cpu(&self) -> Option<Duration> {
        (!self.0.is_empty()).then(|| self.0.iter().map(Processes::cpu).sum())
    }

    /// CPU-seconds that a load takes for each unit of which it says how many it has done, and units per second.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    async fn measure(
        &self,
        load: impl Future<Output = anyhow::Result<u64>>,
    ) -> anyhow::Result<(Option<f64>, Option<f64>)> {
        let (before, began) = (self.cpu(), Instant::now());
        let units = load.await? as f64;
        let rate = units / began.elapsed().as_secs_f64();
        let spent = self.cpu().zip(before).map(|(after, before)| (after - before).as_secs_f64());
        Ok((spent.map(|spent| spent / units), Some(rate)))
    }

    /// CPU-microseconds per unit, and units per second.
    pub(crate) async fn each(
        &self,
        load: impl Future<Output = anyhow::Result<u64>>,
    ) -> anyhow::Result<(Option<f64>, Option<f64>)> {
        let (cpu, rate) = self.measure(load).await?;
        Ok((cpu.map(|cpu| cpu * 1e6), rate))
    }

    /// CPU-seconds per GB (10^9 bytes) of a load of so many bytes, and GB per second.
    pub(crate) async fn bulk(
        &self,
        bytes: u64,
        load: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<(Option<f64>, Option<f64>)> {
        let counted = async {
            load.await?;
            Ok(bytes)
        };
        let (cpu, rate) = self.measure(counted).await?;
        Ok((cpu.map(|cpu| cpu * 1e9), rate.map(|rate| rate / 1e9)))
    }

    /// CPU-milliseconds per second of doing nothing.
    pub(crate) async fn rest(&self, time: Duration) -> Option<f64> {
        let before = self.cpu();
        tokio::time::sleep(time).await;
        let spent = self.cpu().zip(before).map(|(after, before)| (after - before).as_secs_f64());
        spent.map(|spent| spent * 1e3 / time.as_secs_f64())
    }
}

/// The latency, in microseconds, that so many percent of these, sorted, do not exceed.
pub(crate) fn percentile(latencies: &[Duration], percent: usize) -> Option<f64> {
    latencies.get(latencies.len() * percent / 100).map(|latency| latency.as_secs_f64() * 1e6)
}

fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may contain any character.
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
