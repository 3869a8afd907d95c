//! A copy that follows a prefix is complete, also after what it had not seen was compacted.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use federation_store::{
    Change, EmbeddedStore, Entry, FollowError, Followed, Store, StoreError, Transaction, WatchError, follow,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(30);

async fn put(store: &EmbeddedStore, key: &str, value: &str) -> u64 {
    store.commit(Transaction::new().put(key, value.to_owned())).await.unwrap().done().unwrap()
}

/// Applies what was followed to a copy; says whether it was a snapshot.
fn apply(copy: &mut BTreeMap<String, Entry>, followed: Followed) -> bool {
    match followed {
        Followed::Snapshot(snapshot) => {
            *copy = snapshot.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
            true
        }
        Followed::Batch(batch) => {
            for change in batch.changes {
                match change {
                    Change::Put(entry) => copy.insert(entry.key.clone(), entry),
                    Change::Delete { key } => copy.remove(&key),
                };
            }
            false
        }
    }
}

#[tokio::test]
async fn a_compacted_copy_starts_over_from_a_snapshot_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path().join("store.redb")).await.unwrap();
    let gone = put(&store, "k/gone", "").await;
    put(&store, "k/kept", "1").await;
    put(&store, "other", "").await;
    let deleted = store.commit(Transaction::new().delete("k/gone")).await.unwrap().done().unwrap();
    store.compact(deleted).await.unwrap();

    let (followed, mut copied) = mpsc::channel(64);
    let following = tokio::spawn({
        let store = store.clone();
        async move { follow(&store, "k/", gone, |change| followed.try_send(change).unwrap()).await }
    });
    let mut copy = BTreeMap::from([("k/gone".to_owned(), store_entry(gone))]);
    assert!(apply(&mut copy, timeout(DEADLINE, copied.recv()).await.unwrap().unwrap()), "a snapshot comes first");
    put(&store, "k/new", "2").await;
    assert!(!apply(&mut copy, timeout(DEADLINE, copied.recv()).await.unwrap().unwrap()), "then changes");
    let expected = store.snapshot("k/").await.unwrap().entries;
    assert_eq!(copy.into_values().collect::<Vec<_>>(), expected);

    store.close().await;
    let end = timeout(DEADLINE, following).await.unwrap().unwrap();
    let closed = matches!(end, Err(FollowError::Watch(WatchError::Closed) | FollowError::Store(StoreError::Closed)));
    assert!(closed, "{end:?}");
}

fn store_entry(revision: u64) -> Entry {
    Entry { key: "k/gone".into(), value: "".into(), created: revision, modified: revision, lease: None }
}
