#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use federation_api::record::v1::{Export, Statement, statement};
use prost::Message as _;

use super::*;

const ALL: Limit = Limit { records: usize::MAX, bytes: usize::MAX };

fn value(cluster: &str, key: &str, sequence: u64, payload: statement::Payload) -> Vec<u8> {
    let statement = Statement {
        federation: "mesh.example".to_owned(),
        cluster: cluster.to_owned(),
        generation: 1,
        sequence,
        key: key.to_owned(),
        payload: Some(payload),
        ..Statement::default()
    };
    Signed { message: statement.encode_to_vec().into(), signature: vec![0; 64].into() }.encode_to_vec()
}

fn export() -> statement::Payload {
    statement::Payload::Export(Export::default())
}

fn put(index: &mut Index, namespace: &str, service: &str, cluster: &str, revision: Revision) {
    let (key, name) = (layout::export(namespace, service, cluster), format!("exports/{namespace}/{service}"));
    index.put(&key, revision, &value(cluster, &name, revision, export())).unwrap();
    index.reach(revision);
}

fn keys(records: &[Signed]) -> Vec<String> {
    records.iter().map(|signed| Statement::decode(signed.message.clone()).unwrap().key).collect()
}

#[test]
fn the_log_holds_the_latest_of_each_key_once() {
    let mut index = Index::default();
    for revision in 1..=1_000 {
        put(&mut index, "shop", &format!("s{}", revision % 10), "east", revision);
    }
    let batch = index.after(0, ALL, |_| true);
    assert_eq!((batch.records.len(), batch.revision, batch.more), (10, 1_000, false));
    assert!(index.log.len() < 1_000, "replaced entries are swept");
    let part = index.after(995, Limit { records: 2, ..ALL }, |_| true);
    assert_eq!(
        (keys(&part.records), part.revision, part.more),
        (vec!["exports/shop/s6".into(), "exports/shop/s7".into()], 997, true)
    );
    assert_eq!(index.usage(&"east".parse().unwrap()).exports, 10);
}

#[test]
fn a_walk_stays_within_its_namespace_and_goes_on_where_it_was() {
    let mut index = Index::default();
    for (revision, namespace) in (1..).zip(["a", "shop", "shop", "shop", "z", "shop-2"]) {
        put(&mut index, namespace, &format!("s{revision}"), "east", revision);
    }
    index.put("heads/east", 9, &value("east", "heads", 9, statement::Payload::Heads(Default::default()))).unwrap();
    let scope = Scope::Namespace("shop".parse().unwrap());
    let one = Limit { records: 1, ..ALL };
    let (mut found, mut walked) = (Vec::new(), None);
    loop {
        let (page, next) = index.walk(&scope, walked.as_ref(), one, |_| true);
        found.extend(keys(&page));
        match next {
            Some(next) => walked = Some(next),
            None => break,
        }
    }
    assert_eq!(found, ["exports/shop/s2", "exports/shop/s3", "exports/shop/s4"]);
    assert_eq!(keys(&index.walk(&Scope::Clusters, None, ALL, |_| true).0), ["heads"]);
}

#[test]
fn a_value_under_another_key_is_not_taken() {
    let mut index = Index::default();
    put(&mut index, "shop", "cart", "east", 1);
    let other = value("west", "exports/shop/cart", 2, export());
    assert!(index.put("exports/shop/cart/east", 2, &other).is_err());
    assert!(index.put("exports/shop/cart/east", 2, b"\xff\xff").is_err());
    assert_eq!(index.record(&"east".parse().unwrap(), "exports/shop/cart").unwrap().revision(), 1);
    index.remove("exports/shop/cart/east");
    assert!(index.is_empty() && index.usages().next().is_none());
}

#[test]
fn who_has_not_come_as_far_as_what_was_collected_cannot_resume() {
    let mut index = Index::default();
    put(&mut index, "shop", "cart", "east", 9);
    index.put(layout::COLLECTED, 10, &5_u64.to_be_bytes()).unwrap();
    index.reach(10);
    assert!(index.can_resume(5) && index.can_resume(10));
    assert!(!index.can_resume(4) && !index.can_resume(0) && !index.can_resume(11));
}
