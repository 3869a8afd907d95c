//! Sessions over real TLS, against the embedded store, with the clients that control-planes use.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sessions/alerts.rs"]
mod alerts;
#[path = "sessions/full.rs"]
mod full;
#[path = "sessions/moves.rs"]
mod moves;
#[path = "sessions/plane.rs"]
mod plane;
#[path = "sessions/previous.rs"]
mod previous;
#[path = "sessions/restored.rs"]
mod restored;
#[path = "sessions/tight.rs"]
mod tight;

use std::time::{Duration, Instant};

use federation::{ClusterName, RecordKey};
use federation_api::client::federation::{SessionCursor, SessionEvent};
use federation_api::federation::v1::federation_client::FederationClient;
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::session_request::Request;
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{ClientHeartbeat, Hello, SessionRequest};
use federation_api::payload::Payload;
use federation_api::record::v1::Statement;
use federation_api::records::{Head, HeadScope};
use federation_api::trust::v1::WatchResponse;
use federator::quota::Quota;
use plane::{Client, Plane, export, key};
use prost::Message;
use tokio_stream::StreamExt;

#[tokio::test]
async fn an_export_reaches_every_other_cluster_that_has_the_namespace() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    let mut north = plane.client("north", &["other"], false, SessionCursor::default()).await;
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    assert_eq!(east.publish(signed.clone()).await, Ok(()));
    assert_eq!(west.next_record().await, signed);
    assert_eq!(east.next_record().await, signed, "a publisher hears its own word too: what the federation holds of it");
    // north gets only what is its to know: the next thing it hears is the record about the gateways.
    let gateways = plane.sign("east", 11, &federation::RecordKey::Gateways, &Payload::Gateways(Vec::new()));
    assert_eq!(east.publish(gateways.clone()).await, Ok(()));
    assert_eq!(north.next_record().await, gateways);
    assert_eq!(east.next_record().await, gateways);
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

#[tokio::test]
async fn a_release_from_quarantine_leaves_no_gap() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    west.until_complete().await;
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    east.publish(signed.clone()).await.unwrap();
    plane.quarantine("east", 1);
    assert!(east.until_disconnected().await.contains("shut out"));
    // West is told: it holds the same deny-list, and lacks nothing once the list changes.
    assert_eq!(west.next_record().await, signed);
    // It would come again, and publish.
    drop(east);
    plane.deny(2, |_| {});
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let later = plane.sign("east", 11, &key("cart"), &export("cart"));
    east.publish(later.clone()).await.unwrap();
    assert_eq!(west.next_record().await, later);
}

#[tokio::test]
async fn what_an_evicted_or_departed_membership_said_is_deleted() {
    let mut plane = Plane::start().await;
    for cluster in ["east", "west"] {
        let mut client = plane.client(cluster, &["shop"], true, SessionCursor::default()).await;
        let signed = plane.sign(cluster, 10, &key("cart"), &export("cart"));
        client.publish(signed).await.unwrap();
    }
    let left = plane.sign("west", 11, &RecordKey::Membership, &Payload::Withdrawal);
    plane.tell(&WatchResponse { departures: vec![left], ..WatchResponse::default() });
    let through = plane.speaker("east").generation;
    plane.deny(1, |list| {
        list.evictions.insert("east".parse().unwrap(), through);
    });
    let cache = plane.replica(0).replica.cache.clone();
    eventually("the records are gone", || cache.read(|index| index.is_empty())).await;
    assert!(plane.refused("east").await.contains("shut out"));
    assert!(plane.refused("west").await.contains("shut out"));
    plane.join("east");
    let mut again = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let signed = plane.sign("east", 1, &key("cart"), &export("cart"));
    assert_eq!(again.publish(signed).await, Ok(()), "a later membership starts anew");
}

#[tokio::test]
async fn a_draining_replica_hands_its_sessions_over_without_a_snapshot() {
    let mut plane = Plane::start().await;
    plane.serve().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let signed = plane.sign("east", 10, &key("cart"), &export("cart"));
    east.publish(signed).await.unwrap();
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    west.until_complete().await;
    assert_eq!(west.welcome.replica, "federator-1");
    plane.replica(1).process.trigger_drain();
    let end = west.until_disconnected().await;
    assert!(end.contains("draining"), "{end}");
    let welcome = west.until_connected().await;
    assert_eq!((welcome.replica.as_str(), welcome.resumed), ("federator-0", true));
    assert_eq!(east.until_connected().await.replica, "federator-0");
    let later = plane.sign("east", 11, &key("cart"), &export("cart"));
    east.publish(later.clone()).await.unwrap();
    assert_eq!(west.next_record().await, later, "only what changed");
    let table = plane.replica(0).replica.cache.liveness().clusters();
    assert!(table[&"east".parse::<ClusterName>().unwrap()].connected, "nobody was lost on the way");
}

#[tokio::test]
async fn a_quota_is_refused_by_its_name_and_a_withdrawal_never_is() {
    let quota = Quota { exports: 1, records: 2, ..Quota::default() };
    let plane = Plane::with_quota(quota).await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let sign = |sequence, name: &str, payload: &Payload| plane.sign("east", sequence, &key(name), payload);
    let results = east.publish_all(vec![sign(1, "a", &export("a")), sign(2, "b", &export("b"))]).await;
    assert!(results[0].refusal.is_none());
    let refusal = results[1].refusal.clone().unwrap();
    assert_eq!((refusal.reason(), refusal.retry_after_ms), (Reason::Quota, 0));
    assert!(refusal.detail.starts_with("exports: the cluster has 1, at most 1"), "{}", refusal.detail);
    assert_eq!(east.publish(sign(3, "a", &Payload::Withdrawal)).await, Ok(()));
    assert_eq!(east.publish(sign(4, "b", &export("b"))).await, Ok(()), "there is room again");
    let third = east.publish_all(vec![sign(5, "c", &Payload::Withdrawal)]).await.remove(0).refusal.unwrap();
    assert!(third.detail.starts_with("records: "), "withdrawals of nothing fill no store: {}", third.detail);
}

#[tokio::test]
async fn a_cluster_that_publishes_too_fast_is_slowed_down_and_loses_nothing() {
    let plane = Plane::with_quota(Quota { updates_per_second: 50, updates_burst: 2, ..Quota::default() }).await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let records: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .zip(1..)
        .map(|(name, sequence)| plane.sign("east", sequence, &key(name), &export(name)))
        .collect();
    let results = east.publish_all(records).await;
    let refusal = results[2].refusal.clone().unwrap();
    assert!(refusal.retry_after_ms > 0 && refusal.detail.starts_with("updatesPerSecond: at most 50"), "{refusal:?}");
    let cache = plane.replica(0).replica.cache.clone();
    let session = east.session.clone();
    tokio::spawn(async move { while east.events.recv().await.is_some() {} });
    eventually("all is stored", || cache.read(|index| index.len()) == 4 && session.unanswered() == 0).await;
}

#[tokio::test]
async fn a_cluster_that_opens_sessions_over_and_over_to_publish_is_told_to_wait() {
    let plane = Plane::with_quota(Quota { updates_per_second: 1, updates_burst: 3, ..Quota::default() }).await;
    let open = async |cluster: &str, publisher| {
        let hello = Hello { versions: vec![1], publisher, ..Hello::default() };
        let hello = SessionRequest { request: Some(Request::Hello(hello)) };
        FederationClient::new(plane.channel(cluster)).session(tokio_stream::iter([hello])).await.map(drop)
    };
    let mut opened = 0;
    let refused = loop {
        match open("east", true).await {
            Ok(()) => opened += 1,
            Err(refused) => break refused,
        }
        assert!(opened < 100, "each is a write to the store");
    };
    assert!(opened >= 3 && refused.code() == tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().starts_with("updatesPerSecond"), "{refused}");
    open("east", false).await.unwrap();
    open("west", true).await.unwrap();
}

#[tokio::test]
async fn a_replica_that_drains_under_changes_loses_none_of_them_and_costs_no_snapshot() {
    const CHANGES: u64 = 60;
    let mut plane = Plane::start().await;
    plane.serve().await;
    let east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    west.until_complete().await;
    let (publisher, mut events) = (east.session, east.events);
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    for number in 0..CHANGES {
        let name = format!("service-{number}");
        publisher.publish(vec![plane.sign("east", 10 + number, &key(&name), &export(&name))]);
        if number == CHANGES / 2 {
            plane.replica(1).process.trigger_drain();
        }
        tokio::task::yield_now().await;
    }
    let (mut told, mut moved) = (std::collections::BTreeSet::new(), false);
    while told.len() < usize::try_from(CHANGES).unwrap() || !moved {
        match until(&mut west, "the changes", Some).await {
            SessionEvent::Changes { records, cursor, .. } => {
                told.extend(records.iter().map(|signed| Statement::decode(signed.message.clone()).unwrap().key));
                west.session.applied(cursor);
            }
            SessionEvent::Connected(welcome) => {
                assert_eq!((welcome.replica.as_str(), welcome.resumed), ("federator-0", true));
                moved = true;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn versions_are_negotiated_and_what_is_unknown_ends_no_session() {
    let plane = Plane::start().await;
    let hello = |versions: &[u32]| SessionRequest {
        request: Some(Request::Hello(Hello { versions: versions.to_vec(), ..Hello::default() })),
    };
    let mut client = FederationClient::new(plane.channel("east"));
    let refused = client.session(tokio_stream::iter([hello(&[2, 3])])).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("[1]") && refused.message().contains("[2, 3]"), "{refused}");
    // A kind of request that this version does not know arrives as one without a kind.
    let beat = SessionRequest { request: Some(Request::Heartbeat(ClientHeartbeat::default())) };
    let requests = vec![hello(&[1, 2, 99]), SessionRequest { request: None }, beat];
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let mut answers = client.session(requests).await.unwrap().into_inner();
    let welcome = answers.message().await.unwrap().unwrap();
    assert!(matches!(welcome.response, Some(Response::Welcome(welcome)) if welcome.version == 1));
    let beating = async {
        loop {
            if let Some(Response::Heartbeat(_)) = answers.message().await.unwrap().unwrap().response {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), beating).await.unwrap();
}

#[tokio::test]
async fn a_withdrawal_goes_when_the_heads_speak_for_it_and_cannot_be_undone_by_an_old_word() {
    // A cluster that uses half of its quota for withdrawals keeps none for others' convenience.
    let plane = Plane::with_quota(Quota { records: 3, exports: 3, ..Quota::default() }).await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let old = plane.sign("east", 10, &key("a"), &export("a"));
    east.publish(old.clone()).await.unwrap();
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    west.next_record().await;
    let early = west.until_complete().await;
    drop(west);
    let withdrawals = [("a", 11), ("b", 12)].map(|(name, at)| plane.sign("east", at, &key(name), &Payload::Withdrawal));
    east.publish_all(withdrawals.to_vec()).await;
    let heads = plane.sign("east", 13, &RecordKey::Heads, &Payload::Heads(Vec::new()));
    east.publish(heads.clone()).await.unwrap();
    // What changes memberships wakes the collector.
    plane.deny(1, |_| {});
    let cache = plane.replica(0).replica.cache.clone();
    eventually("the withdrawals are collected", || cache.read(|index| index.len()) == 1).await;
    assert_eq!(east.publish(old).await, Err(Reason::Stale), "the heads speak for it");
    let mut west = plane.client("west", &["shop"], false, early).await;
    assert!(!west.welcome.resumed, "what it lacks can be told by a snapshot only");
    assert_eq!(west.next_record().await, heads);
}

#[tokio::test]
async fn a_receiver_that_reads_nothing_is_seen_and_costs_a_few_messages() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    // Neither acknowledges anything.
    let west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    east.publish(plane.sign("east", 10, &key("cart"), &export("cart"))).await.unwrap();
    let replica = plane.replica(0).replica.clone();
    let slow = || {
        let sessions = replica.registry.list(Instant::now(), replica.cache.revision());
        sessions.iter().any(|session| session.cluster == "west" && session.unacknowledged_ms > 600)
    };
    eventually("the slow session shows", slow).await;
    eventually("and in the metrics", || {
        let text = plane.replica(0).process.metrics_text().unwrap();
        text.lines().any(|line| line.contains("sessions_lagging") && line.ends_with(" 2"))
    })
    .await;
    drop(west);
    eventually("it is gone", || replica.registry.len() == 1).await;
}

#[tokio::test]
async fn heads_are_told_only_to_those_whom_they_concern() {
    let plane = Plane::start().await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    let mut north = plane.client("north", &["other"], false, SessionCursor::default()).await;
    let say = |sequence, name: &str, others: u64| {
        let of = |namespace: &str, key: &RecordKey, sequence| {
            Head::of(HeadScope::of(key).unwrap(), [(key, sequence)].into_iter().filter(|_| !namespace.is_empty()))
        };
        let other = "exports/other/x".parse().unwrap();
        let heads = vec![of("shop", &key(name), sequence), of("other", &other, others)];
        [
            plane.sign("east", sequence, &key(name), &export(name)),
            plane.sign("east", sequence + 1, &RecordKey::Heads, &Payload::Heads(heads)),
        ]
    };
    let first = say(10, "cart", 5);
    east.publish_all(first.to_vec()).await;
    assert_eq!(north.next_record().await, first[1], "all of it is new");
    let second = say(20, "cart", 5);
    east.publish_all(second.to_vec()).await;
    let third = say(30, "cart", 6);
    east.publish_all(third.to_vec()).await;
    assert_eq!(north.next_record().await, third[1], "the word between was about shop alone");
    let last = loop {
        let record = west.next_record().await;
        if record == third[1] {
            break record;
        }
    };
    assert_eq!(last, third[1]);
}

/// Polls until it holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let polled = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), polled).await.unwrap_or_else(|_| panic!("{what}: not in time"));
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
