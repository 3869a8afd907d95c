//! What the embedded store promises beyond the contract: its file, its restarts, its bounds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use federation_store::{
    EmbeddedOptions, EmbeddedStore, OpenError, Page, Revision, Store, StoreError, Transaction, WatchBatch, WatchError,
    WatchStream,
};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(30);

struct File {
    _directory: TempDir,
    path: PathBuf,
}

impl File {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        Self { _directory: directory, path }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }

    async fn open(&self) -> EmbeddedStore {
        EmbeddedStore::open(&self.path).await.unwrap()
    }

    async fn open_with_history(&self, history: Revision) -> EmbeddedStore {
        let options = EmbeddedOptions { history, ..EmbeddedOptions::default() };
        EmbeddedStore::open_with(&self.path, options).await.unwrap()
    }
}

async fn done(store: &EmbeddedStore, transaction: Transaction) -> Revision {
    store.commit(transaction).await.unwrap().done().unwrap()
}

async fn put(store: &EmbeddedStore, key: &str, value: &str) -> Revision {
    done(store, Transaction::new().put(key, value.to_owned())).await
}

/// Puts `count` keys below `prefix` as fast as the queue takes them.
async fn put_many(store: &EmbeddedStore, prefix: &str, count: usize, value: &str) {
    let numbers: Vec<usize> = (0..count).collect();
    for part in numbers.chunks(128) {
        let keys: Vec<String> = part.iter().map(|n| format!("{prefix}{n}")).collect();
        join_all(keys.iter().map(|key| put(store, key, value))).await;
    }
}

async fn next(watch: &mut WatchStream) -> Option<Result<WatchBatch, WatchError>> {
    timeout(DEADLINE, watch.next()).await.unwrap()
}

#[tokio::test]
async fn a_file_has_one_process_at_a_time() {
    let file = File::new();
    let store = file.open().await;
    let refused = EmbeddedStore::open(&file.path).await.err().unwrap();
    assert!(matches!(&refused, OpenError::InUse { path } if *path == file.path), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("in use") && said.contains("store.redb") && !said.contains('\n'), "{said}");
    put(&store, "a", "1").await;
    store.close().await;
    let again = file.open().await;
    assert!(again.get("a").await.unwrap().is_some());
}

#[tokio::test]
async fn dropping_the_last_handle_lets_go_of_the_file() {
    let file = File::new();
    let store = file.open().await;
    let other = store.clone();
    let watch = store.watch("", 0);
    drop((store, other));
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = EmbeddedStore::open(&file.path).await {
        assert!(matches!(error, OpenError::InUse { .. }) && Instant::now() < deadline, "{error:?}");
        tokio::task::yield_now().await;
    }
    drop(watch);
}

#[tokio::test]
async fn only_the_owner_can_read_the_file() {
    let file = File::new();
    file.open().await.close().await;
    assert_eq!(fs::metadata(&file.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn everything_but_time_survives_a_restart() {
    let file = File::new();
    let store = file.open().await;
    let first = put(&store, "a", "1").await;
    let second = put(&store, "a", "2").await;
    put(&store, "b", "1").await;
    store.compact(first).await.unwrap();
    let (incarnation, before) = (store.incarnation().await.unwrap(), store.snapshot("").await.unwrap());
    store.close().await;

    let store = file.open().await;
    assert_eq!(store.incarnation().await.unwrap(), incarnation);
    assert_eq!(store.snapshot("").await.unwrap(), before);
    let mut watch = store.watch("", first);
    assert_eq!(next(&mut watch).await.unwrap().unwrap().revision, second, "the log is still there");
    let refused = next(&mut store.watch("", 0)).await.unwrap().unwrap_err();
    assert!(matches!(refused, WatchError::Compacted { oldest } if oldest == first), "{refused:?}");
    let old = Page { after: None, limit: 9, at: Some(first) };
    assert_eq!(store.range("a", old).await.unwrap().entries[0].value, "1");
    assert!(put(&store, "c", "").await > before.revision);
}

#[tokio::test(start_paused = true)]
async fn a_restart_gives_each_lease_its_whole_time_again() {
    let ttl = Duration::from_secs(10);
    let file = File::new();
    let store = file.open().await;
    let lease = store.grant_lease(ttl).await.unwrap();
    done(&store, Transaction::new().put_leased("a", "", lease)).await;
    let ended = store.grant_lease(ttl).await.unwrap();
    store.revoke(ended).await.unwrap();
    sleep(ttl / 2).await;
    store.close().await;

    sleep(ttl * 2).await;
    let store = file.open().await;
    let opened = Instant::now();
    assert_eq!(store.activity().leases, 1);
    let fresh = store.grant_lease(ttl * 10).await.unwrap();
    assert!(fresh != ended && fresh != lease, "the number of a lease is not used again");
    let mut watch = store.watch("a", store.activity().revision);
    let batch = next(&mut watch).await.unwrap().unwrap();
    assert_eq!(batch.changes[0].key(), "a");
    assert!((ttl..ttl * 2).contains(&opened.elapsed()), "gone after {:?}", opened.elapsed());
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::LeaseNotFound { .. })));
    store.close().await;
    assert_eq!(file.open().await.activity().leases, 1, "an expired lease does not come back");
}

#[tokio::test]
async fn a_copied_file_is_another_incarnation() {
    let file = File::new();
    let store = file.open().await;
    put(&store, "a", "1").await;
    let original = store.incarnation().await.unwrap();
    store.close().await;
    fs::copy(&file.path, file.beside("backup")).unwrap();
    let backup = EmbeddedStore::open(file.beside("backup")).await.unwrap();
    let copied = backup.incarnation().await.unwrap();
    assert_ne!(copied, original);
    assert!(backup.get("a").await.unwrap().is_some());
    backup.close().await;
    fs::rename(file.beside("backup"), file.beside("moved")).unwrap();
    let moved = EmbeddedStore::open(file.beside("moved")).await.unwrap();
    assert_eq!(moved.incarnation().await.unwrap(), copied, "a renamed file is the same one");
    assert_eq!(file.open().await.incarnation().await.unwrap(), original);
}

#[tokio::test]
async fn a_declared_restore_is_another_incarnation() {
    let file = File::new();
    let store = file.open().await;
    let original = store.incarnation().await.unwrap();
    store.close().await;
    let options = EmbeddedOptions { restored: true, ..EmbeddedOptions::default() };
    let store = EmbeddedStore::open_with(&file.path, options).await.unwrap();
    let restored = store.incarnation().await.unwrap();
    assert_ne!(restored, original);
    store.close().await;
    assert_eq!(file.open().await.incarnation().await.unwrap(), restored);
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    let file = File::new();
    fs::write(&file.path, vec![b'x'; 10_000]).unwrap();
    let error = EmbeddedStore::open(&file.path).await.err().unwrap();
    assert!(matches!(error, OpenError::Unreadable { .. }), "{error:?}");
    assert_eq!(fs::read(&file.path).unwrap(), vec![b'x'; 10_000]);

    let missing = EmbeddedStore::open(file.beside("missing/store")).await.err().unwrap();
    assert!(matches!(missing, OpenError::Io { .. }), "{missing:?}");

    let foreign = file.beside("foreign");
    foreign_database(&foreign);
    let error = EmbeddedStore::open(&foreign).await.err().unwrap();
    assert!(matches!(error, OpenError::UnknownFormat { found: 0, .. }), "{error:?}");
}

fn foreign_database(path: &Path) {
    let database = redb::Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<u64, u64>::new("numbers")).unwrap().insert(1, 2).unwrap();
    write.commit().unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_an_error_and_no_panic() {
    let file = File::new();
    let store = file.open().await;
    put_many(&store, "k/", 50, &"v".repeat(2000)).await;
    store.close().await;
    let whole = fs::read(&file.path).unwrap();
    let mut refused = 0;
    for start in (0..whole.len()).step_by(whole.len() / 24) {
        let mut damaged = whole.clone();
        damaged[start..].iter_mut().take(64).for_each(|byte| *byte ^= 0x5a);
        fs::write(&file.path, damaged).unwrap();
        match EmbeddedStore::open(&file.path).await {
            Ok(store) => {
                assert_eq!(store.snapshot("k/").await.unwrap().entries.len(), 50, "damage at {start} lay in no page");
                store.close().await;
            }
            Err(OpenError::Unreadable { .. }) => refused += 1,
            Err(error) => panic!("damage at {start}: {error:?}"),
        }
    }
    assert!(refused > 3, "{refused} of the damages were noticed");
}

#[tokio::test]
async fn concurrent_transactions_share_a_flush() {
    let file = File::new();
    let store = file.open().await;
    let keys: Vec<String> = (0..1000).map(|n| format!("k/{n}")).collect();
    join_all(keys.iter().map(|key| put(&store, key, ""))).await;
    let activity = store.activity();
    assert_eq!(activity.answered, 1000);
    assert!(activity.flushes <= 100, "{activity:?}");
    let refused = Transaction::new().expecting_absent("k/1").put("k/1", "");
    assert_eq!(store.commit(refused).await.unwrap().done(), None);
    assert_eq!(store.activity().flushes, activity.flushes, "a conflict writes nothing");
}

#[tokio::test]
async fn history_is_bounded_and_compacts_itself() {
    let file = File::new();
    let store = file.open_with_history(100).await;
    let first = put(&store, "first", "").await;
    put_many(&store, "k/", 1500, "").await;
    let activity = store.activity();
    assert_eq!(activity.compacted, activity.revision - 100);
    let refused = next(&mut store.watch("", first)).await.unwrap().unwrap_err();
    assert!(matches!(refused, WatchError::Compacted { oldest } if oldest == activity.compacted), "{refused:?}");
    let mut watch = store.watch("", activity.compacted);
    for revision in activity.compacted + 1..=activity.revision {
        assert_eq!(next(&mut watch).await.unwrap().unwrap().revision, revision);
    }
    assert_eq!(store.snapshot("").await.unwrap().entries.len(), 1501, "no state is forgotten");
}

#[tokio::test]
async fn a_shortened_history_is_compacted_without_losing_state() {
    let file = File::new();
    let store = file.open().await;
    for round in 0..3 {
        put_many(&store, "k/", 1000, &round.to_string()).await;
    }
    let before = store.snapshot("").await.unwrap();
    store.close().await;
    let store = file.open_with_history(10).await;
    let deadline = Instant::now() + DEADLINE;
    while store.activity().compacted + 10 < store.activity().revision {
        assert!(Instant::now() < deadline, "{:?}", store.activity());
        put(&store, "other", "").await;
    }
    assert_eq!(store.snapshot("k/").await.unwrap().entries, before.entries);
}

#[tokio::test]
async fn overwriting_does_not_grow_the_file_for_ever() {
    let file = File::new();
    let store = file.open_with_history(50).await;
    let value = "v".repeat(1000);
    put_many(&store, "k/", 500, &value).await;
    let settled = fs::metadata(&file.path).unwrap().len();
    for _ in 0..10 {
        put_many(&store, "k/", 500, &value).await;
    }
    let grown = fs::metadata(&file.path).unwrap().len();
    assert!(grown <= settled * 3, "from {settled} to {grown} bytes");
}

#[tokio::test]
async fn a_slow_watcher_falls_back_to_the_log_and_misses_nothing() {
    let file = File::new();
    let store = file.open().await;
    let before = store.activity().revision;
    let mut slow = store.watch("k/", before);
    let first = put(&store, "k/first", "").await;
    assert_eq!(next(&mut slow).await.unwrap().unwrap().revision, first);
    // Three times what the memory keeps.
    put_many(&store, "k/", 3100, "").await;
    let newest = store.activity().revision;
    for revision in first + 1..=newest {
        assert_eq!(next(&mut slow).await.unwrap().unwrap().revision, revision);
    }
    let live = put(&store, "k/live", "").await;
    assert_eq!(next(&mut slow).await.unwrap().unwrap().revision, live);
}

#[tokio::test]
async fn a_watcher_overtaken_by_compaction_is_told() {
    let file = File::new();
    let store = file.open_with_history(1500).await;
    let mut slow = store.watch("k/", store.activity().revision);
    put_many(&store, "k/", 3000, "").await;
    let refused = next(&mut slow).await.unwrap().unwrap_err();
    assert!(matches!(refused, WatchError::Compacted { oldest } if oldest == store.activity().compacted), "{refused:?}");
}

#[tokio::test]
async fn a_quiet_watch_learns_how_far_it_is() {
    let file = File::new();
    let store = file.open().await;
    let before = store.activity().revision;
    let mut quiet = store.watch("quiet/", before);
    put_many(&store, "loud/", 600, "").await;
    let note = next(&mut quiet).await.unwrap().unwrap();
    assert_eq!(note.changes, []);
    assert!(note.revision > before && note.revision <= store.activity().revision);
    let revision = put(&store, "quiet/a", "").await;
    let mut resumed = store.watch("quiet/", note.revision);
    let mut reached = note.revision;
    while reached < revision {
        let batch = next(&mut resumed).await.unwrap().unwrap();
        assert!(batch.revision > reached && batch.changes.is_empty() == (batch.revision != revision));
        reached = batch.revision;
    }
    assert_eq!(reached, revision);
}

#[tokio::test]
async fn large_entries_shorten_the_page() {
    let file = File::new();
    let store = file.open().await;
    for n in 0..7 {
        done(&store, Transaction::new().put(format!("large/{n}"), vec![n; 1024 * 1024])).await;
    }
    let page = store.range("large/", Page::first(100)).await.unwrap();
    assert!(page.more && page.entries.len() < 7, "{} entries", page.entries.len());
    assert_eq!(store.snapshot("large/").await.unwrap().entries.len(), 7);
    let mut watch = store.watch("large/", 0);
    for n in 0..7 {
        assert_eq!(next(&mut watch).await.unwrap().unwrap().changes[0].key(), format!("large/{n}"));
    }
}

#[tokio::test]
async fn closing_serves_what_waits_and_refuses_the_rest() {
    let file = File::new();
    let store = file.open().await;
    let mut watch = store.watch("", store.activity().revision);
    let (other, closing) = (store.clone(), store.clone());
    let waiting = async { put(&other, "waiting", "").await };
    let (revision, ()) = tokio::join!(waiting, closing.close());
    assert_eq!(next(&mut watch).await.unwrap().unwrap().revision, revision);
    let end = next(&mut watch).await.unwrap().unwrap_err();
    assert!(matches!(end, WatchError::Closed), "{end:?}");
    assert!(next(&mut watch).await.is_none());
    assert!(matches!(store.commit(Transaction::new().put("a", "")).await, Err(StoreError::Closed)));
    assert!(matches!(store.get("a").await, Err(StoreError::Closed)));
    assert!(matches!(store.grant_lease(DEADLINE).await, Err(StoreError::Closed)));
    store.close().await;
    assert!(file.open().await.get("waiting").await.unwrap().is_some());
}
