//! Prefixes, paging, reading the past.

use super::{current, delete, is_compacted, put};
use crate::{Entry, Page, Revision, Store, StoreError};

/// Ranges hold exactly their prefix's entries at exactly one revision.
///
/// # Panics
///
/// When one does not.
pub async fn check_ranges<S: Store>(make: &impl AsyncFn() -> S) {
    a_prefix_is_a_string_prefix(&make().await).await;
    pages_are_bounded_and_complete(&make().await).await;
    pages_stay_at_their_revision(&make().await).await;
    the_past_can_be_read_until_it_is_compacted(&make().await).await;
    a_snapshot_is_where_a_watch_starts(&make().await).await;
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

async fn a_prefix_is_a_string_prefix<S: Store>(store: &S) {
    let all = ["a", "a/", "a/b", "a/b/c", "a/é", "a0", "aa", "b/a", "ÿ", "\u{10ffff}"];
    for key in all.iter().rev() {
        put(store, key, key).await;
    }
    for (prefix, expected) in [
        ("a/", &["a/", "a/b", "a/b/c", "a/é"][..]),
        ("a/b", &["a/b", "a/b/c"]),
        ("a", &["a", "a/", "a/b", "a/b/c", "a/é", "a0", "aa"]),
        ("\u{10ffff}", &["\u{10ffff}"]),
        ("a/c", &[]),
        ("", &all),
    ] {
        let snapshot = store.snapshot(prefix).await.unwrap();
        assert_eq!(keys(&snapshot.entries), expected, "below {prefix:?}, in byte order");
        assert!(snapshot.entries.iter().all(|entry| entry.value == entry.key));
    }
}

async fn pages_are_bounded_and_complete<S: Store>(store: &S) {
    for n in 0..10 {
        put(store, &format!("p/{n}"), "").await;
    }
    put(store, "q", "").await;
    for limit in [1, 3, 5, 9, 10, 11] {
        let mut page = Page::first(limit);
        let mut found = Vec::new();
        loop {
            let read = store.range("p/", page).await.unwrap();
            assert!(read.entries.len() <= limit && !read.entries.is_empty());
            let next = read.next(limit);
            assert_eq!(next.is_some(), read.more);
            found.extend(read.entries);
            match next {
                Some(next) => page = next,
                None => break,
            }
        }
        assert_eq!(keys(&found), (0..10).map(|n| format!("p/{n}")).collect::<Vec<_>>(), "pages of {limit}");
    }
    let after = |after: &str| Page { after: Some(after.into()), limit: 100, at: None };
    for (place, expected) in [("p/7", &["p/8", "p/9"][..]), ("p/75", &["p/8", "p/9"]), ("p/9", &[]), ("z", &[])] {
        assert_eq!(keys(&store.range("p/", after(place)).await.unwrap().entries), expected, "after {place}");
    }
    assert_eq!(store.range("p/", after("a")).await.unwrap().entries.len(), 10);
    assert_eq!(store.range("p/", Page::first(0)).await.unwrap().entries.len(), 1);
    assert_eq!(store.range("r/", Page::first(9)).await.unwrap().entries, []);
}

async fn pages_stay_at_their_revision<S: Store>(store: &S) {
    for n in 0..20 {
        put(store, &format!("p/{n:02}"), "old").await;
    }
    let first = store.range("p/", Page::first(5)).await.unwrap();
    let expected = store.snapshot("p/").await.unwrap();
    assert_eq!(first.revision, expected.revision);
    for n in [3, 7, 19] {
        delete(store, &format!("p/{n:02}")).await;
    }
    for key in ["p/02", "p/08", "p/08", "p/071", "p/99"] {
        put(store, key, "new").await;
    }
    put(store, "p/07", "back").await;
    let mut found = first.entries.clone();
    let mut next = first.next(5);
    while let Some(page) = next {
        let read = store.range("p/", page).await.unwrap();
        assert_eq!(read.revision, first.revision);
        next = read.next(5);
        found.extend(read.entries);
    }
    assert_eq!(found, expected.entries, "what was written meanwhile is not seen");
}

async fn the_past_can_be_read_until_it_is_compacted<S: Store>(store: &S) {
    let mut states: Vec<(Revision, Vec<String>)> = Vec::new();
    for n in 0..12 {
        let key = format!("k/{}", n % 4);
        let revision = if n % 5 == 4 { delete(store, &key).await } else { put(store, &key, &n.to_string()).await };
        states.push((revision, state(store, revision).await.unwrap()));
    }
    let (oldest, newest) = (states[7].0, states[11].0);
    store.compact(oldest).await.unwrap();
    store.compact(states[3].0).await.unwrap();
    for (revision, expected) in states {
        match state(store, revision).await {
            Ok(found) => assert!(found == expected && revision >= oldest, "at {revision}: {found:?}"),
            Err(error) => assert!(is_compacted(&error) && revision < oldest, "at {revision}: {error:?}"),
        }
    }
    let ahead = current(store).await + 1_000_000;
    for refused in [state(store, ahead).await.err(), store.compact(ahead).await.err()] {
        assert!(matches!(refused, Some(StoreError::FutureRevision { current }) if current >= newest), "{refused:?}");
    }
}

async fn state<S: Store>(store: &S, at: Revision) -> Result<Vec<String>, StoreError> {
    let read = store.range("k/", Page { after: None, limit: 100, at: Some(at) }).await?;
    assert_eq!(read.revision, at);
    Ok(read.entries.iter().map(|entry| format!("{}={:?}@{}", entry.key, entry.value, entry.modified)).collect())
}

async fn a_snapshot_is_where_a_watch_starts<S: Store>(store: &S) {
    put(store, "s/a", "1").await;
    let snapshot = store.snapshot("s/").await.unwrap();
    assert_eq!(keys(&snapshot.entries), ["s/a"]);
    let mut watch = store.watch("s/", snapshot.revision);
    let later = put(store, "s/b", "2").await;
    let batch = super::next_changes(&mut watch).await;
    assert_eq!((batch.revision, super::summary(&batch)), (later, vec!["+s/b=2".to_owned()]));
}
