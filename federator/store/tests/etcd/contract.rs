//! etcd keeps the contract of every backend.

use federation_store::contract;

use crate::support::lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_whole_contract() {
    let lab = lab().await;
    contract::check_all(async || lab.store().await).await;
}
