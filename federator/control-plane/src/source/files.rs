//! A watched directory of manifests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use federation_resources::{Directory, Scan};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use super::Source;
use crate::reconciler::{Input, SourceUpdate};

/// Reported changes come in bursts: a scan waits this long after the first.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// A file that never comes to rest does not keep the first full reading from being claimed for longer.
const SETTLE_AT_START: Duration = Duration::from_secs(2);

/// A directory of manifests: scanned when the system reports a change, and from time to time whatever it reports.
#[derive(Debug)]
pub struct FileSource {
    root: PathBuf,
    rescan: Duration,
}

impl FileSource {
    /// A source over `root`.
    #[must_use]
    pub fn new(root: PathBuf, rescan: Duration) -> Self {
        Self { root, rescan }
    }
}

impl Source for FileSource {
    async fn run(self, inputs: mpsc::Sender<Input>) {
        let reported = Arc::new(Notify::new());
        let mut watcher = None;
        let mut directory = Directory::new(self.root.clone());
        let started = Instant::now();
        let mut synced = false;
        let mut before = None;
        loop {
            if watcher.is_none() {
                watcher = watch(&self.root, &reported);
            }
            let Ok((returned, scan)) = tokio::task::spawn_blocking(move || {
                let scan = directory.scan(Instant::now());
                (directory, scan)
            })
            .await
            else {
                // The scan panicked or the runtime ends: either way there is nothing to go on with.
                return;
            };
            directory = returned;
            let due = scan.due;
            synced |= due.is_none() || started.elapsed() > SETTLE_AT_START;
            let seen = (scan.problems.clone(), scan.passed_over.clone(), synced);
            if !scan.changes.is_empty() || before.as_ref() != Some(&seen) {
                before = Some(seen);
                debug!(changes = scan.changes.len(), problems = scan.problems.len(), synced, "manifests read");
                if inputs.send(Input::Source(update(scan, synced))).await.is_err() {
                    return;
                }
            }
            let wait = due.map_or(self.rescan, |due| due.saturating_duration_since(Instant::now()).min(self.rescan));
            tokio::select! {
                () = reported.notified() => tokio::time::sleep(DEBOUNCE).await,
                () = tokio::time::sleep(wait) => {}
                () = inputs.closed() => return,
            }
        }
    }
}

fn update(scan: Scan, synced: bool) -> SourceUpdate {
    let Scan { changes, problems, passed_over, .. } = scan;
    SourceUpdate { changes, synced, problems, passed_over }
}

/// `None` while the directory cannot be watched; scans from time to time go on meanwhile.
fn watch(root: &Path, reported: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let notify = Arc::clone(reported);
    let on_event = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            notify.notify_one();
        }
    };
    let watched = RecommendedWatcher::new(on_event, notify::Config::default())
        .and_then(|mut watcher| watcher.watch(root, RecursiveMode::Recursive).map(|()| watcher));
    match watched {
        Ok(watcher) => {
            info!(directory = %root.display(), "watching manifests");
            Some(watcher)
        }
        Err(error) => {
            warn!(directory = %root.display(), %error, "manifests cannot be watched, only looked at from time to time");
            None
        }
    }
}
