//! ServiceImports, and the status of ServiceExports, as files: what a Kubernetes controller would write into the API.
//!
//! `<directory>/<namespace>/serviceimport-<name>.yaml` and `…/serviceexport-<name>.yaml`, replaced by rename and only when
//! their content changes. What is gone is removed once the whole state is known, never before.

mod manifests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use federation::ServiceId;
use mesh_runtime::write_atomically;
use tokio::sync::watch;
use tracing::{error, info};

use crate::conditions::Transitions;
use crate::snapshot::Snapshot;
use manifests::{HEADER, export_manifest, import_manifest, read_conditions};

pub(crate) use manifests::import_spec;

/// For whoever consumes the imports.
const FILE_MODE: u32 = 0o644;

/// Writes the files.
#[derive(Debug)]
pub struct ImportFiles {
    directory: PathBuf,
    /// What is there.
    written: BTreeMap<PathBuf, String>,
    transitions: Transitions,
    last: Option<Arc<Snapshot>>,
}

impl ImportFiles {
    /// Looks at what an earlier run has written. Blocks on the disk.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut files = Self {
            directory: directory.to_owned(),
            written: BTreeMap::new(),
            transitions: Transitions::default(),
            last: None,
        };
        for namespace in fs::read_dir(directory)? {
            let namespace = namespace?.path();
            if namespace.is_dir() {
                files.remember(&namespace)?;
            }
        }
        Ok(files)
    }

    fn remember(&mut self, namespace: &Path) -> io::Result<()> {
        for entry in fs::read_dir(namespace)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !is_ours(name) {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            if text.starts_with(HEADER) {
                read_conditions(&text, |kind, status, since| {
                    self.transitions.remember(&object(&path), kind, status, since);
                });
                self.written.insert(path, text);
            }
        }
        Ok(())
    }

    /// Makes the files say what the snapshot says. Blocks on the disk.
    ///
    /// # Errors
    /// The first file that cannot be written or removed; the others are tried all the same.
    pub fn write(&mut self, snapshot: &Arc<Snapshot>, now: SystemTime) -> io::Result<()> {
        let mut outcome = Ok(());
        let last = self.last.replace(Arc::clone(snapshot));
        let mut wanted = std::collections::BTreeSet::new();
        for (id, view) in &snapshot.services {
            let path = self.path(id, "serviceimport");
            let before = last.as_ref().and_then(|last| last.services.get(id));
            if !before.is_some_and(|before| Arc::ptr_eq(before, view)) || !self.written.contains_key(&path) {
                let text = import_manifest(view, &mut self.transitions, &object(&path), now);
                outcome = outcome.and(text.and_then(|text| self.put(&path, text)));
            }
            wanted.insert(path);
        }
        for (id, view) in &snapshot.exports {
            let path = self.path(id, "serviceexport");
            let before = last.as_ref().and_then(|last| last.exports.get(id));
            if !before.is_some_and(|before| Arc::ptr_eq(before, view)) || !self.written.contains_key(&path) {
                let text = export_manifest(id, view, &mut self.transitions, &object(&path), now);
                outcome = outcome.and(text.and_then(|text| self.put(&path, text)));
            }
            wanted.insert(path);
        }
        if snapshot.synced {
            let gone: Vec<_> = self.written.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
            outcome = gone.iter().map(|path| self.remove(path)).fold(outcome, Result::and);
        }
        if outcome.is_err() {
            // Everything is looked at again the next time.
            self.last = None;
        }
        outcome
    }

    fn put(&mut self, path: &Path, text: String) -> io::Result<()> {
        if self.written.get(path) == Some(&text) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        write_atomically(path, text.as_bytes(), FILE_MODE)?;
        self.written.insert(path.to_owned(), text);
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.written.remove(path);
        self.transitions.forget(&object(path));
        Ok(())
    }

    fn path(&self, id: &ServiceId, kind: &str) -> PathBuf {
        self.directory.join(id.namespace.as_str()).join(format!("{kind}-{}.yaml", id.name))
    }
}

fn is_ours(name: &str) -> bool {
    (name.starts_with("serviceimport-") || name.starts_with("serviceexport-")) && name.ends_with(".yaml")
}

/// What conditions are remembered by.
fn object(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Keeps the files in step with the snapshots until nobody shows any more.
pub async fn follow(mut files: ImportFiles, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut failing = false;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if snapshot.revision > 0 {
            let task = tokio::task::spawn_blocking(move || {
                let outcome = files.write(&snapshot, SystemTime::now());
                (files, outcome)
            });
            let Ok((returned, outcome)) = task.await else { return };
            files = returned;
            match &outcome {
                Err(error) => error!(%error, directory = %files.directory.display(), "imports cannot be written"),
                Ok(()) if failing => info!("imports are written again"),
                Ok(()) => {}
            }
            failing = outcome.is_err();
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}
