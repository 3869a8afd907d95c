//! What every backend must do, as tests for its author to run.
//!
//! ```no_run
//! # use federation_store::{EmbeddedStore, contract};
//! # async fn make() -> EmbeddedStore { unimplemented!() }
//! #[tokio::test(flavor = "multi_thread")]
//! async fn the_backend_keeps_the_contract() {
//!     contract::check_all(async || make().await).await;
//! }
//! ```
//!
//! `make` gives a store without keys each time. The stores may share one history (etcd below fresh prefixes), since checks
//! run one after another and count revisions from where they find them. Checks panic when a promise is broken. Those of
//! leases wait in real time, or in tokio's paused time when the backend counts in it too.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a broken contract fails the test that runs the check"
)]

use std::time::Duration;

use futures_util::StreamExt;

use crate::{Change, Committed, Revision, Store, StoreError, Transaction, WatchBatch, WatchError, WatchStream};

mod leases;
mod ranges;
mod transactions;
mod watches;

pub use leases::check_leases;
pub use ranges::check_ranges;
pub use transactions::check_transactions;
pub use watches::check_watches;

/// How long a check waits for what must come.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs every check.
///
/// # Panics
///
/// When the backend breaks a promise of [`Store`].
pub async fn check_all<S: Store>(make: impl AsyncFn() -> S) {
    Box::pin(check_transactions(&make)).await;
    Box::pin(check_ranges(&make)).await;
    Box::pin(check_watches(&make)).await;
    Box::pin(check_leases(&make)).await;
}

/// Commits what must not conflict.
async fn done<S: Store>(store: &S, transaction: Transaction) -> Revision {
    match store.commit(transaction).await.expect("a transaction within the limits is committed") {
        Committed::Done(revision) => revision,
        Committed::Conflict { key } => panic!("a conflict on {key}"),
    }
}

async fn put<S: Store>(store: &S, key: &str, value: &str) -> Revision {
    done(store, Transaction::new().put(key, value.to_owned())).await
}

async fn delete<S: Store>(store: &S, key: &str) -> Revision {
    done(store, Transaction::new().delete(key)).await
}

async fn current<S: Store>(store: &S) -> Revision {
    store.range("", crate::Page::first(1)).await.expect("the newest revision can be read").revision
}

/// The next batch that has changes.
async fn next_changes(watch: &mut WatchStream) -> WatchBatch {
    loop {
        let batch = next_item(watch).await.expect("the watch goes on");
        if !batch.changes.is_empty() {
            return batch;
        }
    }
}

async fn next_item(watch: &mut WatchStream) -> Result<WatchBatch, WatchError> {
    let item = tokio::time::timeout(DEADLINE, watch.next()).await.expect("a watch reports within the deadline");
    item.expect("a watch ends with an error only")
}

/// The watch's batches with changes up to and with revision `until`, each later than the one before.
async fn changes_until(watch: &mut WatchStream, until: Revision) -> Vec<WatchBatch> {
    let mut batches: Vec<WatchBatch> = Vec::new();
    while batches.last().is_none_or(|last| last.revision < until) {
        let batch = next_changes(watch).await;
        if let Some(last) = batches.last() {
            assert!(last.revision < batch.revision, "revision {} after {}", batch.revision, last.revision);
        }
        batches.push(batch);
    }
    assert_eq!(batches.last().map(|last| last.revision), Some(until));
    batches
}

/// Which keys were put (`+`) and deleted (`-`), in key order.
fn summary(batch: &WatchBatch) -> Vec<String> {
    let mut summary: Vec<String> = batch
        .changes
        .iter()
        .map(|change| match change {
            Change::Put(entry) => format!("+{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
            Change::Delete { key } => format!("-{key}"),
        })
        .collect();
    summary.sort_by(|left, right| left[1..].cmp(&right[1..]));
    summary
}

fn is_compacted(error: &StoreError) -> bool {
    matches!(error, StoreError::Compacted { .. })
}
