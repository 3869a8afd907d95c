//! The index, shared by all sessions, and fed by one watch of the store.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use federation_store::{
    Change, Entry, FollowError, Followed, Revision, Snapshot, Store, StoreError, WatchBatch, follow, layout,
};
use tokio::sync::watch;
use tracing::error;

use crate::index::Index;
use crate::liveness::Liveness;

/// What waking one session costs, about. Rounds are spaced so that waking takes at most a fifth of a core, however many
/// sessions there are: a thousand are woken every 50 ms, and told all that changed since.
const WAKE_COST: Duration = Duration::from_micros(10);
/// The share of a core, as a divisor.
const WAKE_SHARE: u32 = 5;
/// No round is later than this after the one before.
const LONGEST_ROUND: Duration = Duration::from_secs(1);
/// How often it is checked that the store is still the one that was read.
const CHECK_INCARNATION: Duration = Duration::from_secs(5);

/// Why the copy cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store cannot go on.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The store was restored from a backup, or is another one: nothing that was read of it counts any more.
    #[error("the store has another history now: {0} instead of {1}")]
    Replaced(String, String),
}

/// The store's contents as this replica has seen them. Locks are held for a look only, never over a wait.
#[derive(Debug, Clone)]
pub struct Cache {
    index: Arc<RwLock<Index>>,
    liveness: Liveness,
    incarnation: Arc<str>,
    revision: Arc<watch::Sender<Revision>>,
    round: Arc<watch::Sender<Revision>>,
}

impl Cache {
    /// Reads everything; `liveness` takes the leased keys.
    ///
    /// # Errors
    /// The store's.
    pub async fn load<S: Store>(store: &S, liveness: Liveness) -> Result<Self, StoreError> {
        let cache = Self {
            index: Arc::default(),
            liveness,
            incarnation: store.incarnation().await?.to_string().into(),
            revision: Arc::new(watch::channel(0).0),
            round: Arc::new(watch::channel(0).0),
        };
        cache.replace(store.snapshot("").await?);
        cache.round.send_replace(cache.revision());
        Ok(cache)
    }

    fn replace(&self, mut snapshot: Snapshot) {
        let mut index = Index::default();
        snapshot.entries.sort_by_key(|entry| entry.modified);
        let (alive, records): (Vec<_>, Vec<_>) =
            snapshot.entries.into_iter().partition(|entry| entry.key.starts_with(layout::ALIVE));
        Packed::of(records).put_into(&mut index);
        index.reach(snapshot.revision);
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        self.liveness.replace(alive.iter().map(|entry| (entry.key.as_str(), &entry.value)));
        self.revision.send_replace(snapshot.revision);
    }

    /// Keeps the copy equal to the store.
    ///
    /// # Errors
    /// [`CacheError`], when it cannot go on.
    pub async fn follow<S: Store>(&self, store: S) -> Result<(), CacheError> {
        let followed = follow(&store, "", self.revision(), |followed| match followed {
            Followed::Snapshot(snapshot) => self.replace(snapshot),
            Followed::Batch(batch) => self.advance(&batch),
        });
        tokio::select! {
            followed = followed => Ok(followed?),
            replaced = self.replaced(&store) => Err(replaced),
            () = self.rounds() => Ok(()),
        }
    }

    async fn replaced<S: Store>(&self, store: &S) -> CacheError {
        loop {
            tokio::time::sleep(CHECK_INCARNATION).await;
            // While the store is away nothing is known of it.
            if let Ok(found) = store.incarnation().await.map(|incarnation| incarnation.to_string())
                && *found != *self.incarnation
            {
                return CacheError::Replaced(found, self.incarnation.to_string());
            }
        }
    }

    /// Wakes the sessions, all at once, in rounds.
    async fn rounds(&self) {
        let mut changes = self.changes();
        while changes.changed().await.is_ok() {
            self.round.send_replace(*changes.borrow_and_update());
            let sessions = u32::try_from(self.round.receiver_count()).unwrap_or(u32::MAX);
            tokio::time::sleep((WAKE_COST * WAKE_SHARE).saturating_mul(sessions).min(LONGEST_ROUND)).await;
        }
    }

    fn advance(&self, batch: &WatchBatch) {
        {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            for change in &batch.changes {
                match change {
                    Change::Put(entry) => put(&mut index, &entry.key, entry.modified, &entry.value),
                    Change::Delete { key } => index.remove(key),
                }
            }
            index.reach(batch.revision);
        }
        for change in batch.changes.iter().filter(|change| change.key().starts_with(layout::ALIVE)) {
            match change {
                Change::Put(entry) => self.liveness.put(&entry.key, &entry.value),
                Change::Delete { key } => self.liveness.lost(key),
            }
        }
        self.revision.send_replace(batch.revision);
    }

    /// Looks into the index.
    pub fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who is connected.
    #[must_use]
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// The revision the cache has reached.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Changes with every revision.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Changes when sessions are to look again: after every revision while they are few, in rounds when they are many.
    #[must_use]
    pub fn round(&self) -> watch::Receiver<Revision> {
        self.round.subscribe()
    }

    /// Which history the revisions belong to.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }
}

/// Entries in one piece. They come in many small pieces between which records would lie scattered, the room between them
/// lost for as long as the records are there. These are made once all those pieces are free.
struct Packed {
    bytes: Vec<u8>,
    /// Revision, and the lengths of the key and of the value, one behind the other.
    entries: Vec<(Revision, usize, usize)>,
}

impl Packed {
    fn of(entries: Vec<Entry>) -> Self {
        let bytes = entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
        let mut packed = Self { bytes: Vec::with_capacity(bytes), entries: Vec::with_capacity(entries.len()) };
        for entry in entries {
            packed.bytes.extend_from_slice(entry.key.as_bytes());
            packed.bytes.extend_from_slice(&entry.value);
            packed.entries.push((entry.modified, entry.key.len(), entry.value.len()));
        }
        packed
    }

    fn put_into(&self, index: &mut Index) {
        let mut rest = self.bytes.as_slice();
        for (revision, key, value) in &self.entries {
            let (entry, behind) = rest.split_at(key + value);
            let (key, value) = entry.split_at(*key);
            // The key was text before it was packed.
            put(index, std::str::from_utf8(key).unwrap_or_default(), *revision, value);
            rest = behind;
        }
    }
}

fn put(index: &mut Index, key: &str, revision: Revision, value: &[u8]) {
    if let Err(error) = index.put(key, revision, value) {
        error!(key, %error, "stored value does not decode: keeping the last good one");
    }
}
