//! The embedded store keeps the contract of every backend.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU32, Ordering};

use federation_store::{EmbeddedStore, contract};

/// Opens a new store in a new file below `directory` each time.
fn stores(directory: &tempfile::TempDir) -> impl AsyncFn() -> EmbeddedStore {
    let count = AtomicU32::new(0);
    async move || {
        let name = format!("{}.redb", count.fetch_add(1, Ordering::Relaxed));
        EmbeddedStore::open(directory.path().join(name)).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_keep_the_contract() {
    contract::check_transactions(&stores(&tempfile::tempdir().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_keep_the_contract() {
    contract::check_ranges(&stores(&tempfile::tempdir().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_keep_the_contract() {
    contract::check_watches(&stores(&tempfile::tempdir().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_keep_the_contract_in_real_time() {
    contract::check_leases(&stores(&tempfile::tempdir().unwrap())).await;
}

#[tokio::test(start_paused = true)]
async fn one_thread_keeps_the_whole_contract_in_paused_time() {
    contract::check_all(stores(&tempfile::tempdir().unwrap())).await;
}
