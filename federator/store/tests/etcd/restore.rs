//! Backup and restore: what is restored is another history, and nobody takes it for the one before.

use std::time::Duration;

use federation_store::{EtcdStore, Store, StoreError, WatchError};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::support::{DEADLINE, lab, put};

const PREFIX: &str = "/restored/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_begins_a_new_incarnation_and_an_open_store_ends() {
    let mut lab = lab().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("snapshot.db");
    let store = EtcdStore::open(lab.cluster.config(PREFIX)).await.unwrap();
    put(&store, "kept", "1").await;
    lab.cluster.save(&file).await.unwrap();
    let mut last = 0;
    for n in 0..10 {
        last = put(&store, "lost", &n.to_string()).await;
    }
    let before = store.incarnation().await.unwrap();
    let mut watch = store.watch("", last);
    // Opens it.
    assert!(timeout(Duration::from_millis(500), watch.next()).await.is_err(), "nothing happened since");

    lab.cluster.restore(&file, true).await.unwrap();
    let end = timeout(DEADLINE, watch.next()).await.unwrap();
    assert!(matches!(end, Some(Err(WatchError::Storage(_)))), "{end:?}");
    let read = store.get("kept").await;
    assert!(matches!(read, Err(StoreError::Storage(_))), "{read:?}");

    let again = EtcdStore::open(lab.cluster.config(PREFIX)).await.unwrap();
    assert_ne!(again.incarnation().await.unwrap(), before);
    assert_eq!(again.get("kept").await.unwrap().unwrap().value, "1");
    assert_eq!(again.get("lost").await.unwrap(), None);
    put(&again, "new", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_store_notices_a_restore_that_kept_the_token() {
    let mut lab = lab().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("snapshot.db");
    let store = EtcdStore::open(lab.cluster.config(PREFIX)).await.unwrap();
    lab.cluster.save(&file).await.unwrap();
    let last = put(&store, "lost", "1").await;
    let mut watch = store.watch("", last);
    assert!(timeout(Duration::from_millis(500), watch.next()).await.is_err(), "nothing happened since");
    lab.cluster.restore(&file, false).await.unwrap();
    let end = timeout(DEADLINE, watch.next()).await.unwrap();
    assert!(matches!(end, Some(Err(WatchError::Storage(_)))), "{end:?}");
}
