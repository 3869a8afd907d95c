//! Memory pressure: while it lasts new connections are shed, so that the old ones survive.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tracing::{info, warn};

/// How often the memory in use is read.
const INTERVAL: Duration = Duration::from_millis(250);
/// Of the process, a field in each line.
const STATUS: &str = "/proc/self/status";
/// The control group's own files, as a container sees them (cgroup v2).
const CGROUP: &str = "/sys/fs/cgroup";

/// Whether memory is short.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    short: AtomicBool,
}

/// What is compared with what.
#[derive(Debug)]
pub(crate) struct Gauge {
    limit: u64,
    used: Used,
}

#[derive(Debug)]
enum Used {
    /// What of the process is resident.
    Resident,
    /// A file of one number of bytes.
    File(PathBuf),
}

impl Gauge {
    /// The configured limit on what is resident; without one nine tenths of the control group's limit on all its memory, socket
    /// buffers included; without that none.
    pub(crate) fn new(configured: Option<u64>) -> Option<Self> {
        if let Some(limit) = configured {
            return Some(Self { limit, used: Used::Resident });
        }
        let limit: u64 = read_number(&PathBuf::from(CGROUP).join("memory.max")).ok()?;
        Some(Self { limit: limit / 10 * 9, used: Used::File(PathBuf::from(CGROUP).join("memory.current")) })
    }

    fn used(&self) -> io::Result<u64> {
        match &self.used {
            Used::File(path) => read_number(path),
            Used::Resident => {
                let text = fs::read_to_string(STATUS)?;
                let kibibytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
                let kibibytes: Option<u64> = kibibytes.and_then(|kibibytes| kibibytes.trim().parse().ok());
                kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| io::ErrorKind::InvalidData.into())
            }
        }
    }
}

fn read_number(path: &std::path::Path) -> io::Result<u64> {
    // `max` stands for no limit, and is no number.
    fs::read_to_string(path)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

impl Pressure {
    pub(crate) fn short(&self) -> bool {
        self.short.load(Relaxed)
    }

    /// Follows a gauge for ever.
    pub(crate) async fn follow(&self, gauge: Gauge) {
        let mut interval = tokio::time::interval(INTERVAL);
        loop {
            interval.tick().await;
            self.look_at(&gauge);
        }
    }

    /// Reads a gauge once.
    pub(crate) fn look_at(&self, gauge: &Gauge) {
        // A file that cannot be read now changes nothing.
        if let Ok(used) = gauge.used() {
            self.note(used, gauge.limit);
        }
    }

    /// Memory is short above the limit, and no more from a twentieth below it.
    fn note(&self, used: u64, limit: u64) {
        let short = used > if self.short() { limit / 20 * 19 } else { limit };
        if self.short.swap(short, Relaxed) == short {
            return;
        }
        if short {
            warn!(used, limit, "memory is short: new connections are shed");
        } else {
            info!(used, limit, "memory suffices again");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn pressure_begins_above_the_limit_and_ends_well_below() {
        let pressure = Pressure::default();
        for (used, short) in [(1000, false), (1001, true), (960, true), (950, false), (1000, false)] {
            pressure.note(used, 1000);
            assert_eq!(pressure.short(), short, "{used}");
        }
    }

    #[test]
    fn what_is_resident_of_this_process_are_read() {
        let used = Gauge::new(Some(0)).unwrap().used().unwrap();
        assert!((1 << 20..1 << 34).contains(&used), "{used}");
    }
}
