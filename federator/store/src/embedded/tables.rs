//! The tables of the file, and how their rows are written.
//!
//! Versions of a key lie beside each other, the newest first, so that one seek finds the state of any revision:
//!
//! ```text
//! versions  (key, !revision) -> put {created, lease, value} | deleted
//! log       (revision, index) -> key                what each revision after the compacted one changed
//! leases    lease -> time to live in milliseconds
//! leased    (lease, key) -> ()
//! meta      name -> number
//! ```

use bytes::Bytes;
use redb::{ReadableTable, StorageError, Table, TableDefinition, TableError, WriteTransaction};

use crate::{Entry, LeaseId, Revision};

pub(super) const VERSIONS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("versions");
pub(super) const LOG: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("log");
pub(super) const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
pub(super) const LEASED: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("leased");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The newest revision.
pub(super) const META_REVISION: &str = "revision";
/// The oldest revision that can be read.
pub(super) const META_COMPACTED: &str = "compacted";
/// The number of the next lease; numbers are never used again.
pub(super) const META_NEXT_LEASE: &str = "next-lease";
/// The number of the [`Incarnation`](crate::Incarnation).
pub(super) const META_INCARNATION: &str = "incarnation";
/// The inode that the file had when its incarnation began.
pub(super) const META_INODE: &str = "inode";
/// [`FORMAT`] of the program that wrote the file.
pub(super) const META_FORMAT: &str = "format";

/// The layout of these tables.
pub(super) const FORMAT: u64 = 1;

const DELETED: u8 = 0;
const PUT: u8 = 1;
/// Kind, creation revision and lease come before the value.
const PUT_HEADER: usize = 1 + 8 + 8;

/// Every table, open in one write transaction.
pub(super) struct Tables<'t> {
    pub(super) versions: Table<'t, (&'static str, u64), &'static [u8]>,
    pub(super) log: Table<'t, (u64, u64), &'static str>,
    pub(super) leases: Table<'t, u64, u64>,
    pub(super) leased: Table<'t, (u64, &'static str), ()>,
    pub(super) meta: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    /// Opens the tables, and creates those that do not exist.
    pub(super) fn open(write: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            versions: write.open_table(VERSIONS)?,
            log: write.open_table(LOG)?,
            leases: write.open_table(LEASES)?,
            leased: write.open_table(LEASED)?,
            meta: write.open_table(META)?,
        })
    }
}

/// What a key became in one revision.
pub(super) enum Version<'a> {
    Put { created: Revision, lease: Option<LeaseId>, value: &'a [u8] },
    Deleted,
}

impl<'a> Version<'a> {
    pub(super) fn decode(row: &'a [u8]) -> Result<Self, StorageError> {
        Self::parse(row).ok_or_else(|| StorageError::Corrupted("a row of the table of versions cannot be read".into()))
    }

    fn parse(row: &'a [u8]) -> Option<Self> {
        match row.split_first()? {
            (&DELETED, []) => Some(Version::Deleted),
            (&PUT, rest) => {
                let (created, rest) = rest.split_first_chunk::<8>()?;
                let (lease, value) = rest.split_first_chunk::<8>()?;
                let lease = Some(u64::from_le_bytes(*lease)).filter(|number| *number != 0).map(LeaseId::new);
                Some(Version::Put { created: u64::from_le_bytes(*created), lease, value })
            }
            _ => None,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Version::Deleted => vec![DELETED],
            Version::Put { created, lease, value } => {
                let mut row = Vec::with_capacity(PUT_HEADER + value.len());
                row.push(PUT);
                row.extend(created.to_le_bytes());
                row.extend(lease.map_or(0, LeaseId::number).to_le_bytes());
                row.extend_from_slice(value);
                row
            }
        }
    }

    /// The entry of `key`, if this version, of revision `modified`, is not a deletion.
    pub(super) fn into_entry(self, key: &str, modified: Revision) -> Option<Entry> {
        match self {
            Version::Deleted => None,
            Version::Put { created, lease, value } => {
                Some(Entry { key: key.to_owned(), value: Bytes::copy_from_slice(value), created, modified, lease })
            }
        }
    }
}

/// The newest version of `key` that is not newer than `at`.
pub(super) fn version_at<T, R>(
    versions: &T,
    key: &str,
    at: Revision,
    read: impl FnOnce(Revision, Version<'_>) -> R,
) -> Result<Option<R>, StorageError>
where
    T: ReadableTable<(&'static str, u64), &'static [u8]>,
{
    match versions.range((key, !at)..=(key, u64::MAX))?.next() {
        None => Ok(None),
        Some(row) => {
            let (place, row) = row?;
            Ok(Some(read(!place.value().1, Version::decode(row.value())?)))
        }
    }
}
