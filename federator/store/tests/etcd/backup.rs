//! A federation moves from the embedded store to etcd, and from one etcd to another.

use federation_store::backup::{export, import};
use federation_store::{EmbeddedConfig, EmbeddedStore, EtcdStore, Store, StoreConfig, Transaction};

use crate::support::lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_moves_to_etcd_and_on() {
    let lab = lab().await;
    let folder = tempfile::tempdir().unwrap();
    let (from, file) = (folder.path().join("from.redb"), folder.path().join("backup.jsonl"));
    let embedded = EmbeddedStore::open(&from).await.unwrap();
    for number in 0..300 {
        let put = Transaction::new().put(format!("exports/shop/cart-{number:03}/east"), vec![7; 8000]);
        assert!(embedded.commit(put).await.unwrap().done().is_some());
    }
    let before = embedded.snapshot("").await.unwrap().entries;
    embedded.close().await;

    let etcd = |prefix| StoreConfig::Etcd(lab.cluster.config(prefix));
    export(StoreConfig::Embedded(EmbeddedConfig { file: from }), "federator", &file).await.unwrap();
    import(etcd("/first/"), "federator", &file).await.unwrap();
    // While it is in use, as replicas on etcd are.
    let first = EtcdStore::open(lab.cluster.config("/first/")).await.unwrap();
    export(etcd("/first/"), "federator", &file).await.unwrap();
    import(etcd("/second/"), "federator", &file).await.unwrap();

    let second = EtcdStore::open(lab.cluster.config("/second/")).await.unwrap();
    for store in [&first, &second] {
        let after = store.snapshot("").await.unwrap().entries;
        let same = |(one, other): (&federation_store::Entry, &federation_store::Entry)| {
            one.key == other.key && one.value == other.value
        };
        assert_eq!(after.len(), before.len());
        assert!(before.iter().zip(&after).all(same));
    }
}
