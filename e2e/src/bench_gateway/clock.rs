//! What a process and its children have used.

use std::{fs, time::Duration};

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

fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may contain any character.
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
