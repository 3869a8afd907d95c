//! Where the store's keys lie in etcd.
//!
//! | key in etcd | what |
//! | --- | --- |
//! | `<prefix>keys/<key>` | the entries |
//! | `<prefix>incarnation` | a number drawn when the store was first opened |
//! | `<prefix>commits/<number>` | who committed last through this slot (see [`super::commit`]) |

use bytes::Bytes;
use etcd_client::KeyValue;

use crate::{Entry, LeaseId, Revision};

/// The keys below one configured prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// `<prefix>keys/`.
    entries: String,
    pub(super) incarnation: String,
    commits: String,
}

impl Keys {
    pub(super) fn below(prefix: &str) -> Self {
        Self {
            entries: format!("{prefix}keys/"),
            incarnation: format!("{prefix}incarnation"),
            commits: format!("{prefix}commits/"),
        }
    }

    /// The etcd key of a key, or the etcd prefix of a prefix.
    pub(super) fn of(&self, key: &str) -> String {
        format!("{}{key}", self.entries)
    }

    pub(super) fn commit_slot(&self, number: u16) -> String {
        format!("{}{number}", self.commits)
    }

    /// The first key behind all that start with `prefix`.
    pub(super) fn end_of(&self, prefix: &str) -> Vec<u8> {
        let mut end = self.of(prefix).into_bytes();
        // The last byte of UTF-8 text is never 0xff.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    /// The key that an etcd key stands for; `None` for what another program wrote there.
    pub(super) fn key(&self, etcd_key: &[u8]) -> Option<String> {
        let key = etcd_key.strip_prefix(self.entries.as_bytes())?;
        str::from_utf8(key).ok().map(str::to_owned)
    }

    /// The entry that a key-value pair of etcd stands for.
    pub(super) fn entry(&self, pair: KeyValue) -> Option<Entry> {
        let pair = pair.0;
        Some(Entry {
            key: self.key(&pair.key)?,
            value: Bytes::from(pair.value),
            created: revision(pair.create_revision),
            modified: revision(pair.mod_revision),
            lease: (pair.lease != 0).then(|| LeaseId::new(pair.lease.cast_unsigned())),
        })
    }
}

/// A revision as etcd writes it; it counts up from 1.
pub(super) fn revision(number: i64) -> Revision {
    number.cast_unsigned()
}

/// A revision for etcd; one beyond its range is one that will not come.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_text() {
        let keys = Keys::below("/isthmus/federator/");
        for (prefix, inside, outside) in [("a/", "a/\u{10ffff}", "a0"), ("", "\u{10ffff}", ""), ("é", "éz", "ê")] {
            let end = keys.end_of(prefix);
            assert!(keys.of(inside).into_bytes() < end, "{prefix:?}");
            if !outside.is_empty() {
                assert!(keys.of(outside).into_bytes() >= end, "{prefix:?}");
            }
        }
        assert_eq!(keys.key(keys.of("a/b").as_bytes()), Some("a/b".to_owned()));
        assert_eq!(keys.key(keys.incarnation.as_bytes()), None);
    }
}
