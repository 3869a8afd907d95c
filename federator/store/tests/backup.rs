//! A store's contents go to a file and come back, whole or not at all.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use federation_store::backup::{BackupError, Counted, export, import};
use federation_store::{EmbeddedConfig, EmbeddedStore, Entry, Store, StoreConfig, Transaction};

/// More than one page of a read, and more than one transaction of a write.
const MANY: usize = 1203;

fn embedded(file: &Path) -> StoreConfig {
    StoreConfig::Embedded(EmbeddedConfig { file: file.to_owned() })
}

async fn filled(file: &Path, entries: usize) {
    let store = EmbeddedStore::open(file).await.unwrap();
    for number in 0..entries {
        let key = format!("exports/shop/service-{number:05}/east");
        let put = Transaction::new().put(key, vec![u8::try_from(number % 256).unwrap(); number]);
        assert!(store.commit(put).await.unwrap().done().is_some());
    }
    let lease = store.grant_lease(Duration::from_secs(600)).await.unwrap();
    let alive = Transaction::new().put_leased("alive/east", "here", lease);
    assert!(store.commit(alive).await.unwrap().done().is_some());
    store.close().await;
}

async fn lasting(file: &Path) -> Vec<(String, Vec<u8>)> {
    let store = EmbeddedStore::open(file).await.unwrap();
    let entries = store.snapshot("").await.unwrap().entries;
    store.close().await;
    let lasting = entries.into_iter().filter(|entry: &Entry| entry.lease.is_none());
    lasting.map(|entry| (entry.key, entry.value.to_vec())).collect()
}

/// A folder with a store of `entries` and its backup.
async fn backed_up(entries: usize) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (from, file) = (folder.path().join("from.redb"), folder.path().join("backup.jsonl"));
    filled(&from, entries).await;
    export(embedded(&from), "federator", &file).await.unwrap();
    (folder, from, file)
}

#[tokio::test]
async fn what_was_exported_is_imported_without_leased_keys() {
    let (folder, from, file) = backed_up(MANY).await;
    let to = folder.path().join("to.redb");
    let taken = import(embedded(&to), "federator", &file).await.unwrap();
    assert_eq!(taken.entries, MANY);
    assert_eq!(lasting(&to).await, lasting(&from).await);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "the file tells what only the program may know");
}

#[tokio::test]
async fn an_import_that_was_cut_off_goes_on_when_it_is_started_again() {
    let (folder, from, file) = backed_up(20).await;
    let to = folder.path().join("to.redb");
    let half = EmbeddedStore::open(&to).await.unwrap();
    for (key, value) in lasting(&from).await.into_iter().take(7) {
        assert!(half.commit(Transaction::new().put(key, value)).await.unwrap().done().is_some());
    }
    half.close().await;
    import(embedded(&to), "federator", &file).await.unwrap();
    assert_eq!(lasting(&to).await, lasting(&from).await);
    // And once more changes nothing.
    import(embedded(&to), "federator", &file).await.unwrap();
}

#[tokio::test]
async fn a_store_with_anything_else_is_left_alone() {
    let (folder, _, file) = backed_up(3).await;
    for (name, key, value) in [
        ("another key before", "a", ""),
        ("another key between", "exports/shop/service-00000/north", ""),
        ("another key after", "z", ""),
        ("another value", "exports/shop/service-00001/east", "other"),
    ] {
        let to = folder.path().join(name);
        let store = EmbeddedStore::open(&to).await.unwrap();
        assert!(store.commit(Transaction::new().put(key, value)).await.unwrap().done().is_some());
        store.close().await;
        let refused = import(embedded(&to), "federator", &file).await;
        assert!(matches!(&refused, Err(BackupError::NotEmpty { key: named }) if named == key), "{name}: {refused:?}");
        assert_eq!(lasting(&to).await, [(key.to_owned(), value.as_bytes().to_vec())], "{name}");
    }
}

#[tokio::test]
async fn a_file_that_was_changed_or_cut_off_is_refused_with_its_line() {
    let (folder, _, file) = backed_up(3).await;
    let good = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let without = |number: usize| {
        let kept = lines.iter().enumerate().filter(|(at, _)| *at != number);
        kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    let swapped = format!("{}\n{}\n{}\n{}\n{}\n", lines[0], lines[2], lines[1], lines[3], lines[4]);
    for (bad, line, part) in [
        (String::new(), 1, "cut off"),
        ("not a backup\n".to_owned(), 1, "expected"),
        (good.replace("\"version\":1", "\"version\":2"), 1, "version 2"),
        (good.replace("isthmus-store", "other"), 1, "\"other\""),
        (good.replace("\"program\":\"federator\"", "\"program\":\"trust-bundle\""), 1, "trust-bundle"),
        (without(4), 5, "cut off"),
        (without(2), 4, "3 entries were written, 2 are there"),
        (swapped, 3, "order"),
        (good.replace("service-00002", "service-00009"), 5, "sha256"),
        (good.replace("\"value\":\"\"", "\"value\":\"*\""), 2, "value"),
        (good.replace("\"key\":\"exports/shop/service-00001/east\",", ""), 3, "neither an entry"),
    ] {
        assert_ne!(bad, good);
        std::fs::write(&file, &bad).unwrap();
        let to = folder.path().join("to.redb");
        let refused = import(embedded(&to), "federator", &file).await.expect_err(part);
        let text = refused.to_string();
        assert!(matches!(refused, BackupError::Malformed { line: at, .. } if at == line), "{part}: {text}");
        assert!(text.contains(part) && text.contains("backup.jsonl"), "{part}: {text}");
        assert!(!to.exists(), "{part}: the store was not even made");
    }
    std::fs::write(&file, &good).unwrap();
    let taken = import(embedded(&folder.path().join("to.redb")), "federator", &file).await.unwrap();
    assert!(matches!(taken, Counted { entries: 3, .. }));
}

#[tokio::test]
async fn a_store_in_use_and_one_that_is_not_there_are_not_exported() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup.jsonl");
    let missing = folder.path().join("missing.redb");
    let refused = export(embedded(&missing), "federator", &file).await.expect_err("missing").to_string();
    assert!(refused.contains("missing.redb"), "{refused}");
    assert!(!missing.exists());
    let used = folder.path().join("used.redb");
    let store = EmbeddedStore::open(&used).await.unwrap();
    assert!(matches!(export(embedded(&used), "federator", &file).await, Err(BackupError::Open(_))));
    store.close().await;
    assert!(!file.exists());
}
