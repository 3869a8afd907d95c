//! Clusters to test with, one at a time: two etcd clusters at once are too much for a small machine.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use federation_store::lab::{EtcdCluster, LabOptions, MEMBERS};
use federation_store::{Committed, EtcdStore, Revision, Store, Transaction};
use tokio::sync::{Mutex, MutexGuard};

/// How long a test waits for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A cluster, while no other test has one.
pub(crate) struct Lab {
    pub(crate) cluster: EtcdCluster,
    stores: AtomicU32,
    _turn: MutexGuard<'static, ()>,
}

pub(crate) async fn lab() -> Lab {
    lab_with(LabOptions::default()).await
}

pub(crate) async fn lab_with(options: LabOptions) -> Lab {
    let turn = ONE_AT_A_TIME.lock().await;
    let cluster = EtcdCluster::start(options).await.unwrap();
    Lab { cluster, stores: AtomicU32::new(0), _turn: turn }
}

impl Lab {
    /// A store without keys.
    pub(crate) async fn store(&self) -> EtcdStore {
        let number = self.stores.fetch_add(1, Ordering::Relaxed);
        EtcdStore::open(self.cluster.config(&format!("/test-{number}/"))).await.unwrap()
    }

    /// A store on keys that all of these share.
    pub(crate) async fn shared(&self) -> EtcdStore {
        EtcdStore::open(self.cluster.config("/shared/")).await.unwrap()
    }

    /// The keys of the last store, through another connection.
    pub(crate) async fn store_beside(&self) -> EtcdStore {
        let number = self.stores.load(Ordering::Relaxed) - 1;
        EtcdStore::open(self.cluster.config(&format!("/test-{number}/"))).await.unwrap()
    }

    /// How many watches all members serve.
    pub(crate) async fn watchers(&self) -> usize {
        let mut all = 0;
        for member in 0..MEMBERS {
            all += self.cluster.watchers(member).await.unwrap();
        }
        all
    }
}

pub(crate) async fn put(store: &EtcdStore, key: &str, value: &str) -> Revision {
    match store.commit(Transaction::new().put(key, value.to_owned())).await.unwrap() {
        Committed::Done(revision) => revision,
        Committed::Conflict { key } => panic!("a conflict on {key}"),
    }
}
