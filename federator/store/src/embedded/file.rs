//! Opening the file: its lock, its format, its incarnation.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Database, ReadableTable, StorageBackend};

use super::EmbeddedOptions;
use super::engine::Position;
use super::tables::{
    FORMAT, META_COMPACTED, META_FORMAT, META_INCARNATION, META_INODE, META_NEXT_LEASE, META_REVISION, Tables,
};
use crate::{Incarnation, LeaseId, Source};

/// The pages that redb keeps in memory, in bytes; its default is 1 GiB.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Only the owner reads the file: it holds the federation's membership.
const FILE_MODE: u32 = 0o600;

/// Why a store's file could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// This or another process has the file open.
    #[error("the store file {path} is in use: one process at a time can have it open")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("the store file {path} cannot be opened")]
    Io {
        /// The file.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A newer program wrote the file, or one that is no store.
    #[error("the store file {path} has the unknown format {found}: this program reads {FORMAT}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its format; 0 when it names none.
        found: u64,
    },
    /// The file is damaged, or no store at all.
    #[error("the store file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Source,
    },
}

/// An opened file and what it says.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) position: Position,
    pub(super) incarnation: Incarnation,
    pub(super) leases: Vec<(LeaseId, Duration)>,
}

/// Opens the file, and creates it if there is none. Blocks: an unclean file is repaired, and every page is checked.
pub(super) fn open(path: &Path, options: &EmbeddedOptions) -> Result<Opened, OpenError> {
    let refused = |source| OpenError::Io { path: path.to_owned(), source };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)
        .map_err(refused)?;
    let metadata = file.metadata().map_err(refused)?;
    if metadata.len() == 0 {
        sync_directory(path).map_err(refused)?;
    }
    let backend = FileBackend::new(file).map_err(|error| unreadable(path, error))?;
    open_backend(backend, path, metadata.ino(), options.restored)
}

/// Opens what `backend` holds; `path` is for errors only.
pub(super) fn open_backend(
    backend: impl StorageBackend,
    path: &Path,
    inode: u64,
    restored: bool,
) -> Result<Opened, OpenError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    let database = builder.create_with_backend(backend).map_err(|error| unreadable(path, error))?;
    match load(&database, inode, restored).map_err(|error| unreadable(path, error))? {
        Loaded::Store { position, incarnation, leases } => Ok(Opened { database, position, incarnation, leases }),
        Loaded::UnknownFormat(found) => Err(OpenError::UnknownFormat { path: path.to_owned(), found }),
    }
}

fn unreadable(path: &Path, error: impl Into<redb::Error>) -> OpenError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        error => OpenError::Unreadable { path: path.to_owned(), source: error.into() },
    }
}

/// Makes the new file's name survive a crash of the machine.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

enum Loaded {
    Store { position: Position, incarnation: Incarnation, leases: Vec<(LeaseId, Duration)> },
    UnknownFormat(u64),
}

fn load(database: &Database, inode: u64, restored: bool) -> Result<Loaded, redb::Error> {
    let write = database.begin_write()?;
    let fresh = write.list_tables()?.next().is_none();
    let mut tables = Tables::open(&write)?;
    if fresh {
        // Revision 0 stands for absent keys, so that history starts at 1, like etcd's.
        for (name, number) in [(META_FORMAT, FORMAT), (META_REVISION, 1), (META_COMPACTED, 0), (META_NEXT_LEASE, 1)] {
            tables.meta.insert(name, number)?;
        }
    }
    let found = number(&tables, META_FORMAT)?;
    if found != FORMAT {
        drop(tables);
        write.abort()?;
        return Ok(Loaded::UnknownFormat(found));
    }
    // A copy of the file put in its place is another history of the same revisions; its inode gives it away.
    if restored || number(&tables, META_INODE)? != inode || number(&tables, META_INCARNATION)? == 0 {
        tables.meta.insert(META_INCARNATION, rand::random_range(1..=u64::MAX))?;
        tables.meta.insert(META_INODE, inode)?;
    }
    let loaded = read_state(&tables)?;
    drop(tables);
    write.commit()?;
    Ok(loaded)
}

fn read_state(tables: &Tables<'_>) -> Result<Loaded, redb::Error> {
    let mut leases = Vec::new();
    for row in tables.leases.iter()? {
        let (lease, milliseconds) = row?;
        leases.push((LeaseId::new(lease.value()), Duration::from_millis(milliseconds.value())));
    }
    let position = Position {
        revision: number(tables, META_REVISION)?,
        compacted: number(tables, META_COMPACTED)?,
        next_lease: number(tables, META_NEXT_LEASE)?,
    };
    Ok(Loaded::Store { position, incarnation: Incarnation::new(number(tables, META_INCARNATION)?), leases })
}

fn number(tables: &Tables<'_>, name: &str) -> Result<u64, redb::Error> {
    Ok(tables.meta.get(name)?.map_or(0, |value| value.value()))
}
