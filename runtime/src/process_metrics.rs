//! What the kernel knows about this process, under the names that every Prometheus client library uses, and what the
//! asynchronous runtime knows about itself.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::runtime::Handle;

/// The unit of the processor times in `/proc/self/stat` (`USER_HZ`): part of Linux's binary interface and the same on
/// every architecture that we build for, see proc(5).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc` on each scrape. What cannot be read is left out.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    started: SystemTime,
}

impl ProcessMetrics {
    pub(crate) fn new(started: SystemTime) -> Self {
        Self { started }
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(seconds) = processor_seconds(&stat) {
            let help = "Processor time used, user and system";
            metric(&mut encoder, "process_cpu", help, Some(&Unit::Seconds), &ConstCounter::new(seconds))?;
        }
        let kibibytes = [
            ("process_resident_memory", "Memory resident in RAM", "VmRSS:"),
            ("process_virtual_memory", "Address space in use", "VmSize:"),
        ];
        for (name, help, field) in kibibytes {
            if let Some(size) = status_number(&status, field) {
                let bytes = ConstGauge::new(size.saturating_mul(1024));
                metric(&mut encoder, name, help, Some(&Unit::Bytes), &bytes)?;
            }
        }
        if let Some(threads) = status_number(&status, "Threads:") {
            metric(&mut encoder, "process_threads", "Threads", None, &ConstGauge::new(threads))?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // Listing the directory itself takes one.
            let open = ConstGauge::new(i64::try_from(open.count().saturating_sub(1)).unwrap_or(i64::MAX));
            metric(&mut encoder, "process_open_fds", "Open file descriptors", None, &open)?;
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(most) = status_number(&limits, "Max open files") {
            metric(&mut encoder, "process_max_fds", "Limit of open file descriptors", None, &ConstGauge::new(most))?;
        }
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let help = "Start of the process since the Unix epoch";
        metric(&mut encoder, "process_start_time", help, Some(&Unit::Seconds), &ConstGauge::new(started))
    }
}

/// The load of the asynchronous runtime: tasks that are never finished show here first.
#[derive(Debug)]
pub(crate) struct RuntimeMetrics {
    runtime: Handle,
}

impl RuntimeMetrics {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime }
    }
}

impl Collector for RuntimeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let runtime = self.runtime.metrics();
        let numbers = [
            ("runtime_tasks", "Tasks that have not ended", runtime.num_alive_tasks()),
            ("runtime_queued_tasks", "Tasks that wait in the shared queue to run", runtime.global_queue_depth()),
            ("runtime_workers", "Worker threads", runtime.num_workers()),
        ];
        for (name, help, number) in numbers {
            let number = ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX));
            metric(&mut encoder, name, help, None, &number)?;
        }
        Ok(())
    }
}

fn metric(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: &impl EncodeMetric,
) -> Result<(), fmt::Error> {
    let encoder = encoder.encode_descriptor(name, help, unit, value.metric_type())?;
    value.encode(encoder)
}

/// Fields 14 and 15 of proc_pid_stat(5). The second field, the name in parentheses, may hold blanks and parentheses.
fn processor_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

/// The first number after `field`, at a line's start.
fn status_number(text: &str, field: &str) -> Option<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_process_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 0 0 0 0 150 50 0 0 20 0 9 0 12345 0 0";
        assert_eq!(processor_seconds(stat), Some(2.0));
        assert_eq!(processor_seconds(""), None);
        assert_eq!(processor_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn numbers_are_found_by_their_field() {
        let status = "Name:\tx\nVmRSS:\t  2048 kB\nThreads:\t3\n";
        assert_eq!(status_number(status, "VmRSS:"), Some(2048));
        assert_eq!(status_number(status, "Threads:"), Some(3));
        assert_eq!(status_number(status, "VmSize:"), None);
        assert_eq!(status_number("Max open files            1024  4096  files", "Max open files"), Some(1024));
        assert_eq!(status_number("Max open files            unlimited  x", "Max open files"), None);
    }
}
