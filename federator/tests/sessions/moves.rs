//! A federation that moves: replicas are replaced one after the other, and a store is written to a file and read into
//! another one, while its members go on.

use std::collections::BTreeSet;

use federation_api::client::Disconnect;
use federation_api::client::federation::{SessionCursor, SessionEvent};
use federation_api::record::v1::Statement;
use prost::Message as _;
use tokio::sync::mpsc;

use super::plane::{Client, Plane, export, key};
use super::restored::{Receiver, say};
use super::until;

/// What a publisher's session comes to.
async fn watched(mut client: Client, told: mpsc::UnboundedSender<u64>) -> Vec<String> {
    let mut troubles = Vec::new();
    while let Some(event) = client.events.recv().await {
        match event {
            SessionEvent::Published(results) => {
                for result in results {
                    match result.refusal {
                        None => drop(told.send(result.sequence)),
                        Some(refusal) => troubles.push(format!("{refusal:?}")),
                    }
                }
                if troubles.is_empty() && told.is_closed() {
                    break;
                }
            }
            SessionEvent::Disconnected { reason, .. } if !sent_away(&reason) => troubles.push(reason.to_string()),
            _ => {}
        }
    }
    troubles
}

/// Told to go, or met a replica that had just closed: no failure, and tried again elsewhere.
fn sent_away(reason: &Disconnect) -> bool {
    matches!(reason, Disconnect::GoingAway(_) | Disconnect::Ended)
}

#[tokio::test]
async fn all_replicas_are_replaced_in_turn_under_changes_and_nothing_is_lost_or_fails() {
    let mut plane = Plane::start().await;
    plane.serve().await;
    let east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    west.until_complete().await;
    let publisher = east.session.clone();
    let (stored, mut acknowledged) = mpsc::unbounded_channel();
    let watching = tokio::spawn(watched(east, stored));
    let (mut said, mut heard) = (0_u64, BTreeSet::new());
    let mut say_and_hear = async |plane: &Plane, count: u64| {
        for _ in 0..count {
            said += 1;
            let name = format!("service-{said}");
            publisher.publish(vec![plane.sign("east", 10 + said, &key(&name), &export(&name))]);
            // One change after the other: each is stored before the next.
            let deadline = std::time::Duration::from_secs(20);
            let sequence = tokio::time::timeout(deadline, acknowledged.recv()).await.unwrap().unwrap();
            assert_eq!(sequence, 10 + said);
        }
        said
    };
    say_and_hear(&plane, 10).await;
    for number in [1, 0] {
        // A replica needs its time to end; changes go on meanwhile.
        let process = plane.replica(number).process.clone();
        process.trigger_drain();
        say_and_hear(&plane, 20).await;
        plane.replace(number).await;
        say_and_hear(&plane, 20).await;
    }
    let said = say_and_hear(&plane, 10).await;
    let (mut moved, mut snapshots) = (0, 0);
    while heard.len() < usize::try_from(said).unwrap() {
        match until(&mut west, "the changes", Some).await {
            SessionEvent::Changes { records, cursor, .. } => {
                heard.extend(records.iter().map(|signed| Statement::decode(signed.message.clone()).unwrap().key));
                west.session.applied(cursor);
            }
            SessionEvent::Connected(welcome) => {
                moved += 1;
                snapshots += u32::from(!welcome.resumed);
            }
            SessionEvent::Disconnected { reason, .. } => assert!(sent_away(&reason), "{reason}"),
            _ => {}
        }
    }
    assert_ne!(moved, 0, "the replica that it was at sent it to the other");
    assert_eq!(snapshots, 0, "it resumed");
    drop(acknowledged);
    publisher.publish(vec![plane.sign("east", 9_999, &key("last"), &export("last"))]);
    assert_eq!(watching.await.unwrap(), Vec::<String>::new(), "no publication failed");
}

#[tokio::test]
async fn members_go_on_across_an_import_of_an_older_export_and_nothing_is_lost_or_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("federation.jsonl");
    let plane = Plane::start().await;
    let mut own = plane.publications("east", Vec::new());
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = Receiver::open(&plane, "west", SessionCursor::default()).await;
    say(&mut east, &mut own, &[("cart", "1"), ("gone", "1")]).await;
    west.until_believes(&plane, &[("cart", "1"), ("gone", "1")]).await;
    let plane = plane.export(&file).await;

    // The file is old by the time it is read.
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    west.moved(&plane, "west", SessionCursor::default()).await;
    say(&mut east, &mut own, &[("cart", "2"), ("new", "1")]).await;
    let cursor = west.until_believes(&plane, &[("cart", "2"), ("new", "1")]).await;
    let known = west.history.len();
    let plane = plane.import(&file).await;

    west.moved(&plane, "west", cursor).await;
    assert!(!west.client.welcome.resumed, "an import is another history");
    // It hears the old words first, and then what their owner says again.
    west.until_believes(&plane, &[("cart", "2"), ("new", "1")]).await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let results = east.publish_all(own.envelopes()).await;
    assert!(results.iter().all(|result| result.refusal.is_none()), "{results:?}");
    let mut north = Receiver::open(&plane, "north", SessionCursor::default()).await;
    north.until_believes(&plane, &[("cart", "2"), ("new", "1")]).await;
    say(&mut east, &mut own, &[("cart", "3"), ("new", "1")]).await;
    west.until_believes(&plane, &[("cart", "3"), ("new", "1")]).await;
    for held in &west.history[known..] {
        assert!(held.get("cart").is_some_and(|it| it == "2" || it == "3"), "rolled back: {:?}", west.history);
        assert!(held.contains_key("new") && !held.contains_key("gone"), "lost or risen: {:?}", west.history);
    }
}
