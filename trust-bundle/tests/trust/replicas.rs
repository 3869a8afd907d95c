//! Two replicas of the service on one store, of which either may die.

use std::time::Duration;

use federation_api::client::trust::operations::put_deny_list;
use federation_api::client::trust::{TrustCursor, list_watchers, publish_bundle};
use federation_api::trust::v1::Watcher as Shown;
use tonic::transport::Channel;

use crate::plane::{Plane, Shut, channel, watch, within};

async fn until(what: &str, channel: &Channel, satisfies: impl Fn(&[Shown]) -> bool) {
    within(what, async {
        while !satisfies(&list_watchers(channel.clone()).await.unwrap().watchers) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_at_one_replica_is_seen_at_the_other() {
    let plane = Plane::start().await;
    let other = plane.replica().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let mut at_one = plane.watch(&east.identity, TrustCursor::default());
    let mut at_other = watch(channel(other.address, &plane.authority, Some(&west.identity)), TrustCursor::default());
    at_one.update().await;
    at_other.update().await;
    let epoch = put_deny_list(plane.operations(), plane.deny_list(1, &[])).await.unwrap();
    for watcher in [&mut at_one, &mut at_other] {
        let update = watcher.update().await;
        assert_eq!(update.epoch, epoch);
        watcher.acks.applied(update.cursor(), Vec::new(), 2);
    }
    let all = |watchers: &[Shown]| {
        watchers.len() == 2 && watchers.iter().all(|watcher| watcher.connected && watcher.acknowledged == epoch)
    };
    let operator = plane.operator();
    until("both at one", &plane.channel(Some(&operator)), all).await;
    until("both at the other", &channel(other.address, &plane.authority, Some(&operator)), all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_dies_and_the_other_goes_on_with_what_it_said() {
    let plane = Plane::start().await;
    let other = plane.replica().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let mut at_other = watch(channel(other.address, &plane.authority, Some(&west.identity)), TrustCursor::default());
    let update = at_other.update().await;
    at_other.acks.applied(update.cursor(), Vec::new(), 1);
    let operations = plane.operations();
    until("the acknowledgement", &operations, |watchers| {
        watchers.iter().any(|watcher| watcher.connected && watcher.acknowledged == update.epoch)
    })
    .await;
    // What the other one took is what this one tells.
    let newer = east.bundle(11, 2);
    publish_bundle(channel(other.address, &plane.authority, Some(&east.identity)), newer.clone()).await.unwrap();
    drop(other);
    until("its watcher's absence", &operations, |watchers| {
        watchers.len() == 1 && !watchers[0].connected && watchers[0].acknowledged == update.epoch
    })
    .await;
    let mut here = plane.watch(&west.identity, update.cursor());
    let resumed = here.update().await;
    assert!(!resumed.full);
    assert_eq!(resumed.bundles, [newer]);
    until("its return", &operations, |watchers| watchers.len() == 1 && watchers[0].connected).await;
    put_deny_list(operations, plane.deny_list(1, &[Shut::Cluster("east")])).await.unwrap();
    assert!(here.update().await.deny_list.is_some());
}
