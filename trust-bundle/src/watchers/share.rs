//! Telling the other replicas who watches here, so that an acknowledgement counts wherever it was given.

use std::collections::BTreeMap;
use std::time::Duration;

use federation_store::{LeaseId, Store, StoreError, Transaction, layout};
use prost::Message;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use super::{Watcher, Watchers};

/// How long the keys of a replica that died stay.
const LEASE: Duration = Duration::from_secs(5);
/// How often they are told that it lives.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);
/// Changes within this time are written together.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);
/// Keys that one transaction writes: a watcher's acknowledgement with all its names has 26 KiB.
const KEYS: usize = 32;

/// Shares this replica's watchers until dropped. What the store cannot take is shared later: nobody waits for it but
/// rotations and operators.
pub async fn share<S: Store>(watchers: Watchers, store: S) {
    loop {
        if let Err(error) = share_under_lease(&watchers, &store).await {
            warn!(%error, "the other replicas do not hear of this one's watchers for a moment");
            sleep(RETRY).await;
        }
    }
}

impl Watchers {
    /// Takes back what was shared, when the service ends.
    pub async fn withdraw<S: Store>(&self, store: &S) {
        if let Some(lease) = self.with(|table| table.lease.take()) {
            // It expires by itself otherwise.
            let _ = tokio::time::timeout(RETRY, store.revoke(lease)).await;
        }
    }

    fn encoded(&self) -> BTreeMap<u64, Vec<u8>> {
        self.with(|table| table.here.iter().map(|(key, it)| (*key, Watcher::to_wire(it).encode_to_vec())).collect())
    }
}

async fn share_under_lease<S: Store>(watchers: &Watchers, store: &S) -> Result<(), StoreError> {
    let mut changed = watchers.changed();
    while watchers.encoded().is_empty() {
        // The sender lives as long as the watchers.
        let _ = changed.changed().await;
    }
    let lease = store.grant_lease(LEASE).await?;
    watchers.with(|table| table.lease = Some(lease));
    let mut shared = BTreeMap::new();
    let mut alive_until = Instant::now() + KEEP_ALIVE;
    loop {
        changed.borrow_and_update();
        let current = watchers.encoded();
        write(watchers, store, lease, &shared, &current).await?;
        shared = current;
        sleep(INTERVAL).await;
        tokio::select! {
            _ = changed.changed() => {}
            () = sleep_until(alive_until) => {}
        }
        if Instant::now() >= alive_until {
            store.keep_alive(lease).await?;
            alive_until = Instant::now() + KEEP_ALIVE;
        }
    }
}

async fn write<S: Store>(
    watchers: &Watchers,
    store: &S,
    lease: LeaseId,
    before: &BTreeMap<u64, Vec<u8>>,
    after: &BTreeMap<u64, Vec<u8>>,
) -> Result<(), StoreError> {
    let key = |watch: &u64| layout::watcher(&watchers.0.replica, *watch);
    let ended = before.keys().filter(|watch| !after.contains_key(watch)).map(|watch| (watch, None));
    let news = after.iter().filter(|(watch, value)| before.get(watch) != Some(value));
    let changes: Vec<_> = ended.chain(news.map(|(watch, value)| (watch, Some(value)))).collect();
    for some in changes.chunks(KEYS) {
        let transaction = some.iter().fold(Transaction::new(), |transaction, (watch, value)| match value {
            Some(value) => transaction.put_leased(key(watch), (*value).clone(), lease),
            None => transaction.delete(key(watch)),
        });
        // Nobody else writes these keys, so there is nothing to expect.
        let _ = store.commit(transaction).await?;
    }
    Ok(())
}
