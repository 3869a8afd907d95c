//! A program needs rights on its own prefix and on nothing else.

use std::time::Duration;

use federation_store::{EtcdStore, Page, Store, StoreError, Transaction};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::support::{DEADLINE, lab, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_on_the_own_prefix_are_enough_and_others_are_refused() {
    let lab = lab().await;
    // The lab's certificate has the common name `client`.
    for arguments in [
        &["user", "add", "root", "--no-password"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "federator"],
        &["role", "grant-permission", "federator", "--prefix=true", "readwrite", "/isthmus/federator/"],
        &["user", "add", "client", "--no-password"],
        &["user", "grant-role", "client", "federator"],
        &["auth", "enable"],
    ] {
        let done = lab.cluster.etcdctl(arguments).await.unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let store = EtcdStore::open(lab.cluster.config("/isthmus/federator/")).await.unwrap();
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let first = put(&store, "a", "1").await;
    store.commit(Transaction::new().put_leased("b", "2", lease)).await.unwrap().done().unwrap();
    store.keep_alive(lease).await.unwrap();
    let mut watch = store.watch("", first - 1);
    for _ in 0..2 {
        timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    }
    assert_eq!(store.range("", Page::first(9)).await.unwrap().entries.len(), 2);
    store.commit(Transaction::new().delete("a")).await.unwrap().done().unwrap();
    store.revoke(lease).await.unwrap();
    assert_eq!(store.snapshot("").await.unwrap().entries, []);

    let other = timeout(DEADLINE, EtcdStore::open(lab.cluster.config("/isthmus/trust-bundle/"))).await.unwrap();
    assert!(matches!(other, Err(StoreError::Storage(_))), "{:?}", other.err());
}
