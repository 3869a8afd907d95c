//! The newest revisions in memory, shared by all watchers.
//!
//! One bounded ring instead of a queue for each watcher: a watcher that falls out of it reads on from the log, and
//! costs no memory for being slow.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::{Change, Revision, WatchBatch};

/// The most revisions in the ring.
const RING_REVISIONS: usize = 1024;
/// The most bytes of keys and values in the ring; its newest revision stays whatever its size.
const RING_BYTES: usize = 8 * 1024 * 1024;

/// One revision with all its changes.
#[derive(Debug)]
pub(super) struct Revised {
    pub(super) revision: Revision,
    pub(super) changes: Vec<Change>,
}

impl Revised {
    /// What a watch of `prefix` reports of it; `None` if that is nothing.
    pub(super) fn below(&self, prefix: &str) -> Option<WatchBatch> {
        let changes: Vec<Change> =
            self.changes.iter().filter(|change| change.key().starts_with(prefix)).cloned().collect();
        (!changes.is_empty()).then_some(WatchBatch { revision: self.revision, changes })
    }

    fn size(&self) -> usize {
        self.changes.iter().map(change_size).sum()
    }
}

/// The bytes of a change's key and value.
pub(super) fn change_size(change: &Change) -> usize {
    match change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Delete { key } => key.len(),
    }
}

/// What follows a watcher's position.
pub(super) enum Following {
    /// This revision.
    Revised(Arc<Revised>),
    /// Nothing yet.
    Nothing,
    /// Something that only the log still has.
    InLog,
}

/// The ring: consecutive revisions up to the newest.
pub(super) struct Recent {
    newest: Revision,
    ring: VecDeque<Arc<Revised>>,
    bytes: usize,
}

impl Recent {
    /// An empty ring of a store that is at `newest`.
    pub(super) fn new(newest: Revision) -> Self {
        Self { newest, ring: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn newest(&self) -> Revision {
        self.newest
    }

    pub(super) fn push(&mut self, revised: Arc<Revised>) {
        self.newest = revised.revision;
        self.bytes += revised.size();
        self.ring.push_back(revised);
        while self.ring.len() > RING_REVISIONS || (self.bytes > RING_BYTES && self.ring.len() > 1) {
            self.drop_oldest();
        }
    }

    /// Drops what is compacted, so that the ring never reaches further back than the log.
    pub(super) fn forget_until(&mut self, compacted: Revision) {
        while self.ring.front().is_some_and(|oldest| oldest.revision <= compacted) {
            self.drop_oldest();
        }
    }

    pub(super) fn following(&self, position: Revision) -> Following {
        if position >= self.newest {
            return Following::Nothing;
        }
        let before_ring = self.newest - self.ring.len() as Revision;
        let found = position.checked_sub(before_ring).and_then(|index| self.ring.get(usize::try_from(index).ok()?));
        found.map_or(Following::InLog, |revised| Following::Revised(Arc::clone(revised)))
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.ring.pop_front() {
            self.bytes -= oldest.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entry;

    fn revised(revision: Revision, size: usize) -> Arc<Revised> {
        let entry =
            Entry { key: String::new(), value: vec![0; size].into(), created: 1, modified: revision, lease: None };
        Arc::new(Revised { revision, changes: vec![Change::Put(entry)] })
    }

    fn oldest(recent: &Recent) -> Option<Revision> {
        recent.ring.front().map(|revised| revised.revision)
    }

    #[test]
    fn each_position_is_followed_by_the_next_revision() {
        let mut recent = Recent::new(5);
        assert!(matches!(recent.following(5), Following::Nothing));
        assert!(matches!(recent.following(4), Following::InLog));
        for revision in 6..=8 {
            recent.push(revised(revision, 1));
        }
        assert!(matches!(recent.following(4), Following::InLog));
        for position in 5..=7 {
            assert!(matches!(recent.following(position), Following::Revised(next) if next.revision == position + 1));
        }
        assert!(matches!(recent.following(8), Following::Nothing));
        assert!(matches!(recent.following(u64::MAX), Following::Nothing));
    }

    #[test]
    fn the_ring_is_bounded_by_count_and_by_bytes() {
        let mut recent = Recent::new(0);
        for revision in 1..=2000 {
            recent.push(revised(revision, 1));
        }
        assert_eq!(recent.ring.len(), RING_REVISIONS);
        recent.push(revised(2001, RING_BYTES - 10));
        assert_eq!(recent.ring.len(), 11);
        recent.push(revised(2002, RING_BYTES + 1));
        assert_eq!((recent.ring.len(), oldest(&recent)), (1, Some(2002)));
        assert_eq!(recent.bytes, RING_BYTES + 1);
    }

    #[test]
    fn what_is_compacted_is_left_to_the_log() {
        let mut recent = Recent::new(0);
        for revision in 1..=10 {
            recent.push(revised(revision, 1));
        }
        recent.forget_until(4);
        assert!(matches!(recent.following(3), Following::InLog));
        assert!(matches!(recent.following(4), Following::Revised(next) if next.revision == 5));
        recent.forget_until(10);
        assert!(matches!(recent.following(9), Following::InLog));
        assert!(matches!(recent.following(10), Following::Nothing));
    }
}
