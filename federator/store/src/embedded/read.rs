//! Reads of the file. Each is one redb read transaction: it sees one revision, and does not wait for the writer.

use std::ops::Bound;

use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, StorageError};

use super::recent::change_size;
use super::tables::{LOG, META, META_COMPACTED, META_REVISION, VERSIONS, Version, version_at};
use crate::{Change, Entry, Page, RangePage, Revision, StoreError, WatchBatch};

/// A page ends early once its keys and values have this many bytes.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// A piece of the log ends once so many of its revisions were looked at.
const LOG_REVISIONS: usize = 512;
/// A piece of the log ends once its matching changes have this many bytes.
const LOG_BYTES: usize = 1024 * 1024;

type Versions = ReadOnlyTable<(&'static str, u64), &'static [u8]>;

pub(super) fn get(database: &Database, key: &str) -> Result<Option<Entry>, redb::Error> {
    let versions = database.begin_read()?.open_table(VERSIONS)?;
    let entry = version_at(&versions, key, u64::MAX, |modified, version| version.into_entry(key, modified))?;
    Ok(entry.flatten())
}

/// The page, or why there is no such page.
pub(super) fn range(
    database: &Database,
    prefix: &str,
    page: &Page,
) -> Result<Result<RangePage, StoreError>, redb::Error> {
    let read = database.begin_read()?;
    let Bounds { compacted, current } = Bounds::of(&read)?;
    let at = page.at.unwrap_or(current);
    if at > current {
        return Ok(Err(StoreError::FutureRevision { current }));
    }
    if at < compacted {
        return Ok(Err(StoreError::Compacted { oldest: compacted }));
    }
    let mut entries = Entries::new(read.open_table(VERSIONS)?, prefix, page.after.as_deref(), at);
    let mut found = RangePage { entries: Vec::new(), revision: at, more: false };
    let mut bytes = 0;
    while let Some(entry) = entries.next()? {
        if found.entries.len() >= page.limit.max(1) || bytes >= PAGE_BYTES {
            found.more = true;
            break;
        }
        bytes += entry.key.len() + entry.value.len();
        found.entries.push(entry);
    }
    Ok(Ok(found))
}

/// The entries of one revision, in key order.
struct Entries<'p> {
    versions: Versions,
    prefix: &'p str,
    at: Revision,
    /// Everything before this place was seen.
    from: Bound<(String, u64)>,
}

impl<'p> Entries<'p> {
    fn new(versions: Versions, prefix: &'p str, after: Option<&str>, at: Revision) -> Self {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded((after.to_owned(), u64::MAX)),
            _ => Bound::Included((prefix.to_owned(), 0)),
        };
        Self { versions, prefix, at, from }
    }

    fn next(&mut self) -> Result<Option<Entry>, StorageError> {
        loop {
            let from = self.from.as_ref().map(|(key, place)| (key.as_str(), *place));
            let Some(row) = self.versions.range::<(&str, u64)>((from, Bound::Unbounded))?.next() else {
                return Ok(None);
            };
            let (place, row) = row?;
            let (key, place) = place.value();
            if !key.starts_with(self.prefix) {
                return Ok(None);
            }
            let entry = if !place <= self.at {
                Version::decode(row.value())?.into_entry(key, !place)
            } else {
                let at = self.at;
                version_at(&self.versions, key, at, |modified, version| version.into_entry(key, modified))?.flatten()
            };
            self.from = Bound::Excluded((key.to_owned(), u64::MAX));
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}

/// A piece of the log.
pub(super) enum LogPiece {
    /// What a prefix's watch reports of the revisions up to `until`, all of them.
    Read { batches: Vec<WatchBatch>, until: Revision },
    /// The log starts later.
    Compacted { oldest: Revision },
}

/// Reads the log after `position`.
pub(super) fn log(database: &Database, prefix: &str, position: Revision) -> Result<LogPiece, redb::Error> {
    let read = database.begin_read()?;
    let Bounds { compacted, current } = Bounds::of(&read)?;
    if position < compacted {
        return Ok(LogPiece::Compacted { oldest: compacted });
    }
    let (log, versions) = (read.open_table(LOG)?, read.open_table(VERSIONS)?);
    let mut batches: Vec<WatchBatch> = Vec::new();
    let (mut until, mut revisions, mut bytes) = (position, 0, 0);
    for row in log.range((position.saturating_add(1), 0)..)? {
        let (place, key) = row?;
        let (revision, key) = (place.value().0, key.value());
        if revision != until {
            if revisions == LOG_REVISIONS || bytes >= LOG_BYTES {
                return Ok(LogPiece::Read { batches, until });
            }
            (until, revisions) = (revision, revisions + 1);
        }
        if key.starts_with(prefix) {
            let change = change_at(&versions, key, revision)?;
            bytes += change_size(&change);
            match batches.last_mut().filter(|batch| batch.revision == revision) {
                Some(batch) => batch.changes.push(change),
                None => batches.push(WatchBatch { revision, changes: vec![change] }),
            }
        }
    }
    Ok(LogPiece::Read { batches, until: until.max(current) })
}

fn change_at(versions: &Versions, key: &str, revision: Revision) -> Result<Change, StorageError> {
    let entry = version_at(versions, key, revision, |modified, version| version.into_entry(key, modified))?
        .ok_or_else(|| StorageError::Corrupted(format!("revision {revision} is in the log only")))?;
    Ok(entry.map_or_else(|| Change::Delete { key: key.to_owned() }, Change::Put))
}

/// The revisions that can be read.
struct Bounds {
    compacted: Revision,
    current: Revision,
}

impl Bounds {
    fn of(read: &ReadTransaction) -> Result<Self, redb::Error> {
        let meta = read.open_table(META)?;
        let number = |name| -> Result<u64, redb::Error> {
            let value = meta.get(name)?;
            value.map(|value| value.value()).ok_or_else(|| redb::Error::Corrupted(format!("{name} is missing")))
        };
        Ok(Self { compacted: number(META_COMPACTED)?, current: number(META_REVISION)? })
    }
}
