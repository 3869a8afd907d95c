//! What the writer, the readers and the watchers of one open file share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use redb::Database;
use tokio::sync::Semaphore;

use super::recent::Recent;
use crate::{Source, StoreError};

/// The most reads of the file at the same time; further ones wait.
pub(super) const CONCURRENT_READS: u32 = 32;

/// Why the writer stopped, for everybody who asks afterwards.
type Failure = Arc<dyn std::error::Error + Send + Sync>;

pub(super) struct Shared {
    /// Gone once the store is closed.
    database: Mutex<Option<Arc<Database>>>,
    /// Held for a few instructions only, never over an await.
    recent: Mutex<Recent>,
    failure: OnceLock<Failure>,
    reads: Arc<Semaphore>,
    pub(super) counters: Counters,
}

/// See [`Activity`](super::Activity).
#[derive(Default)]
pub(super) struct Counters {
    pub(super) answered: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) compacted: AtomicU64,
    pub(super) leases: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl Shared {
    pub(super) fn new(database: Arc<Database>, recent: Recent) -> Self {
        Self {
            database: Mutex::new(Some(database)),
            recent: Mutex::new(recent),
            failure: OnceLock::new(),
            reads: Arc::new(Semaphore::new(CONCURRENT_READS as usize)),
            counters: Counters::default(),
        }
    }

    pub(super) fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a read of the file where blocking is allowed.
    pub(super) async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.reads).acquire_owned().await else { return Err(self.stopped()) };
        let Some(database) = self.lock_database().clone() else { return Err(self.stopped()) };
        let reading = tokio::task::spawn_blocking(move || {
            let result = read(&database);
            // The file is let go before the permit: whoever holds every permit knows that no reader holds the file.
            drop(database);
            drop(permit);
            result
        });
        match reading.await {
            Ok(result) => result.map_err(|error| StoreError::Storage(error.into())),
            Err(error) => Err(StoreError::Storage(error.into())),
        }
    }

    /// Remembers why the writer stops.
    pub(super) fn fail(&self, failure: Source) {
        let _ = self.failure.set(Arc::from(failure));
    }

    /// What to say when the writer is gone.
    pub(super) fn stopped(&self) -> StoreError {
        match self.failure.get() {
            Some(failure) => StoreError::Storage(Box::new(Arc::clone(failure))),
            None => StoreError::Closed,
        }
    }

    /// Lets go of the file; reads that run keep it until they end.
    pub(super) fn release_database(&self) {
        self.lock_database().take();
    }

    /// Waits until no read holds the file, and refuses later ones.
    pub(super) async fn end_reads(&self) {
        if let Ok(permits) = self.reads.acquire_many(CONCURRENT_READS).await {
            self.reads.close();
            drop(permits);
        }
    }

    fn lock_database(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
