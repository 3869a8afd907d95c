//! The store on a disk that stops in mid-write, and what is left on it after the power is back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use tokio::time::timeout;

use super::{EmbeddedStore, file};
use crate::{Store, StoreError, Transaction, WatchError};

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(30);
/// More than any test's disk takes before it fails.
const MOST_PAIRS: usize = 500;

/// A disk that forgets what was not synced, except for what it happened to write early.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    durable: Vec<u8>,
    seen: Vec<u8>,
    unsynced: Vec<Change>,
    changes_left: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Change::Length(length) => image.resize(*length, 0),
            Change::Bytes(offset, bytes) => {
                let end = offset + bytes.len();
                image.resize(image.len().max(end), 0);
                image[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

impl Disk {
    /// A disk with this content that fails for good after `changes_left` writes and syncs.
    fn new(content: Vec<u8>, changes_left: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            durable: content.clone(),
            seen: content,
            unsynced: Vec::new(),
            changes_left,
        })))
    }

    /// What is on it after the power was cut: all that was synced, and any part of the rest.
    fn after_power_cut(&self, random: &mut StdRng) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut image = state.durable.clone();
        for change in &state.unsynced {
            if random.random_bool(0.5) {
                change.apply(&mut image);
            }
        }
        image
    }

    fn change(&self, change: Option<Change>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.changes_left = state.changes_left.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        match change {
            Some(change) => {
                change.apply(&mut state.seen);
                state.unsynced.push(change);
            }
            None => {
                state.durable = state.seen.clone();
                state.unsynced.clear();
            }
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let state = self.0.lock().unwrap();
        let found = state.seen.get(offset..offset + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Some(Change::Length(usize::try_from(length).unwrap())))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Some(Change::Bytes(usize::try_from(offset).unwrap(), data.to_vec())))
    }
}

fn open(disk: &Disk) -> EmbeddedStore {
    let opened = file::open_backend(disk.clone(), Path::new("disk"), 1, false).unwrap();
    EmbeddedStore::start(opened, 10_000)
}

/// A disk with an empty store on it.
async fn formatted() -> Vec<u8> {
    let disk = Disk::new(Vec::new(), usize::MAX);
    open(&disk).close().await;
    disk.0.lock().unwrap().durable.clone()
}

/// Writes pairs of keys until the disk fails; says which pairs were acknowledged.
async fn write_until_failure(store: &EmbeddedStore, round: u64, task: u64) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0..MOST_PAIRS {
        let name = format!("{round}/{task}/{n}");
        let pair = Transaction::new().put(format!("left/{name}"), name.clone()).put(format!("right/{name}"), "");
        match store.commit(pair).await {
            Ok(committed) => assert!(committed.done().is_some()),
            Err(StoreError::Storage(_)) => break,
            Err(error) => panic!("{error:?}"),
        }
        acknowledged.push(name);
    }
    acknowledged
}

#[tokio::test]
async fn acknowledged_writes_survive_a_power_cut_at_any_write() {
    let mut random = StdRng::seed_from_u64(15);
    let mut content = formatted().await;
    let mut acknowledged = Vec::new();
    for round in 0..60 {
        let disk = Disk::new(content, random.random_range(40..160));
        // The cut may come while the file is being repaired.
        let Ok(opened) = file::open_backend(disk.clone(), Path::new("disk"), 1, false) else {
            content = disk.after_power_cut(&mut random);
            continue;
        };
        let store = EmbeddedStore::start(opened, 10_000);
        let writers = (0..4).map(|task| write_until_failure(&store, round, task));
        acknowledged.extend(join_all(writers).await.into_iter().flatten());
        store.close().await;
        content = disk.after_power_cut(&mut random);
    }
    assert!(acknowledged.len() > 200, "the rounds got to write: {}", acknowledged.len());
    let store = open(&Disk::new(content, usize::MAX));
    let (left, right) = (store.snapshot("left/").await.unwrap(), store.snapshot("right/").await.unwrap());
    assert_eq!(left.entries.len(), right.entries.len(), "transactions are whole");
    for (left, right) in left.entries.iter().zip(&right.entries) {
        assert_eq!((&left.key[5..], left.modified), (&right.key[6..], right.modified));
    }
    for name in acknowledged {
        let found = left.entries.binary_search_by(|entry| entry.key[5..].cmp(&name));
        assert!(found.is_ok(), "{name} was acknowledged and is gone");
    }
}

#[tokio::test]
async fn a_failed_disk_is_reported_to_everyone() {
    let store = open(&Disk::new(formatted().await, 60));
    let mut watch = store.watch("", 1);
    let acknowledged: usize =
        join_all((0..8).map(|task| write_until_failure(&store, 0, task))).await.iter().map(Vec::len).sum();
    let mut watched = 0;
    let end = loop {
        match timeout(DEADLINE, watch.next()).await.unwrap().unwrap() {
            Ok(batch) => watched += usize::from(!batch.changes.is_empty()),
            Err(error) => break error,
        }
    };
    assert_eq!(watched, acknowledged, "what was acknowledged was reported");
    assert!(matches!(end, WatchError::Storage(_)), "{end:?}");
    let refused = store.get("left/0/0/0").await;
    assert!(matches!(refused, Err(StoreError::Storage(_))), "{refused:?}");
    let refused = store.commit(Transaction::new().put("a", "")).await;
    assert!(matches!(refused, Err(StoreError::Storage(_))), "{refused:?}");
    assert!(watch.next().await.is_none());
}
