//! Watchers are told everything once, then what changes.

use std::time::Duration;

use federation_api::client::trust::TrustCursor;
use federation_api::record::v1::Signed;
use federation_api::trust::v1::trust_client::TrustClient;
use federation_api::trust::v1::watch_request::Request as Kind;
use federation_api::trust::v1::{WatchAck, WatchRequest, WatchResponse, WatchStart};
use mesh_tls::Identity;
use tokio_stream::{StreamExt, iter, pending};
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::plane::{Plane, Shut, assert_ended, assert_refused, within};

/// What a delta must hold about a cluster that has just joined.
fn assert_tells_of(update: &WatchResponse, cluster: &Cluster) {
    assert!(!update.full, "a delta");
    assert_eq!(update.members.as_slice(), std::slice::from_ref(&cluster.member), "the new member alone");
    assert_eq!(update.bundles.as_slice(), std::slice::from_ref(&cluster.bundle), "its bundle alone");
    assert_eq!((update.version, &update.deny_list), (0, &None));
    assert!(update.federation_roots.is_empty());
}

#[tokio::test]
async fn a_watcher_gets_the_full_state_and_then_deltas() {
    let plane = Plane::start().await;
    let mut federator = plane.watch(&plane.federator(), TrustCursor::default());
    let nothing = federator.update().await;
    assert!(nothing.full && nothing.members.is_empty() && nothing.bundles.is_empty());
    assert_eq!((nothing.version, nothing.federation_roots), (1, vec![plane.authority.root().to_vec()]));

    let east = plane.join("east").await;
    let of_east = federator.update().await;
    assert_tells_of(&of_east, &east);
    assert!(of_east.epoch > nothing.epoch);
    let west = plane.join("west").await;
    assert_tells_of(&federator.update().await, &west);

    let full = plane.watch(&west.identity, TrustCursor::default()).update().await;
    assert!(full.full);
    assert_eq!(full.members, [east.member.clone(), west.member.clone()]);
    assert_eq!(full.bundles, [east.bundle.clone(), west.bundle.clone()]);
    assert_eq!((full.version, full.federation_roots), (1, vec![plane.authority.root().to_vec()]));

    plane.store_deny_list(1, &[Shut::Identity("spiffe://mesh.example/service/x")]).await;
    let denied = federator.update().await;
    assert!(!denied.full && denied.members.is_empty() && denied.bundles.is_empty() && denied.deny_list.is_some());
}

#[tokio::test]
async fn two_watchers_hear_the_same() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let mut first = plane.watch(&east.identity, TrustCursor::default());
    let mut second = plane.watch(&east.identity, TrustCursor::default());
    assert_eq!(first.update().await, second.update().await);
    plane.join("west").await;
    assert_eq!(first.update().await, second.update().await);
}

#[tokio::test]
async fn a_watch_resumes_after_the_epoch_that_was_applied() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let cursor = plane.watch(&east.identity, TrustCursor::default()).update().await.cursor();

    let mut resumed = plane.watch(&east.identity, cursor.clone());
    let nothing = resumed.update().await;
    assert!(!nothing.full && nothing.members.is_empty() && nothing.bundles.is_empty());
    assert_eq!(nothing.cursor(), cursor);
    drop(resumed);

    let west = plane.join("west").await;
    let mut resumed = plane.watch(&east.identity, cursor.clone());
    let missed = resumed.update().await;
    assert!(!missed.full);
    assert_eq!((missed.members, missed.bundles), (vec![west.member], vec![west.bundle]));

    // What this service cannot know of is answered with everything.
    let other_history = TrustCursor { incarnation: "00000000deadbeef".to_owned(), ..cursor.clone() };
    let from_the_future = TrustCursor { epoch: u64::MAX, ..cursor };
    for cursor in [other_history, from_the_future] {
        let update = plane.watch(&east.identity, cursor).update().await;
        assert!(update.full);
        assert_eq!(update.members.len(), 2);
    }
}

#[tokio::test]
async fn what_is_not_part_of_the_trust_state_wakes_nobody() {
    let plane = Plane::start().await;
    let mut watcher = plane.watch(&plane.federator(), TrustCursor::default());
    watcher.update().await;
    for key in ["exports/shop/cart/east", "alive/east", "tokens/x", "members/a/b", "quarantine/x"] {
        plane.put(key, "not ours").await;
    }
    let east = plane.join("east").await;
    assert_tells_of(&watcher.update().await, &east);
}

#[tokio::test]
async fn a_quarantine_ends_the_open_watches_of_whom_it_names() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let mut of_east = plane.watch(&east.identity, TrustCursor::default());
    let mut of_west = plane.watch(&west.identity, TrustCursor::default());
    of_east.update().await;
    of_west.update().await;
    plane.store_deny_list(1, &[Shut::Cluster("east")]).await;
    assert_ended(&of_east.end().await, Code::PermissionDenied, "cluster east is quarantined");
    assert!(of_west.update().await.deny_list.is_some(), "the others learn who");
    let mut again = plane.watch(&east.identity, TrustCursor::default());
    assert_ended(&again.end().await, Code::PermissionDenied, "cluster east is quarantined");
    plane.store_deny_list(2, &[Shut::Generation("west", u64::MAX)]).await;
    assert_ended(&of_west.end().await, Code::PermissionDenied, "evicted");
    // Released by the operator's word, east comes back by itself.
    let released = of_east.update_again().await;
    assert_eq!(released.deny_list.unwrap(), plane_list(&plane).await);
}

async fn plane_list(plane: &Plane) -> Signed {
    use prost::Message;
    Signed::decode(plane.stored().await["quarantine"].as_slice()).unwrap()
}

#[tokio::test]
async fn a_watch_must_start_properly() {
    let plane = Plane::start().await;
    let federator = plane.federator();
    let start = |versions: &[u32]| Kind::Start(WatchStart { versions: versions.to_vec(), ..WatchStart::default() });
    let ack = Kind::Ack(WatchAck::default());
    for (requests, code, words) in [
        (vec![ack.clone()], Code::InvalidArgument, "must be a start"),
        (vec![start(&[])], Code::FailedPrecondition, "speaks version 1"),
        (vec![start(&[2, 3])], Code::FailedPrecondition, "speaks version 1"),
        (vec![start(&[1]), start(&[1])], Code::InvalidArgument, "starts once"),
    ] {
        assert_refused(raw_watch(&plane, &federator, requests).await, code, words);
    }
    let update = raw_watch(&plane, &federator, vec![start(&[2, 1]), ack]).await.unwrap();
    assert_eq!(update.version, 1);
}

/// Sends these requests and waits for the end, or for a second without one; the first update otherwise.
async fn raw_watch(plane: &Plane, identity: &Identity, requests: Vec<Kind>) -> Result<WatchResponse, Status> {
    let requests = iter(requests).map(|request| WatchRequest { request: Some(request) }).chain(pending());
    let mut client = TrustClient::new(plane.channel(Some(identity)));
    let mut updates = within("the watch", client.watch(requests)).await?.into_inner();
    let first = within("an update", updates.message()).await?.unwrap();
    match tokio::time::timeout(Duration::from_secs(1), updates.message()).await {
        Ok(end) => end.map(|_| first),
        Err(_quiet) => Ok(first),
    }
}

#[tokio::test]
async fn a_drain_ends_watches_and_then_the_service() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    watcher.update().await;
    // A client that asks for nothing does not hold the drain up either.
    let idle = plane.channel(Some(&east.identity));
    federation_api::client::trust::publish_bundle(idle.clone(), east.bundle(11, 2)).await.unwrap();
    let (ended, _stopped) = plane.drain().await;
    ended.unwrap();
    assert_ended(&watcher.end().await, Code::Unavailable, "drains");
    drop(idle);
}
