//! Watches: order, resumption, compaction.

use super::{changes_until, current, delete, done, next_changes, next_item, put, summary};
use crate::{Change, Store, Transaction, WatchBatch, WatchError, WatchStream};

const WRITERS: usize = 4;
const WRITES: usize = 50;

/// Watches report every revision once, in order and whole, or say that they cannot.
///
/// # Panics
///
/// When one does not.
pub async fn check_watches<S: Store>(make: &impl AsyncFn() -> S) {
    history_is_followed_by_news(&make().await).await;
    only_the_prefix_is_reported(&make().await).await;
    a_watch_can_resume_after_any_revision(&make().await).await;
    all_watchers_see_the_same_under_load(&make().await).await;
    a_watch_of_the_future_waits_for_it(&make().await).await;
    what_is_compacted_is_reported_as_such(&make().await).await;
    watches_do_not_disturb_each_other(&make().await).await;
}

async fn history_is_followed_by_news<S: Store>(store: &S) {
    let before = current(store).await;
    let first = put(store, "a", "1").await;
    let second = done(store, Transaction::new().put("a", "2").put("b", "2")).await;
    let mut watch = store.watch("", before);
    let third = delete(store, "a").await;
    let fourth = put(store, "a", "4").await;
    let batches = changes_until(&mut watch, fourth).await;
    let seen: Vec<_> = batches.iter().map(|batch| (batch.revision, summary(batch))).collect();
    let expected = [(first, vec!["+a=1"]), (second, vec!["+a=2", "+b=2"]), (third, vec!["-a"]), (fourth, vec!["+a=4"])];
    assert_eq!(seen, expected.map(|(revision, keys)| (revision, keys.into_iter().map(String::from).collect())));
    let created: Vec<_> = batches.iter().flat_map(|batch| &batch.changes).filter_map(created_and_modified).collect();
    assert_eq!(created, [("a", first, first), ("a", first, second), ("b", second, second), ("a", fourth, fourth)]);
}

fn created_and_modified(change: &Change) -> Option<(&str, u64, u64)> {
    match change {
        Change::Put(entry) => Some((&entry.key, entry.created, entry.modified)),
        Change::Delete { .. } => None,
    }
}

async fn only_the_prefix_is_reported<S: Store>(store: &S) {
    let mut watch = store.watch("in/", current(store).await);
    for key in ["in", "in-", "in0", "out/a", "iN/a"] {
        put(store, key, "").await;
    }
    let mixed = done(store, Transaction::new().put("in/a", "").put("out/a", "").delete("in0")).await;
    let batch = next_changes(&mut watch).await;
    assert_eq!((batch.revision, summary(&batch)), (mixed, vec!["+in/a=".to_owned()]));
    delete(store, "out/a").await;
    let last = delete(store, "in/a").await;
    let batch = next_changes(&mut watch).await;
    assert_eq!((batch.revision, summary(&batch)), (last, vec!["-in/a".to_owned()]));
}

async fn a_watch_can_resume_after_any_revision<S: Store>(store: &S) {
    let before = current(store).await;
    let mut last = before;
    for n in 0..20 {
        last = match n % 3 {
            0 => put(store, &format!("r/{}", n % 4), &n.to_string()).await,
            1 => done(store, Transaction::new().put("r/x", n.to_string()).put(format!("r/y{n}"), "")).await,
            _ => delete(store, "r/x").await,
        };
        put(store, "elsewhere", "").await;
    }
    let whole = changes_until(&mut store.watch("r/", before), last).await;
    assert_eq!(whole.len(), 20);
    for after in before..last {
        let resumed = changes_until(&mut store.watch("r/", after), last).await;
        let rest: Vec<WatchBatch> = whole.iter().filter(|batch| batch.revision > after).cloned().collect();
        assert_eq!(resumed, rest, "after {after}");
    }
}

async fn all_watchers_see_the_same_under_load<S: Store>(store: &S) {
    let before = current(store).await;
    let watchers: Vec<_> = (0..3).map(|_| tokio::spawn(watch_until_end(store.watch("load/", before)))).collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut written = Vec::new();
                for n in 0..WRITES {
                    let key = format!("load/{writer}");
                    written.push((put(&store, &key, &n.to_string()).await, format!("+{key}={n}")));
                }
                written
            })
        })
        .collect();
    let mut written = Vec::new();
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    written.sort_unstable();
    put(store, "load/end", "").await;
    for watcher in watchers {
        let seen: Vec<_> = watcher.await.unwrap();
        assert_eq!(seen, written, "every revision once and in order");
    }
}

async fn watch_until_end(mut watch: WatchStream) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    loop {
        let batch = next_changes(&mut watch).await;
        let [change] = &summary(&batch)[..] else { panic!("revisions with one change each are not mixed: {batch:?}") };
        if change == "+load/end=" {
            return seen;
        }
        seen.push((batch.revision, change.clone()));
    }
}

async fn a_watch_of_the_future_waits_for_it<S: Store>(store: &S) {
    let now = current(store).await;
    let mut watch = store.watch("", now + 2);
    let mut revisions = Vec::new();
    for n in 0..4 {
        revisions.push(put(store, "a", &n.to_string()).await);
    }
    let expected: Vec<_> = revisions.into_iter().filter(|revision| *revision > now + 2).collect();
    assert!(!expected.is_empty());
    for revision in expected {
        assert_eq!(next_changes(&mut watch).await.revision, revision);
    }
}

async fn what_is_compacted_is_reported_as_such<S: Store>(store: &S) {
    let mut revisions = Vec::new();
    for n in 0..10 {
        revisions.push(put(store, &format!("c/{}", n % 3), &n.to_string()).await);
    }
    let at = revisions[6];
    store.compact(at).await.unwrap();
    store.compact(at).await.unwrap();
    for after in [revisions[0] - 1, revisions[0], revisions[4]] {
        let mut watch = store.watch("c/", after);
        let oldest = match next_item(&mut watch).await {
            Err(WatchError::Compacted { oldest }) => oldest,
            other => panic!("after {after}: {other:?}"),
        };
        assert!(oldest == at, "the oldest revision to watch after is {at}, not {oldest}");
        let ended = tokio::time::timeout(super::DEADLINE, futures_util::StreamExt::next(&mut watch)).await;
        assert!(ended.expect("the end comes within the deadline").is_none(), "an error ends the watch");
    }
    let last = revisions[9];
    let seen = changes_until(&mut store.watch("c/", at), last).await;
    assert_eq!(seen.iter().map(|batch| batch.revision).collect::<Vec<_>>(), revisions[7..]);
    assert_eq!(store.snapshot("c/").await.unwrap().entries.len(), 3, "compaction forgets no state");
}

async fn watches_do_not_disturb_each_other<S: Store>(store: &S) {
    let before = current(store).await;
    let idle = store.watch("w/", before);
    let dropped = store.watch("w/", before);
    let mut reader = store.watch("w/", before);
    let mut last = 0;
    for n in 0..30 {
        last = put(store, "w/a", &n.to_string()).await;
        assert_eq!(next_changes(&mut reader).await.revision, last);
    }
    drop(dropped);
    let mut late = idle;
    assert_eq!(changes_until(&mut late, last).await.len(), 30, "a watch that was not polled has missed nothing");
}
