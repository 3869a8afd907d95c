//! The store that a program's configuration names.

use std::path::PathBuf;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde::Deserialize;

use crate::{
    Committed, EmbeddedStore, Entry, EtcdConfig, EtcdStore, Incarnation, LeaseId, OpenError, Page, RangePage, Revision,
    Store, StoreError, Transaction, WatchStream,
};

/// Which store a program keeps its state in: `embedded: {file}` or `etcd: {endpoints, …}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum StoreConfig {
    /// A file of this process alone.
    Embedded(EmbeddedConfig),
    /// An etcd cluster, which replicas share.
    Etcd(EtcdConfig),
}

/// The embedded store's place.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EmbeddedConfig {
    /// The file; it is made when missing.
    pub file: PathBuf,
}

/// Why the configured store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// The embedded store's file.
    #[error("store.embedded")]
    Embedded(#[from] OpenError),
    /// etcd.
    #[error("store.etcd")]
    Etcd(#[from] StoreError),
}

impl StoreConfig {
    /// Everything that is wrong with it, each as `store.….field: what is wrong`.
    pub fn problems(&self) -> Vec<String> {
        match self {
            StoreConfig::Embedded(_) => Vec::new(),
            StoreConfig::Etcd(etcd) => {
                etcd.problems().into_iter().map(|problem| format!("store.etcd.{problem}")).collect()
            }
        }
    }

    /// Opens it. Waits for as long as no etcd member answers.
    ///
    /// # Errors
    ///
    /// See [`OpenStoreError`].
    pub async fn open(self) -> Result<AnyStore, OpenStoreError> {
        Ok(match self {
            StoreConfig::Embedded(embedded) => AnyStore::Embedded(EmbeddedStore::open(embedded.file).await?),
            StoreConfig::Etcd(etcd) => AnyStore::Etcd(EtcdStore::open(etcd).await?),
        })
    }
}

/// Either backend.
#[derive(Clone)]
pub enum AnyStore {
    /// The embedded one.
    Embedded(EmbeddedStore),
    /// etcd.
    Etcd(EtcdStore),
}

impl AnyStore {
    /// Registers what there is to say of the backend's health.
    pub fn register_metrics(&self, registry: &mut Registry) {
        match self {
            AnyStore::Embedded(_) => {}
            AnyStore::Etcd(store) => store.register_metrics(registry),
        }
    }

    /// Lets go of it: the embedded file can be opened again when this returns.
    pub async fn close(&self) {
        match self {
            AnyStore::Embedded(store) => store.close().await,
            AnyStore::Etcd(_) => {}
        }
    }
}

/// Calls the same method of whichever backend it is.
macro_rules! either {
    ($store:expr, $backend:ident => $call:expr) => {
        match $store {
            AnyStore::Embedded($backend) => $call,
            AnyStore::Etcd($backend) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        either!(self, store => store.get(key).await)
    }

    async fn range(&self, prefix: &str, page: Page) -> Result<RangePage, StoreError> {
        either!(self, store => store.range(prefix, page).await)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        either!(self, store => store.commit(transaction).await)
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        either!(self, store => store.watch(prefix, after))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        either!(self, store => store.grant_lease(ttl).await)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        either!(self, store => store.keep_alive(lease).await)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        either!(self, store => store.revoke(lease).await)
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        either!(self, store => store.compact(at).await)
    }

    async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        either!(self, store => store.incarnation().await)
    }
}
