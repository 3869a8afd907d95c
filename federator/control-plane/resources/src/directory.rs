//! A directory of manifests over time.
//!
//! A scan looks at every file, reads those that changed, and says how the set of objects differs from the scan before.
//! Files may be replaced by rename or written in place: a file is read once it has been quiet for [`QUIET`], and a
//! reading that loses objects or has problems, as that of a half-written file does, is believed only after
//! [`QUIET_BEFORE_LOSS`]. Names that start with a dot are passed over (editors' and our own temporary files, and the
//! `..data` of a mounted ConfigMap, whose files are seen through their symbolic links).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::reading::{FileReading, Problem, read_file};
use crate::resource::{Resource, ResourceKey};

/// A file is not read before it has been unchanged for this long.
pub const QUIET: Duration = Duration::from_millis(20);

/// Objects are not taken away, and problems not reported, before the file has been unchanged (or gone) for this long.
pub const QUIET_BEFORE_LOSS: Duration = Duration::from_millis(250);

/// Directories below directories, at most.
const MAX_DEPTH: usize = 16;

/// How the set of objects changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New, or other than before.
    Applied(Arc<Resource>),
    /// Gone.
    Deleted(ResourceKey),
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Differences from the scan before, deletions first.
    pub changes: Vec<Change>,
    /// Everything that is wrong now, sorted.
    pub problems: Vec<Problem>,
    /// Documents of kinds that mean nothing here, over all files.
    pub passed_over: BTreeMap<String, u32>,
    /// When to scan again even if nothing is reported to have changed: a file has not settled.
    pub due: Option<Instant>,
}

/// The state of a directory of manifests.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    objects: BTreeMap<ResourceKey, Arc<Resource>>,
}

#[derive(Debug, Default)]
struct FileState {
    /// Of the content that `reading` came from.
    read: Option<Fingerprint>,
    reading: FileReading,
    /// A change that has not settled: what was seen, and since when.
    pending: Option<(Option<Fingerprint>, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Directory {
    /// A directory, not looked at yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), files: BTreeMap::new(), objects: BTreeMap::new() }
    }

    /// Looks at every file. A directory that cannot be listed is a problem and takes nothing away.
    pub fn scan(&mut self, now: Instant) -> Scan {
        let mut scan = Scan::default();
        let mut found = BTreeMap::new();
        let listed = list(&self.root, 0, &mut BTreeSet::new(), &mut found);
        if let Err((path, error)) = &listed {
            scan.problems.push(unreadable(path, error));
        }
        for (path, metadata) in &found {
            let state = self.files.entry(path.clone()).or_default();
            if let Err(error) = state.look(path, metadata, now, &mut scan.due) {
                scan.problems.push(unreadable(path, &error));
            }
        }
        if listed.is_ok() {
            self.files.retain(|path, state| found.contains_key(path) || state.keep_missing(now, &mut scan.due));
        }
        self.compose(&mut scan);
        scan.problems.sort();
        scan
    }

    /// The objects of the last scan.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.objects.values()
    }

    /// Makes one set of all files: the first file by path wins where two have the same object.
    fn compose(&mut self, scan: &mut Scan) {
        let mut composed: BTreeMap<ResourceKey, (&PathBuf, u64, &Arc<Resource>)> = BTreeMap::new();
        for (path, state) in &self.files {
            scan.problems.extend(state.reading.problems.iter().cloned());
            for (kind, count) in &state.reading.passed_over {
                *scan.passed_over.entry(kind.clone()).or_default() += count;
            }
            for (line, resource) in &state.reading.objects {
                let key = resource.key();
                let Some((first, first_line, _)) = composed.get(&key) else {
                    composed.insert(key, (path, *line, resource));
                    continue;
                };
                // A file that was renamed is there twice until its old name has settled.
                if !state.is_missing() && !self.files.get(*first).is_some_and(FileState::is_missing) {
                    scan.problems.push(Problem {
                        file: path.clone(),
                        line: Some(*line),
                        field: Some("metadata.name".to_owned()),
                        what: format!("{key} is also in {}:{first_line}, which wins", first.display()),
                    });
                }
            }
        }
        let gone = self.objects.keys().filter(|key| !composed.contains_key(*key));
        scan.changes.extend(gone.cloned().map(Change::Deleted));
        for (key, (_, _, resource)) in &composed {
            let same = |old: &Arc<Resource>| Arc::ptr_eq(old, resource) || old == *resource;
            if !self.objects.get(key).is_some_and(same) {
                scan.changes.push(Change::Applied(Arc::clone(resource)));
            }
        }
        self.objects = composed.into_iter().map(|(key, (_, _, resource))| (key, Arc::clone(resource))).collect();
    }
}

impl FileState {
    /// Reads the file when it has changed and settled.
    fn look(&mut self, path: &Path, metadata: &Metadata, now: Instant, due: &mut Option<Instant>) -> io::Result<()> {
        let fingerprint = Fingerprint::of(metadata);
        if self.read == Some(fingerprint) {
            self.pending = None;
            return Ok(());
        }
        let since = self.pending_since(Some(fingerprint), now);
        let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
        let quiet = age.max(now.saturating_duration_since(since));
        if quiet < QUIET {
            earliest(due, now + (QUIET - quiet));
            return Ok(());
        }
        let reading = read_file(path)?;
        if Fingerprint::of(&fs::metadata(path)?) != fingerprint {
            earliest(due, now + QUIET);
            return Ok(());
        }
        if quiet < QUIET_BEFORE_LOSS && (!reading.problems.is_empty() || self.would_lose(&reading)) {
            earliest(due, now + (QUIET_BEFORE_LOSS - quiet));
            return Ok(());
        }
        self.accept(reading);
        self.read = Some(fingerprint);
        self.pending = None;
        Ok(())
    }

    /// While a file has a problem, the objects it held stay as they were, and those it did not hold come in.
    fn accept(&mut self, reading: FileReading) {
        let last_good = std::mem::replace(&mut self.reading, reading);
        if self.reading.problems.is_empty() {
            return;
        }
        let kept: BTreeSet<ResourceKey> = last_good.objects.iter().map(|(_, resource)| resource.key()).collect();
        let new = std::mem::replace(&mut self.reading.objects, last_good.objects);
        self.reading.objects.extend(new.into_iter().filter(|(_, resource)| !kept.contains(&resource.key())));
    }

    fn would_lose(&self, reading: &FileReading) -> bool {
        let there: BTreeSet<ResourceKey> = reading.objects.iter().map(|(_, resource)| resource.key()).collect();
        self.reading.objects.iter().any(|(_, resource)| !there.contains(&resource.key()))
    }

    /// Whether the state of a file that is not there any more is still to be kept.
    fn keep_missing(&mut self, now: Instant, due: &mut Option<Instant>) -> bool {
        let since = self.pending_since(None, now);
        let gone = since + QUIET_BEFORE_LOSS;
        if now < gone {
            earliest(due, gone);
        }
        now < gone
    }

    fn is_missing(&self) -> bool {
        matches!(self.pending, Some((None, _)))
    }

    fn pending_since(&mut self, seen: Option<Fingerprint>, now: Instant) -> Instant {
        match self.pending {
            Some((pending, since)) if pending == seen => since,
            _ => {
                self.pending = Some((seen, now));
                now
            }
        }
    }
}

fn earliest(due: &mut Option<Instant>, at: Instant) {
    *due = Some(due.map_or(at, |due| due.min(at)));
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem { file: path.to_owned(), line: None, field: None, what: format!("cannot be read: {error}") }
}

/// Collects manifest files below `directory`, following symbolic links; a directory that was entered is not entered
/// again. A file that goes away meanwhile is left out.
fn list(
    directory: &Path,
    depth: usize,
    entered: &mut BTreeSet<(u64, u64)>,
    found: &mut BTreeMap<PathBuf, Metadata>,
) -> Result<(), (PathBuf, io::Error)> {
    let failed = |error| (directory.to_owned(), error);
    let metadata = fs::metadata(directory).map_err(failed)?;
    if depth > MAX_DEPTH || !entered.insert((metadata.dev(), metadata.ino())) {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => list(&path, depth + 1, entered, found)?,
            Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                found.insert(path, metadata);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err((path, error)),
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}
