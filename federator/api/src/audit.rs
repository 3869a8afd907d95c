//! The audit record's chain: each entry holds the digest of the one before, so that a removed or changed one shows.

use aws_lc_rs::digest::{SHA256, digest};
use prost::Message as _;

use crate::trust::v1::AuditEntry;

/// SHA-256 of an entry as it is serialized.
#[must_use]
pub fn digest_of(entry: &AuditEntry) -> Vec<u8> {
    digest(&SHA256, &entry.encode_to_vec()).as_ref().to_vec()
}

/// An entry that does not follow the one before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Entries are missing between the two.
    #[error("entry {found} follows entry {before}: entries are missing")]
    Gap {
        /// The number of the entry before.
        before: u64,
        /// The number of the entry.
        found: u64,
    },
    /// The entry before is not the one that was written.
    #[error("entry {0} does not name the entry before it: one of the two was changed")]
    Changed(u64),
}

/// Checks entries as they are read, oldest first. The first one is believed: older ones may have been let go.
#[derive(Debug, Default)]
pub struct Chain {
    last: Option<(u64, Vec<u8>)>,
}

impl Chain {
    /// Takes the next entry.
    ///
    /// # Errors
    /// [`ChainError`]; the chain goes on from this entry.
    pub fn follow(&mut self, entry: &AuditEntry) -> Result<(), ChainError> {
        let last = self.last.replace((entry.number, digest_of(entry)));
        match last {
            Some((before, _)) if before.checked_add(1) != Some(entry.number) => {
                Err(ChainError::Gap { before, found: entry.number })
            }
            Some((_, digest)) if digest != entry.previous => Err(ChainError::Changed(entry.number)),
            _ => Ok(()),
        }
    }
}
