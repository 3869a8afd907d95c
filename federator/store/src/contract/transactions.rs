//! Compare-and-swap, atomicity, limits.

use bytes::Bytes;

use super::{changes_until, current, delete, done, put, summary};
use crate::{
    Committed, Entry, MAX_KEY_BYTES, MAX_OPERATIONS, MAX_REQUEST_BYTES, MAX_VALUE_BYTES, Revision, Store, StoreError,
    Transaction,
};

const WRITERS: u64 = 8;
const INCREMENTS: u64 = 20;

/// Transactions apply whole or not at all, one after another, within the limits.
///
/// # Panics
///
/// When one of them does not.
pub async fn check_transactions<S: Store>(make: &impl AsyncFn() -> S) {
    entries_remember_their_revisions(&make().await).await;
    expectations_decide(&make().await).await;
    a_conflict_applies_nothing(&make().await).await;
    changing_nothing_takes_no_revision(&make().await).await;
    limits_are_typed_errors(&make().await).await;
    the_largest_transactions_fit(&make().await).await;
    concurrent_writers_linearize(&make().await).await;
    incarnation_is_one(&make().await).await;
}

async fn entries_remember_their_revisions<S: Store>(store: &S) {
    assert_eq!(store.get("key").await.unwrap(), None);
    let first = put(store, "key", "1").await;
    let entry = |value: &'static str, created, modified| Entry {
        key: "key".into(),
        value: Bytes::from_static(value.as_bytes()),
        created,
        modified,
        lease: None,
    };
    assert_eq!(store.get("key").await.unwrap(), Some(entry("1", first, first)));
    let second = put(store, "key", "2").await;
    assert!(first < second);
    assert_eq!(store.get("key").await.unwrap(), Some(entry("2", first, second)));
    let third = delete(store, "key").await;
    assert!(second < third);
    assert_eq!(store.get("key").await.unwrap(), None);
    let fourth = put(store, "key", "").await;
    assert_eq!(store.get("key").await.unwrap(), Some(entry("", fourth, fourth)), "a new life begins");
}

async fn expectations_decide<S: Store>(store: &S) {
    let conflict = |key: &str| Committed::Conflict { key: key.into() };
    let create = Transaction::new().expecting_absent("a").put("a", "1");
    let created = done(store, create.clone()).await;
    assert_eq!(store.commit(create).await.unwrap(), conflict("a"));
    for wrong in [0, created - 1, created + 1] {
        let swap = Transaction::new().expecting("a", wrong).put("a", "wrong");
        assert_eq!(store.commit(swap).await.unwrap(), conflict("a"), "modified by {created}, not {wrong}");
    }
    let swapped = done(store, Transaction::new().expecting("a", created).put("a", "2")).await;
    let stale = Transaction::new().expecting("a", created).delete("a");
    assert_eq!(store.commit(stale).await.unwrap(), conflict("a"));
    done(store, Transaction::new().expecting("a", swapped).delete("a")).await;
    let gone = Transaction::new().expecting("a", swapped).put("a", "3");
    assert_eq!(store.commit(gone).await.unwrap(), conflict("a"), "a deleted key has no revision");
    done(store, Transaction::new().expecting_absent("a").put("a", "4")).await;
}

async fn a_conflict_applies_nothing<S: Store>(store: &S) {
    let guard = put(store, "guard", "").await;
    let both = Transaction::new().put("a", "1").put("b", "1").delete("guard");
    let refused = both.clone().expecting("guard", guard).expecting("missing", guard).expecting("other", guard);
    let answer = store.commit(refused).await.unwrap();
    assert_eq!(answer, Committed::Conflict { key: "missing".into() }, "the first expectation that fails is named");
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(store.get("guard").await.unwrap().unwrap().modified, guard);
    let revision = done(store, both.expecting("guard", guard).expecting_absent("missing")).await;
    for key in ["a", "b"] {
        assert_eq!(store.get(key).await.unwrap().unwrap().modified, revision, "one revision for all");
    }
    assert_eq!(store.get("guard").await.unwrap(), None);
}

async fn changing_nothing_takes_no_revision<S: Store>(store: &S) {
    let first = put(store, "a", "1").await;
    assert_eq!(done(store, Transaction::new().delete("absent")).await, first);
    assert_eq!(done(store, Transaction::new().expecting("a", first)).await, first);
    assert_eq!(done(store, Transaction::new()).await, first);
    let second = put(store, "a", "1").await;
    assert!(first < second, "a put of the same value is a change");
    let batches = changes_until(&mut store.watch("", first - 1), second).await;
    assert_eq!(batches.iter().map(|batch| batch.revision).collect::<Vec<_>>(), [first, second]);
}

async fn limits_are_typed_errors<S: Store>(store: &S) {
    let before = current(store).await;
    let puts = (0..=MAX_OPERATIONS).fold(Transaction::new(), |puts, n| puts.put(format!("k{n}"), ""));
    let expectations = (0..=MAX_OPERATIONS).fold(Transaction::new(), |t, n| t.expecting_absent(format!("k{n}")));
    for transaction in [puts, expectations] {
        let refused = store.commit(transaction).await;
        assert!(matches!(refused, Err(StoreError::TooManyOperations { count: 129, limit: 128 })), "{refused:?}");
    }
    let large = store.commit(Transaction::new().put("k", vec![0; MAX_VALUE_BYTES + 1])).await;
    assert!(matches!(large, Err(StoreError::ValueTooLarge { limit: MAX_VALUE_BYTES, .. })), "{large:?}");
    let half = vec![0; MAX_REQUEST_BYTES / 2];
    let together = store.commit(Transaction::new().put("k", half.clone()).put("l", half)).await;
    assert!(matches!(together, Err(StoreError::RequestTooLarge { limit: MAX_REQUEST_BYTES, .. })), "{together:?}");
    for key in [String::new(), "k".repeat(MAX_KEY_BYTES + 1)] {
        for transaction in [
            Transaction::new().put(key.clone(), ""),
            Transaction::new().delete(key.clone()),
            Transaction::new().expecting_absent(key.clone()),
        ] {
            let refused = store.commit(transaction).await;
            assert!(matches!(refused, Err(StoreError::InvalidKey { limit: MAX_KEY_BYTES, .. })), "{refused:?}");
        }
    }
    let twice = store.commit(Transaction::new().put("k", "").delete("k")).await;
    assert!(matches!(twice, Err(StoreError::DuplicateKey { .. })), "{twice:?}");
    assert_eq!(current(store).await, before, "nothing was applied");
}

async fn the_largest_transactions_fit<S: Store>(store: &S) {
    let many = (0..MAX_OPERATIONS).fold(Transaction::new(), |transaction, n| {
        let key = format!("many/{n:03}");
        transaction.expecting_absent(key.clone()).put(key, n.to_string())
    });
    let revision = done(store, many).await;
    let batch = changes_until(&mut store.watch("many/", revision - 1), revision).await.remove(0);
    assert_eq!(summary(&batch), (0..MAX_OPERATIONS).map(|n| format!("+many/{n:03}={n}")).collect::<Vec<_>>());
    let value = Bytes::from(vec![7; MAX_VALUE_BYTES]);
    let key = "k".repeat(MAX_KEY_BYTES);
    done(store, Transaction::new().put(key.clone(), value.clone())).await;
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, value);
}

/// Counts up from many tasks by compare-and-swap: no increment may be lost, and no revision given twice.
async fn concurrent_writers_linearize<S: Store>(store: &S) {
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut revisions = Vec::new();
                for _ in 0..INCREMENTS {
                    revisions.push(increment(&store, "counter").await);
                }
                revisions
            })
        })
        .collect();
    let mut revisions: Vec<Revision> = Vec::new();
    for writer in writers {
        let mine = writer.await.unwrap();
        assert!(mine.is_sorted_by(|earlier, later| earlier < later), "a writer's revisions grow");
        revisions.extend(mine);
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len() as u64, WRITERS * INCREMENTS, "each increment has its own revision");
    let counter = store.get("counter").await.unwrap().unwrap();
    assert_eq!(counter.value, (WRITERS * INCREMENTS).to_string());
    assert_eq!(Some(&counter.modified), revisions.last());
    let seen = changes_until(&mut store.watch("counter", revisions[0] - 1), counter.modified).await;
    for (batch, number) in seen.iter().zip(1..) {
        assert_eq!(summary(batch), [format!("+counter={number}")], "the history counts without a gap");
    }
    assert_eq!(seen.iter().map(|batch| batch.revision).collect::<Vec<_>>(), revisions);
}

async fn increment<S: Store>(store: &S, key: &str) -> Revision {
    loop {
        let entry = store.get(key).await.unwrap();
        let (count, modified) = entry.map_or((0, 0), |entry| {
            (String::from_utf8_lossy(&entry.value).parse::<u64>().expect("the counter is a number"), entry.modified)
        });
        let next = Transaction::new().expecting(key, modified).put(key, (count + 1).to_string());
        if let Committed::Done(revision) = store.commit(next).await.unwrap() {
            return revision;
        }
    }
}

async fn incarnation_is_one<S: Store>(store: &S) {
    let incarnation = store.incarnation().await.unwrap();
    put(store, "a", "1").await;
    assert_eq!(store.clone().incarnation().await.unwrap(), incarnation);
}
