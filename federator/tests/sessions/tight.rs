//! A store that can be told to have no space left, as etcd after its quota is used up: puts and new leases are refused, the
//! rest goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use federation_store::{
    Committed, EmbeddedStore, Entry, Incarnation, LeaseId, Page, RangePage, Revision, Store, StoreError, Transaction,
    WatchStream,
};

/// The embedded store with a lid.
#[derive(Clone)]
pub(crate) struct Tight {
    inner: EmbeddedStore,
    full: Arc<AtomicBool>,
}

impl Tight {
    pub(crate) fn new(inner: EmbeddedStore) -> Self {
        Self { inner, full: Arc::default() }
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }
}

impl Store for Tight {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn range(&self, prefix: &str, page: Page) -> Result<RangePage, StoreError> {
        self.inner.range(prefix, page).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::NoSpace("etcdserver: mvcc: database space exceeded".into()));
        }
        self.inner.commit(transaction).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.inner.watch(prefix, after)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::NoSpace("etcdserver: mvcc: database space exceeded".into()));
        }
        self.inner.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        self.inner.compact(at).await
    }

    async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        self.inner.incarnation().await
    }
}
