//! A store without space: whoever wants to publish is told so and waits, readers are served.

use federation_api::client::federation::{SessionCursor, SessionEvent};
use federation_api::federation::v1::federation_client::FederationClient;
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::session_request::Request;
use federation_api::federation::v1::{Hello, SessionRequest};

use super::plane::{Client, Plane, export, key};
use super::{eventually, until};

#[tokio::test]
async fn a_full_store_refuses_records_for_now_and_ends_no_session() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let first = plane.sign("east", 10, &key("a"), &export("a"));
    east.publish(first.clone()).await.unwrap();
    plane.store.set_full(true);
    let malformed = plane.sign("west", 11, &key("c"), &export("c"));
    let results = east.publish_all(vec![plane.sign("east", 11, &key("b"), &export("b")), malformed]).await;
    let refusal = results[0].refusal.clone().unwrap();
    assert_eq!((refusal.reason(), results[0].revision), (Reason::NoSpace, 0));
    assert!((5_000..10_000).contains(&refusal.retry_after_ms), "{refusal:?}");
    assert!(refusal.detail.contains("full"), "{}", refusal.detail);
    assert_eq!(results[1].refusal.clone().unwrap().reason(), Reason::NotYours, "its own fault stays its own");
    // Who only reads needs no space; a client that would take a refusal for the last word gets no session to publish.
    says_that_the_store_is_full(&plane).await;
    let mut north = plane.client("north", &["shop"], false, SessionCursor::default()).await;
    assert_eq!(north.next_record().await, first);
    drop(north);
    plane.store.set_full(false);
    // The client keeps the record and comes again by itself, on the same session.
    let stored = until(&mut east, "the record is stored", |event| match event {
        SessionEvent::Published(results) => Some(results),
        SessionEvent::Disconnected { reason, .. } => panic!("{reason}"),
        _ => None,
    });
    let stored = stored.await;
    assert_eq!((stored[0].sequence, stored[0].refusal.clone()), (11, None));
    let cache = plane.replica(0).replica.cache.clone();
    eventually("both are there", || cache.read(|index| index.len()) == 2).await;
    eventually("one session is left", || plane.replica(0).replica.registry.len() == 1).await;
}

#[tokio::test]
async fn a_replica_that_starts_on_a_full_store_says_so_to_publishers_and_serves_readers() {
    let mut plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let first = plane.sign("east", 10, &key("a"), &export("a"));
    east.publish(first.clone()).await.unwrap();
    plane.store.set_full(true);
    // Clients try the last one first. It is granted no lease.
    plane.serve().await;
    says_that_the_store_is_full(&plane).await;
    let mut north = plane.client("north", &["shop"], false, SessionCursor::default()).await;
    assert_eq!(north.welcome.replica, "federator-1");
    assert_eq!(north.next_record().await, first);
    // Nor does it take a lease to be told what others say, before one's own records are taken.
    let mut west = plane.client("west", &["shop"], true, SessionCursor::default()).await;
    assert_eq!((west.welcome.replica.as_str(), west.welcome.session_epoch), ("federator-1", 0));
    assert_eq!(west.next_record().await, first);
    publishes_when_there_is_room(&plane, &mut west, "west").await;
}

#[tokio::test]
async fn a_publisher_that_comes_back_to_a_full_store_reads_and_publishes_when_there_is_room() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], true, SessionCursor::default()).await;
    let first = plane.sign("east", 10, &key("a"), &export("a"));
    east.publish(first.clone()).await.unwrap();
    west.publish(plane.sign("west", 10, &key("w"), &export("w"))).await.unwrap();
    plane.store.set_full(true);
    drop(west);
    let mut west = plane.client("west", &["shop"], true, SessionCursor::default()).await;
    assert_eq!(west.welcome.session_epoch, 0);
    assert_eq!(west.next_record().await, first);
    publishes_when_there_is_room(&plane, &mut west, "west").await;
}

#[tokio::test]
async fn of_two_publishers_that_wait_for_room_the_one_that_came_before_another_leader_fences_nobody() {
    let plane = Plane::start().await;
    // The replica has its lease by then.
    drop(plane.client("east", &["shop"], true, SessionCursor::default()).await);
    plane.store.set_full(true);
    let mut older = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    assert_eq!(older.welcome.session_epoch, 0);
    plane.store.set_full(false);
    let mut leader = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    assert!(leader.welcome.session_epoch > 0);
    older.session.publish(vec![plane.sign("east", 20, &key("old"), &export("old"))]);
    assert!(older.until_disconnected().await.contains("another session of cluster east publishes"));
    drop(older);
    assert_eq!(leader.publish(plane.sign("east", 21, &key("a"), &export("a"))).await, Ok(()));
}

/// A record is refused for now, and taken by itself once there is room.
async fn publishes_when_there_is_room(plane: &Plane, client: &mut Client, cluster: &str) {
    let results = client.publish_all(vec![plane.sign(cluster, 11, &key("b"), &export("b"))]).await;
    let refusal = results[0].refusal.clone().unwrap();
    assert_eq!((refusal.reason(), results[0].revision), (Reason::NoSpace, 0));
    plane.store.set_full(false);
    let stored = until(client, "the record is stored", |event| match event {
        SessionEvent::Published(results) if results[0].refusal.is_none() => Some(results),
        SessionEvent::Disconnected { reason, .. } => panic!("{reason}"),
        _ => None,
    });
    assert_eq!(stored.await[0].sequence, 11);
}

async fn says_that_the_store_is_full(plane: &Plane) {
    let hello = Hello { versions: vec![1], publisher: true, ..Hello::default() };
    let hello = SessionRequest { request: Some(Request::Hello(hello)) };
    let refused = FederationClient::new(plane.channel("west")).session(tokio_stream::iter([hello])).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("store is full"), "{refused}");
}
