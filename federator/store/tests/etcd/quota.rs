//! An etcd whose quota is used up: what goes on, what is said, and how an operator makes room.

use std::time::Duration;

use federation_store::lab::LabOptions;
use federation_store::{EtcdStore, Page, Revision, Store, StoreError, Transaction};
use futures_util::StreamExt as _;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::time::timeout;

use crate::support::{DEADLINE, lab_with, put};

/// The least that etcd takes for a quota in earnest.
const QUOTA: u64 = 16 * 1024 * 1024;

/// Puts until the store refuses: what it took, and then the key and the error.
async fn filled(store: &EtcdStore) -> (Vec<(String, Revision)>, (String, StoreError)) {
    let mut acknowledged = Vec::new();
    loop {
        let key = format!("k/{}", acknowledged.len());
        match store.commit(Transaction::new().put(&key, vec![1; 256 * 1024])).await {
            Ok(committed) => acknowledged.push((key, committed.done().unwrap())),
            Err(error) => return (acknowledged, (key, error)),
        }
        assert!(acknowledged.len() < 1000, "the quota is never met");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_quota_is_told_as_such_and_reads_deletes_and_leases_go_on() {
    let lab = lab_with(LabOptions { quota_bytes: Some(QUOTA) }).await;
    let store = lab.store().await;
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let (acknowledged, refused) = filled(&store).await;
    assert!(matches!(refused.1, StoreError::NoSpace(_)), "{:?}", refused.1);
    assert!(!refused.1.is_retryable());
    assert_eq!(store.get(&refused.0).await.unwrap(), None, "refused means not applied");
    for (key, revision) in &acknowledged {
        assert_eq!(store.get(key).await.unwrap().map(|entry| entry.modified), Some(*revision), "{key}");
    }
    store.keep_alive(lease).await.unwrap();
    let deleted = acknowledged.iter().fold(Transaction::new(), |deletes, (key, _)| deletes.delete(key));
    assert!(store.commit(deleted).await.unwrap().done().is_some());
    assert_eq!(store.range("k/", Page::first(1)).await.unwrap().entries, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_is_made_by_compacting_defragmenting_and_disarming_while_watches_go_on() {
    let lab = lab_with(LabOptions { quota_bytes: Some(QUOTA) }).await;
    let store = lab.store().await;
    let mut registry = Registry::with_prefix("isthmus_federator");
    store.register_metrics(&mut registry);
    // The same key again and again, as records are said anew: only the history is large.
    let mut watch = store.watch("kept", 0);
    let first = put(&store, "kept", "1").await;
    assert_eq!(timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap().revision, first);
    let refused = loop {
        if let Err(error) = store.commit(Transaction::new().put("often", vec![2; 256 * 1024])).await {
            break error;
        }
    };
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused:?}");
    let full = store.commit(Transaction::new().put("kept", "2")).await.unwrap_err();
    assert!(matches!(full, StoreError::NoSpace(_)), "{full:?}");
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    // What alerts, and the README, look at.
    let failed =
        |line: &str| line.starts_with("isthmus_federator_store_failures_total{") && line.contains("\"no_space\"");
    assert!(text.lines().any(failed), "{text}");
    assert!(text.contains("\nisthmus_federator_store_watch_heard_timestamp_seconds "), "{text}");
    assert_eq!(store.get("kept").await.unwrap().unwrap().value, "1");

    let revision = store.snapshot("").await.unwrap().revision.to_string();
    for arguments in [&["compact", revision.as_str()][..], &["defrag"], &["alarm", "disarm"]] {
        let ran = lab.cluster.etcdctl(arguments).await.unwrap();
        assert!(ran.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    let second = put(&store, "kept", "2").await;
    let batch = timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(batch.revision, second, "the watch from before goes on");
}
