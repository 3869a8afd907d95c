//! The embedded store behaves like a map that remembers every revision of itself.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use federation_store::{
    Change, Committed, EmbeddedOptions, EmbeddedStore, LeaseId, Page, Revision, Store, StoreError, Transaction,
    WatchError,
};
use futures_util::StreamExt;
use proptest::collection::vec;
use proptest::prelude::*;

const KEYS: [&str; 6] = ["a", "a/", "a/b", "a/c", "b", "b/a"];
const PREFIXES: [&str; 5] = ["", "a", "a/", "b/", "c"];
const LEASES: usize = 3;

/// What happens to a key in a transaction.
#[derive(Clone, Debug)]
enum Write {
    Put(u8, Option<usize>),
    Delete,
}

#[derive(Clone, Debug)]
enum Step {
    /// Expects of some keys the modification that the model knows, or one that many revisions off, then writes.
    Commit {
        expect: Vec<(usize, u64)>,
        writes: BTreeMap<usize, Write>,
    },
    /// Grants the lease if it is not running.
    Grant(usize),
    Revoke(usize),
    /// Compacts so many percent of the way to the newest revision.
    Compact(u64),
    /// Closes and opens the file.
    Reopen,
    /// Reads a prefix in pages, so many percent back in the history.
    Range {
        prefix: usize,
        limit: usize,
        percent: u64,
    },
    /// Watches a prefix up to now, from so many percent back in the history.
    Watch {
        prefix: usize,
        percent: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..KEYS.len();
    let lease = prop_oneof![3 => Just(None), 1 => (0..LEASES).prop_map(Some)];
    let write = prop_oneof![3 => (any::<u8>(), lease).prop_map(|(value, lease)| Write::Put(value, lease)), 1 => Just(Write::Delete)];
    let writes = proptest::collection::btree_map(key.clone(), write, 0..4);
    let off = prop_oneof![6 => Just(0), 1 => 1..3_u64];
    let expect = vec((key, off), 0..3);
    let prefix = 0..PREFIXES.len();
    let step = prop_oneof![
        12 => (expect, writes).prop_map(|(expect, writes)| Step::Commit { expect, writes }),
        2 => (0..LEASES).prop_map(Step::Grant),
        1 => (0..LEASES).prop_map(Step::Revoke),
        1 => (0..=100_u64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
        4 => (prefix.clone(), 1..5_usize, 0..=100_u64).prop_map(|(prefix, limit, percent)| Step::Range { prefix, limit, percent }),
        4 => (prefix, 0..=100_u64).prop_map(|(prefix, percent)| Step::Watch { prefix, percent }),
    ];
    vec(step, 1..60)
}

/// What the model knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    value: Vec<u8>,
    created: Revision,
    modified: Revision,
    lease: Option<LeaseId>,
}

type State = BTreeMap<String, Known>;

#[derive(Default)]
struct Model {
    /// The state after each revision, the newest last; the first is the empty store's.
    states: BTreeMap<Revision, State>,
    compacted: Revision,
    leases: [Option<LeaseId>; LEASES],
    /// The lease that a slot had before.
    gone: [Option<LeaseId>; LEASES],
}

impl Model {
    fn newest(&self) -> (Revision, &State) {
        self.states.last_key_value().map(|(revision, state)| (*revision, state)).unwrap()
    }

    fn modified(&self, key: &str) -> Revision {
        self.newest().1.get(key).map_or(0, |known| known.modified)
    }

    /// The revision `percent` of the way from the beginning.
    fn revision_at(&self, percent: u64) -> Revision {
        self.newest().0 * percent / 100
    }

    fn apply(&mut self, writes: &BTreeMap<usize, Write>) -> Revision {
        let (newest, before) = self.newest();
        let (revision, mut state) = (newest + 1, before.clone());
        let mut changed = false;
        for (key, write) in writes {
            let key = KEYS[*key].to_owned();
            match write {
                Write::Delete => changed |= state.remove(&key).is_some(),
                Write::Put(value, lease) => {
                    let created = state.get(&key).map_or(revision, |known| known.created);
                    let lease = lease.and_then(|slot| self.leases[slot]);
                    state.insert(key, Known { value: vec![*value], created, modified: revision, lease });
                    changed = true;
                }
            }
        }
        if !changed {
            return newest;
        }
        self.states.insert(revision, state);
        revision
    }

    fn end_lease(&mut self, lease: LeaseId) {
        let (newest, before) = self.newest();
        let mut state = before.clone();
        state.retain(|_, known| known.lease != Some(lease));
        if state.len() != before.len() {
            self.states.insert(newest + 1, state);
        }
    }

    /// What `revision` changed below `prefix`; `None` stands for a deletion.
    fn changes(&self, revision: Revision, prefix: &str) -> BTreeMap<String, Option<Known>> {
        let (before, after) = (&self.states[&(revision - 1)], &self.states[&revision]);
        let put = after.iter().filter(|(_, known)| known.modified == revision);
        let deleted = before.keys().filter(|key| !after.contains_key(*key));
        put.map(|(key, known)| (key.clone(), Some(known.clone())))
            .chain(deleted.map(|key| (key.clone(), None)))
            .filter(|(key, _)| key.starts_with(prefix))
            .collect()
    }
}

struct Run<'p> {
    path: &'p Path,
    store: EmbeddedStore,
    model: Model,
}

impl Run<'_> {
    async fn step(&mut self, step: Step) {
        match step {
            Step::Commit { expect, writes } => self.commit(&expect, &writes).await,
            Step::Grant(slot) => {
                if self.model.leases[slot].is_none() {
                    let lease = self.store.grant_lease(std::time::Duration::from_secs(3600)).await.unwrap();
                    self.model.leases[slot] = Some(lease);
                }
            }
            Step::Revoke(slot) => self.revoke(slot).await,
            Step::Compact(percent) => {
                let at = self.model.revision_at(percent);
                self.store.compact(at).await.unwrap();
                self.model.compacted = self.model.compacted.max(at);
            }
            Step::Reopen => {
                self.store.close().await;
                self.store = open(self.path).await;
            }
            Step::Range { prefix, limit, percent } => self.range(PREFIXES[prefix], limit, percent).await,
            Step::Watch { prefix, percent } => self.watch(PREFIXES[prefix], self.model.revision_at(percent)).await,
        }
        let (revision, state) = self.model.newest();
        let snapshot = self.store.snapshot("").await.unwrap();
        assert_eq!(snapshot.revision, revision);
        assert_eq!(&known(snapshot.entries), state);
    }

    async fn commit(&mut self, expect: &[(usize, u64)], writes: &BTreeMap<usize, Write>) {
        let mut transaction = Transaction::new();
        let mut conflict = None;
        for (key, off) in expect {
            let key = KEYS[*key];
            transaction = transaction.expecting(key, self.model.modified(key) + off);
            conflict = conflict.or((*off != 0).then(|| key.to_owned()));
        }
        let mut missing = None;
        for (key, write) in writes {
            let key = KEYS[*key];
            transaction = match write {
                Write::Delete => transaction.delete(key),
                Write::Put(value, None) => transaction.put(key, vec![*value]),
                Write::Put(value, Some(slot)) => {
                    let lease = self.model.leases[*slot].unwrap_or_else(|| {
                        let lease = self.model.gone[*slot].unwrap_or(LeaseId::new(u64::MAX));
                        missing = missing.or(Some(lease));
                        lease
                    });
                    transaction.put_leased(key, vec![*value], lease)
                }
            };
        }
        match (self.store.commit(transaction).await, conflict, missing) {
            (Ok(Committed::Conflict { key }), Some(expected), _) => assert_eq!(key, expected),
            (Err(StoreError::LeaseNotFound { lease }), None, Some(expected)) => assert_eq!(lease, expected),
            (Ok(Committed::Done(revision)), None, None) => assert_eq!(revision, self.model.apply(writes)),
            wrong => panic!("{wrong:?}"),
        }
    }

    async fn revoke(&mut self, slot: usize) {
        let Some(lease) = self.model.leases[slot].take() else { return };
        self.model.gone[slot] = Some(lease);
        self.store.revoke(lease).await.unwrap();
        self.model.end_lease(lease);
    }

    async fn range(&self, prefix: &str, limit: usize, percent: u64) {
        let at = self.model.revision_at(percent).max(1);
        let mut page = Some(Page { after: None, limit, at: Some(at) });
        let mut found = State::new();
        while let Some(next) = page {
            match self.store.range(prefix, next).await {
                Err(StoreError::Compacted { oldest }) if at < self.model.compacted => {
                    assert_eq!(oldest, self.model.compacted);
                    return;
                }
                read => {
                    let read = read.unwrap();
                    assert!(read.entries.len() <= limit && read.revision == at);
                    page = read.next(limit);
                    found.extend(known(read.entries));
                }
            }
        }
        assert!(at >= self.model.compacted, "{at} is compacted");
        let mut expected = self.model.states[&at].clone();
        expected.retain(|key, _| key.starts_with(prefix));
        assert_eq!(found, expected, "{prefix:?} at {at}");
    }

    async fn watch(&self, prefix: &str, after: Revision) {
        let newest = self.model.newest().0;
        let mut watch = self.store.watch(prefix, after);
        if after < self.model.compacted {
            let refused = watch.next().await.unwrap();
            assert!(matches!(refused, Err(WatchError::Compacted { oldest }) if oldest == self.model.compacted));
            return;
        }
        for revision in after + 1..=newest {
            // Revision 1 is the empty store.
            let expected = if revision == 1 { BTreeMap::new() } else { self.model.changes(revision, prefix) };
            if expected.is_empty() {
                continue;
            }
            let batch = watch.next().await.unwrap().unwrap();
            assert_eq!(batch.revision, revision);
            let count = batch.changes.len();
            let found: BTreeMap<_, _> = batch.changes.into_iter().map(change).collect();
            assert_eq!(count, found.len(), "each key once");
            assert_eq!(found, expected, "{prefix:?} in {revision}");
        }
    }
}

fn change(change: Change) -> (String, Option<Known>) {
    match change {
        Change::Delete { key } => (key, None),
        Change::Put(entry) => {
            let (key, known) = known(vec![entry]).pop_first().unwrap();
            (key, Some(known))
        }
    }
}

fn known(entries: Vec<federation_store::Entry>) -> State {
    let known = entries.into_iter().map(|entry| {
        let (created, modified, lease) = (entry.created, entry.modified, entry.lease);
        (entry.key, Known { value: entry.value.to_vec(), created, modified, lease })
    });
    known.collect()
}

async fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open_with(path, EmbeddedOptions::default()).await.unwrap()
}

async fn run(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let model = Model { states: BTreeMap::from([(0, State::new()), (1, State::new())]), ..Model::default() };
    let mut run = Run { path: &path, store: open(&path).await, model };
    for step in steps {
        run.step(step).await;
    }
    run.store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_a_map_with_a_memory(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
