//! The federation session.

use std::collections::BTreeSet;
use std::time::Duration;

use federation::Namespace;
use federation_api::client::federation::{Session, SessionCursor, SessionEvent, SessionOptions};
use federation_api::client::{Disconnect, Events};
use federation_api::federation::v1::session_request::Request;
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{
    Changes, GoAway, Hello, Limits, PublishResult, Published, ServerHeartbeat, SessionRequest, SessionResponse,
    SnapshotComplete, Welcome,
};
use federation_api::record::v1::{Signed, Statement};
use prost::Message as _;

use crate::server::{self, IMPATIENT, RECONNECT, Server, accept, next, until};

/// For tests in which the server sends none.
const SELDOM: Duration = Duration::from_secs(30);
/// Silence is noticed after three of them.
const OFTEN: Duration = Duration::from_millis(200);

type Call = server::Call<SessionRequest, SessionResponse>;

fn namespaces(names: &[&str]) -> BTreeSet<Namespace> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn options(names: &[&str]) -> SessionOptions {
    SessionOptions {
        replica: "control-plane-0".to_owned(),
        namespaces: namespaces(names),
        publisher: true,
        cursor: SessionCursor::default(),
        reconnect: RECONNECT,
    }
}

fn cursor(incarnation: &str, revision: u64, names: &[&str]) -> SessionCursor {
    SessionCursor { incarnation: incarnation.to_owned(), revision, namespaces: namespaces(names) }
}

fn welcome(incarnation: &str, resumed: bool) -> Response {
    Response::Welcome(terms(incarnation, resumed, SELDOM))
}

fn terms(incarnation: &str, resumed: bool, heartbeat: Duration) -> Welcome {
    Welcome {
        version: 1,
        incarnation: incarnation.to_owned(),
        session_epoch: 1,
        heartbeat_interval_ms: u32::try_from(heartbeat.as_millis()).unwrap(),
        limits: Some(Limits { publish_records: 2, record_bytes: 1024, exports: 100 }),
        resumed,
        replica: "federator-0".to_owned(),
    }
}

fn changes(revision: u64) -> Response {
    Response::Changes(Changes { revision, records: vec![record("gateways", revision)] })
}

fn complete(revision: u64, names: &[&str]) -> Response {
    let namespaces = names.iter().map(|name| (*name).to_owned()).collect();
    Response::SnapshotComplete(SnapshotComplete { revision, namespaces })
}

fn record(key: &str, sequence: u64) -> Signed {
    let statement = Statement { key: key.to_owned(), sequence, ..Statement::default() };
    Signed { message: statement.encode_to_vec().into(), signature: vec![0; 64].into() }
}

fn order(record: &Signed) -> (String, u64) {
    let statement = Statement::decode(record.message.clone()).unwrap();
    (statement.key, statement.sequence)
}

async fn say(call: &Call, response: Response) {
    call.send(SessionResponse { response: Some(response) }).await;
}

async fn hello(call: &mut Call) -> Hello {
    match call.receive().await.request {
        Some(Request::Hello(hello)) => hello,
        other => panic!("{other:?}"),
    }
}

/// The next request that is no heartbeat; the server's own go on meanwhile.
async fn request(call: &mut Call) -> Request {
    loop {
        match call.receive().await.request.unwrap() {
            Request::Heartbeat(_) => heartbeat(call).await,
            request => return request,
        }
    }
}

async fn heartbeat(call: &Call) {
    say(call, Response::Heartbeat(ServerHeartbeat { revision: 1, time_ms: 2 })).await;
}

async fn published(call: &mut Call) -> Vec<(String, u64)> {
    match request(call).await {
        Request::Publish(publish) => publish.records.iter().map(order).collect(),
        other => panic!("{other:?}"),
    }
}

async fn answer(call: &Call, records: &[(String, u64)]) {
    let result = |(key, sequence): &(String, u64)| PublishResult {
        key: key.clone(),
        sequence: *sequence,
        revision: 7,
        refusal: None,
    };
    say(call, Response::Published(Published { results: records.iter().map(result).collect() })).await;
}

async fn connected(events: &mut Events<SessionEvent>) -> Welcome {
    until(events, |event| match event {
        SessionEvent::Connected(welcome) => Some(welcome),
        _ => None,
    })
    .await
}

/// The cursor of the next change or snapshot.
async fn position(events: &mut Events<SessionEvent>) -> SessionCursor {
    until(events, |event| match event {
        SessionEvent::Changes { cursor, .. } | SessionEvent::SnapshotComplete { cursor, .. } => Some(cursor),
        _ => None,
    })
    .await
}

async fn disconnect(events: &mut Events<SessionEvent>) -> (Disconnect, Duration) {
    until(events, |event| match event {
        SessionEvent::Disconnected { reason, retry_in } => Some((reason, retry_in)),
        _ => None,
    })
    .await
}

type Opened = (Server, Session, Events<SessionEvent>, Call, Hello);

async fn opened(options: SessionOptions, resumed: bool) -> Opened {
    opened_on(options, terms("a", resumed, SELDOM)).await
}

async fn opened_on(options: SessionOptions, terms: Welcome) -> Opened {
    let mut server = Server::start().await;
    let (session, mut events) = Session::open(server.channel(), options);
    let mut call = accept(&mut server.sessions).await;
    let hello = hello(&mut call).await;
    say(&call, Response::Welcome(terms)).await;
    assert_eq!(connected(&mut events).await.replica, "federator-0");
    (server, session, events, call, hello)
}

#[tokio::test]
async fn a_first_session_asks_for_everything() {
    let (_server, _session, _events, _call, hello) = opened(options(&["bank", "shop"]), false).await;
    let expected = Hello {
        versions: vec![1],
        replica: "control-plane-0".to_owned(),
        namespaces: vec!["bank".to_owned(), "shop".to_owned()],
        publisher: true,
        keeps_refused: true,
        ..Hello::default()
    };
    assert_eq!(hello, expected);
}

#[tokio::test]
async fn only_a_complete_snapshot_can_be_resumed() {
    let (mut server, session, mut events, call, _) = opened(options(&["bank", "shop"]), false).await;
    say(&call, changes(5)).await;
    assert_eq!(position(&mut events).await, SessionCursor::default(), "half a snapshot");
    say(&call, complete(5, &["shop"])).await;
    assert_eq!(position(&mut events).await, cursor("a", 5, &["shop"]));
    say(&call, complete(6, &["bank"])).await;
    assert_eq!(position(&mut events).await, cursor("a", 6, &["bank", "shop"]));
    say(&call, changes(8)).await;
    let applied = position(&mut events).await;
    assert_eq!(applied, cursor("a", 8, &["bank", "shop"]));
    session.applied(applied);
    say(&call, changes(9)).await;
    position(&mut events).await;
    drop(call);
    assert!(matches!(disconnect(&mut events).await.0, Disconnect::Ended));
    let again = hello(&mut accept(&mut server.sessions).await).await;
    assert_eq!((again.incarnation.as_str(), again.revision), ("a", 8), "what was applied, not what was received");
    assert_eq!(again.namespaces, ["bank", "shop"]);
}

#[tokio::test]
async fn a_resumed_session_asks_anew_for_what_its_cursor_does_not_cover() {
    let start = SessionOptions { cursor: cursor("a", 8, &["gone", "shop"]), ..options(&["new", "shop"]) };
    let (_server, _session, mut events, mut call, hello) = opened(start, true).await;
    assert_eq!((hello.revision, hello.namespaces), (8, vec!["shop".to_owned()]));
    let Request::Interest(interest) = request(&mut call).await else { panic!() };
    assert_eq!(interest.namespaces, ["new", "shop"]);
    say(&call, changes(9)).await;
    assert_eq!(position(&mut events).await, cursor("a", 9, &["shop"]));
    say(&call, complete(10, &["new"])).await;
    assert_eq!(position(&mut events).await, cursor("a", 10, &["new", "shop"]));
}

#[tokio::test]
async fn a_change_of_interest_is_told_and_leaves_the_cursor() {
    let start = SessionOptions { cursor: cursor("a", 8, &["bank", "shop"]), ..options(&["bank", "shop"]) };
    let (_server, session, mut events, mut call, _) = opened(start, true).await;
    session.set_namespaces(namespaces(&["shop"]));
    let Request::Interest(interest) = request(&mut call).await else { panic!() };
    assert_eq!(interest.namespaces, ["shop"]);
    say(&call, changes(9)).await;
    assert_eq!(position(&mut events).await, cursor("a", 9, &["shop"]));
}

#[tokio::test]
async fn heartbeats_tell_what_has_been_applied_of_this_history() {
    let start = SessionOptions { cursor: cursor("before", 99, &["shop"]), ..options(&["shop"]) };
    let (_server, session, _events, mut call, _) = opened_on(start, terms("a", false, OFTEN)).await;
    let mut applied = Vec::new();
    while applied.last() != Some(&6) {
        let Some(Request::Heartbeat(beat)) = call.receive().await.request else { continue };
        applied.push(beat.applied_revision);
        heartbeat(&call).await;
        session.applied(cursor("a", if applied.len() < 3 { 5 } else { 6 }, &["shop"]));
    }
    assert_eq!(applied[0], 0, "revisions of another history mean nothing");
    assert!(applied.contains(&5) && applied.is_sorted(), "{applied:?}");
}

#[tokio::test]
async fn records_are_published_in_order_and_in_batches_until_answered() {
    let (mut server, session, mut events, mut call, _) = opened(options(&[]), false).await;
    session.publish([record("heads", 9), record("exports/a/b", 3), record("gateways", 5), record("gateways", 4)]);
    let first = published(&mut call).await;
    assert_eq!(first, [("exports/a/b".to_owned(), 3), ("gateways".to_owned(), 5)]);
    answer(&call, &first).await;
    assert_eq!(published(&mut call).await, [("heads".to_owned(), 9)]);
    assert_eq!(session.unanswered(), 1);
    let results = until(&mut events, |event| match event {
        SessionEvent::Published(results) => Some(results),
        _ => None,
    });
    assert_eq!(results.await.len(), 2);

    // The answer is lost with the connection, and a newer value comes meanwhile.
    server.stop();
    disconnect(&mut events).await;
    session.publish([record("gateways", 11)]);
    server.restart().await;
    let mut call = accept(&mut server.sessions).await;
    hello(&mut call).await;
    say(&call, welcome("a", false)).await;
    let again = published(&mut call).await;
    assert_eq!(again, [("heads".to_owned(), 9), ("gateways".to_owned(), 11)]);
    answer(&call, &again).await;
    until(&mut events, |event| matches!(event, SessionEvent::Published(_)).then_some(())).await;
    assert_eq!(session.unanswered(), 0);
}

#[tokio::test]
async fn a_follower_publishes_only_once_it_leads() {
    let (mut server, session, mut events, mut call, follower) =
        opened(SessionOptions { publisher: false, ..options(&[]) }, false).await;
    assert!(!follower.publisher);
    session.publish([record("gateways", 1)]);
    session.set_namespaces(namespaces(&["shop"]));
    assert!(matches!(request(&mut call).await, Request::Interest(_)), "nothing was published before");
    session.set_publisher(true);
    let (reason, retry_in) = disconnect(&mut events).await;
    assert!(matches!(reason, Disconnect::Renewed) && retry_in.is_zero());
    let mut call = accept(&mut server.sessions).await;
    assert!(hello(&mut call).await.publisher);
    say(&call, welcome("a", false)).await;
    assert_eq!(published(&mut call).await, [("gateways".to_owned(), 1)]);
}

#[tokio::test]
async fn a_silent_federator_is_left() {
    let (mut server, _session, mut events, call, _) = opened_on(options(&[]), terms("a", false, OFTEN)).await;
    let (reason, _) = disconnect(&mut events).await;
    assert!(matches!(reason, Disconnect::Silent(after) if after == OFTEN * 3), "{reason}");
    call.ended().await;
    hello(&mut accept(&mut server.sessions).await).await;
}

#[tokio::test]
async fn a_federator_that_never_begins_is_left() {
    let mut server = Server::start().await;
    let impatient = SessionOptions { reconnect: IMPATIENT, ..options(&[]) };
    let (_session, mut events) = Session::open(server.channel(), impatient);
    let _silent = accept(&mut server.sessions).await;
    let reason = disconnect(&mut events).await.0;
    assert!(matches!(reason, Disconnect::Silent(after) if after == IMPATIENT.opening_deadline), "{reason}");
}

#[tokio::test]
async fn a_slow_user_is_no_silent_federator() {
    const REVISIONS: u64 = 60;
    let (_server, _session, mut events, call, _) = opened_on(options(&[]), terms("a", false, OFTEN)).await;
    let sending = tokio::spawn(async move {
        for revision in 1..=REVISIONS {
            say(&call, changes(revision)).await;
        }
        call
    });
    // Longer than what counts as silence: the time itself is what is tested.
    tokio::time::sleep(OFTEN * 5).await;
    for expected in 1..=REVISIONS {
        match next(&mut events).await {
            SessionEvent::Changes { revision, .. } => assert_eq!(revision, expected),
            other => panic!("{other:?}"),
        }
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn a_draining_federator_is_left_for_as_long_as_it_asks() {
    let (mut server, _session, mut events, call, _) = opened(options(&[]), false).await;
    say(&call, Response::GoAway(GoAway { reason: "rollout".to_owned(), retry_after_ms: 30 })).await;
    let (reason, retry_in) = disconnect(&mut events).await;
    assert!(matches!(reason, Disconnect::GoingAway(why) if why == "rollout"));
    assert_eq!(retry_in, Duration::from_millis(30));
    let mut call = accept(&mut server.sessions).await;
    hello(&mut call).await;
    say(&call, Response::GoAway(GoAway { reason: "still".to_owned(), retry_after_ms: 3_600_000 })).await;
    assert_eq!(disconnect(&mut events).await.1, RECONNECT.longest, "not for ever");
}

#[tokio::test]
async fn a_federator_that_breaks_the_protocol_is_left() {
    let mut server = Server::start().await;
    let (_session, mut events) = Session::open(server.channel(), options(&[]));
    say(&accept(&mut server.sessions).await, changes(1)).await;
    assert!(matches!(disconnect(&mut events).await.0, Disconnect::Protocol(_)));
    let later = Welcome { version: 2, ..terms("a", false, SELDOM) };
    say(&accept(&mut server.sessions).await, Response::Welcome(later)).await;
    assert!(matches!(disconnect(&mut events).await.0, Disconnect::Version(2)));
    let call = accept(&mut server.sessions).await;
    say(&call, welcome("a", false)).await;
    say(&call, welcome("a", false)).await;
    assert!(matches!(disconnect(&mut events).await.0, Disconnect::Protocol(_)));
}

#[tokio::test]
async fn dropping_the_events_ends_the_session() {
    let (_server, session, events, call, _) = opened(options(&[]), false).await;
    drop(events);
    call.ended().await;
    session.publish([record("gateways", 1)]);
    assert_eq!(session.unanswered(), 1, "the handle can still be used");
}
