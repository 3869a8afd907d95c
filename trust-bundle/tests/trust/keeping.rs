//! What must not be forgotten.

use federation_api::client::trust::{TrustCursor, publish_bundle, renew};
use mesh_tls::new_key_and_csr;
use prost::Message;
use std::time::{Duration, SystemTime};
use tonic::Code;

use crate::cluster::Attempt;
use crate::plane::{Plane, Shut, assert_ended, assert_refused};

#[tokio::test]
async fn a_restart_keeps_everything() {
    let plane = Plane::start().await;
    let token = plane.token("east", SystemTime::now());
    let (east, west, north) = (plane.join_with(&token).await, plane.join("west").await, plane.join("north").await);
    publish_bundle(plane.channel(Some(&east.identity)), east.bundle(20, 5)).await.unwrap();
    plane.store_deny_list(1, &[Shut::Cluster("north")]).await;
    let before = plane.watch(&west.identity, TrustCursor::default()).update().await;

    let plane = plane.restart().await;
    let mut watcher = plane.watch(&west.identity, TrustCursor::default());
    assert_eq!(watcher.update().await, before, "members, bundles, deny-list, incarnation and epoch");
    let resumed = plane.watch(&west.identity, before.cursor()).update().await;
    assert!(!resumed.full && resumed.members.is_empty() && resumed.bundles.is_empty());
    assert_refused(plane.send(&Attempt::new(&token)).await, Code::FailedPrecondition, "used already");
    let replayed = publish_bundle(plane.channel(Some(&east.identity)), east.bundle(19, 6)).await;
    assert_refused(replayed, Code::FailedPrecondition, "not above 20");
    let mut shut_out = plane.watch(&north.identity, TrustCursor::default());
    assert_ended(&shut_out.end().await, Code::PermissionDenied, "quarantined");
    let newer = east.bundle(21, 6);
    publish_bundle(plane.channel(Some(&east.identity)), newer.clone()).await.unwrap();
    assert_eq!(watcher.update().await.bundles, [newer]);
}

#[tokio::test]
async fn garbage_in_the_store_keeps_the_last_good() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let old = plane.join_with(&plane.token("east", now)).await;
    let east = plane.join_with(&plane.token("east", now + Duration::from_millis(1))).await;
    let (west, north) = (plane.join("west").await, plane.join("north").await);
    let forgery = plane.root.deny(&federation_api::record::v1::DenyList::default()).encode_to_vec();
    plane.store_deny_list(5, &[Shut::Cluster("north")]).await;
    let good = plane.watch(&west.identity, TrustCursor::default()).update().await;

    let older_list = plane.deny_list(4, &[]).encode_to_vec();
    let (bundle_key, west_bundle) = ("bundles/east.mesh.example", west.bundle.encode_to_vec());
    for (key, value) in [
        ("members/east", b"\xff\xff\xff".to_vec()),
        ("members/east", Vec::new()),
        ("members/east", west.member.encode_to_vec()),
        ("members/east", old.member.encode_to_vec()),
        (bundle_key, b"\xff\xff\xff".to_vec()),
        (bundle_key, Vec::new()),
        (bundle_key, west_bundle),
        (bundle_key, old.bundle.encode_to_vec()),
        ("bundles/nowhere.example", east.bundle.encode_to_vec()),
        ("quarantine", b"\xff\xff\xff".to_vec()),
        ("quarantine", Vec::new()),
        ("quarantine", forgery),
        ("quarantine", older_list),
    ] {
        plane.put(key, value).await;
    }
    for key in ["members/west", "bundles/west.mesh.example", "quarantine"] {
        let delete = federation_store::Transaction::new().delete(key);
        assert!(federation_store::Store::commit(&plane.store, delete).await.unwrap().done().is_some());
    }
    // Changes are taken in order: when this one is known, all of the above was looked at.
    let south = plane.join("south").await;
    let mut update = plane.watch(&west.identity, TrustCursor::default()).update().await;
    assert!(update.members.contains(&south.member) && update.bundles.contains(&south.bundle));
    update.members.retain(|member| *member != south.member);
    update.bundles.retain(|bundle| *bundle != south.bundle);
    assert_eq!((update.members, update.bundles, update.deny_list), (good.members, good.bundles, good.deny_list));

    // And it is what calls are judged by.
    let metrics = plane.process.metrics_text().unwrap();
    assert!(metrics.contains("isthmus_test_ignored_values_total 13\n"), "{metrics}");
    let csr = || new_key_and_csr().unwrap().1;
    renew(plane.channel(Some(&west.identity)), csr()).await.unwrap();
    let refused = renew(plane.channel(Some(&north.identity)), csr()).await;
    assert_refused(refused, Code::PermissionDenied, "quarantined");
    let newer = plane.token("north", SystemTime::now() + Duration::from_millis(1));
    assert_refused(plane.send(&Attempt::new(&newer)).await, Code::PermissionDenied, "quarantined");
    let older = plane.token("west", now - Duration::from_secs(60));
    assert_refused(plane.send(&Attempt::new(&older)).await, Code::FailedPrecondition, "generation");
    let refused = publish_bundle(plane.channel(Some(&old.identity)), old.bundle(11, 2)).await;
    assert_refused(refused, Code::PermissionDenied, "was replaced by generation");
    let stale = publish_bundle(plane.channel(Some(&east.identity)), east.bundle(9, 9)).await;
    assert_refused(stale, Code::FailedPrecondition, "not above 10");
    // A good value mends what was spoilt.
    publish_bundle(plane.channel(Some(&east.identity)), east.bundle(11, 2)).await.unwrap();
}
