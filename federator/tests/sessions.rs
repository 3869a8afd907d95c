//! Sessions over real TLS, against the embedded store, with the clients that control-planes use.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sessions/plane.rs"]
mod plane;

use std::time::Duration;

use federation_api::client::federation::{SessionCursor, SessionEvent};
use federation_api::federation::v1::refusal::Reason;
use federation_api::payload::Payload;
use federation_api::record::v1::Statement;
use plane::{Client, Plane, export, key};
use prost::Message;

#[tokio::test]
async fn an_export_reaches_every_other_cluster_that_has_the_namespace() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    let mut north = plane.client("north", &["other"], false, SessionCursor::default()).await;
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    assert_eq!(east.publish(signed.clone()).await, Ok(()));
    assert_eq!(west.next_record().await, signed);
    // north and east get only what is theirs to know: the next thing both hear is the record about the gateways.
    let gateways = plane.sign("east", 11, &federation::RecordKey::Gateways, &Payload::Gateways(Vec::new()));
    assert_eq!(east.publish(gateways.clone()).await, Ok(()));
    assert_eq!(north.next_record().await, gateways);
    let of_west = plane.sign("west", 12, &federation::RecordKey::Gateways, &Payload::Gateways(Vec::new()));
    let mut publisher = plane.client("west", &["shop"], true, SessionCursor::default()).await;
    assert_eq!(publisher.publish(of_west.clone()).await, Ok(()));
    assert_eq!(east.next_record().await, of_west);
}

#[tokio::test]
async fn what_is_not_the_callers_own_or_not_newer_is_refused() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], true, SessionCursor::default()).await;
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    assert_eq!(west.publish(signed.clone()).await, Err(Reason::NotYours), "another cluster's record");
    let mut forged = signed.clone();
    forged.signature = plane.sign("east", 11, &key("cart"), &export("cart")).signature;
    assert_eq!(east.publish(forged).await, Err(Reason::NotYours), "a signature of other content");
    assert_eq!(east.publish(signed.clone()).await, Ok(()), "its own");
    assert_eq!(east.publish(signed).await, Ok(()), "the very same again");
    let older = plane.sign("east", 9, &key("cart"), &export("cart"));
    assert_eq!(east.publish(older).await, Err(Reason::Stale), "a lower sequence");
    let other = plane.sign("east", 10, &key("cart"), &Payload::Withdrawal);
    assert_eq!(east.publish(other).await, Err(Reason::Equivocation), "other content under the same sequence");
    let foreign = plane.sign("east", 20, &"exports/secret/cart".parse().unwrap(), &plane::export_in("secret", "cart"));
    assert_eq!(east.publish(foreign).await, Err(Reason::NotDelegated), "a namespace that was not delegated");
}

#[tokio::test]
async fn a_session_resumes_where_it_was_and_hears_of_withdrawals_by_their_signed_word() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    for (sequence, name) in [(10, "a"), (11, "b")] {
        east.publish(plane.sign("east", sequence, &key(name), &export(name))).await.unwrap();
    }
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    west.next_record().await;
    west.next_record().await;
    let cursor = west.until_complete().await;
    drop(west);
    let withdrawn = plane.sign("east", 12, &key("a"), &Payload::Withdrawal);
    east.publish(withdrawn.clone()).await.unwrap();
    let mut west = plane.client("west", &["shop"], false, cursor).await;
    assert!(west.welcome.resumed);
    assert_eq!(west.next_record().await, withdrawn, "only what changed since");
}

#[tokio::test]
async fn a_newer_publisher_fences_the_older_one() {
    let plane = Plane::start().await;
    let mut older = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut newer = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    assert!(newer.welcome.session_epoch > older.welcome.session_epoch);
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    assert_eq!(older.publish(signed.clone()).await, Err(Reason::NotPublisher));
    assert_eq!(newer.publish(signed).await, Ok(()));
}

#[tokio::test]
async fn a_lost_cluster_becomes_suspect_and_keeps_its_exports() {
    let plane = Plane::start().await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    east.publish(signed.clone()).await.unwrap();
    west.until_liveness("east", true).await;
    drop(east);
    west.until_liveness("east", false).await;
    let mut north = plane.client("north", &["shop"], false, SessionCursor::default()).await;
    assert_eq!(north.next_record().await, signed, "disconnection deletes nothing");
}

#[tokio::test]
async fn strangers_and_shut_out_clusters_get_no_session() {
    let plane = Plane::start().await;
    assert!(plane.refused("stranger").await.contains("not known here"), "no member");
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    plane.quarantine("west", 1);
    let end = west.until_disconnected().await;
    assert!(end.contains("shut out"), "{end}");
    assert!(plane.refused("west").await.contains("shut out"));
    let mut north = plane.client("north", &["shop"], false, SessionCursor::default()).await;
    north.until_complete().await;
}

#[tokio::test]
async fn records_survive_a_restart_of_the_service() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    east.publish(signed.clone()).await.unwrap();
    drop(east);
    let plane = plane.restart().await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    assert_eq!(west.next_record().await, signed);
    assert_eq!(Statement::decode(signed.message).unwrap().sequence, 10);
}

/// Waits for an event that `wanted` turns into a value.
async fn until<T>(client: &mut Client, what: &str, mut wanted: impl FnMut(SessionEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(client.events.recv().await.unwrap()) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}
