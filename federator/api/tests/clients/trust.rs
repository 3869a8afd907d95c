//! The trust watch.

use std::net::SocketAddr;

use federation_api::client::trust::{TrustCursor, TrustEvent, join, publish_bundle, renew, watch};
use federation_api::client::{Disconnect, Events};
use federation_api::record::v1::{Member, Signed};
use federation_api::trust::v1::watch_request::Request;
use federation_api::trust::v1::{WatchAck, WatchRequest, WatchResponse, WatchStart};
use tokio::net::TcpListener;
use tonic::{Code, Status};

use crate::server::{Call, IMPATIENT, RECONNECT, Server, accept, channel, next, until, within};

fn cursor(incarnation: &str, epoch: u64) -> TrustCursor {
    TrustCursor { incarnation: incarnation.to_owned(), epoch }
}

fn step(incarnation: &str, epoch: u64) -> WatchResponse {
    WatchResponse { version: 1, incarnation: incarnation.to_owned(), epoch, ..WatchResponse::default() }
}

fn start_of(request: WatchRequest) -> WatchStart {
    match request.request {
        Some(Request::Start(start)) => start,
        other => panic!("{other:?}"),
    }
}

fn ack_of(request: WatchRequest) -> WatchAck {
    match request.request {
        Some(Request::Ack(ack)) => ack,
        other => panic!("{other:?}"),
    }
}

async fn started_at(call: &mut Call<WatchRequest, WatchResponse>) -> TrustCursor {
    let start = start_of(call.receive().await);
    assert_eq!(start.versions, [1]);
    TrustCursor { incarnation: start.incarnation, epoch: start.epoch }
}

async fn update(events: &mut Events<TrustEvent>) -> WatchResponse {
    until(events, |event| match event {
        TrustEvent::Update(update) => Some(update),
        _ => None,
    })
    .await
}

async fn disconnect(events: &mut Events<TrustEvent>) -> Disconnect {
    until(events, |event| match event {
        TrustEvent::Disconnected { reason, retry_in } => {
            assert!(retry_in <= RECONNECT.longest);
            Some(reason)
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_watch_resumes_where_the_user_has_applied() {
    let mut server = Server::start().await;
    let (acks, mut events) = watch(server.channel(), TrustCursor::default(), RECONNECT);
    let mut call = accept(&mut server.trust).await;
    assert_eq!(started_at(&mut call).await, TrustCursor::default());
    call.send(step("a", 5)).await;
    assert!(matches!(next(&mut events).await, TrustEvent::Connected));
    let applied = update(&mut events).await.cursor();
    acks.applied(applied.clone(), (0..150).map(|index| format!("proxy-{index}")).collect(), 200);
    let ack = ack_of(call.receive().await);
    assert_eq!((ack.epoch, ack.pending_count, ack.connected_count), (5, 150, 200));
    assert_eq!(ack.pending_proxies.len(), 100);

    // Received, but not applied.
    call.send(step("a", 6)).await;
    assert_eq!(update(&mut events).await.epoch, 6);
    drop(call);
    assert!(matches!(disconnect(&mut events).await, Disconnect::Ended));
    let mut call = accept(&mut server.trust).await;
    assert_eq!(started_at(&mut call).await, applied);
    call.send(step("a", 6)).await;
    assert_eq!(ack_of(call.receive().await), ack, "another replica has to learn of the pending proxies");
}

#[tokio::test]
async fn a_watch_survives_a_restart_of_the_server() {
    let mut server = Server::start().await;
    let (acks, mut events) = watch(server.channel(), cursor("a", 3), RECONNECT);
    let mut call = accept(&mut server.trust).await;
    assert_eq!(started_at(&mut call).await, cursor("a", 3));
    call.send(step("a", 4)).await;
    acks.applied(update(&mut events).await.cursor(), Vec::new(), 0);
    server.stop();
    assert!(matches!(disconnect(&mut events).await, Disconnect::Failed(_)));
    // Nobody listens now.
    assert!(matches!(disconnect(&mut events).await, Disconnect::Failed(_)));
    server.restart().await;
    let mut call = accept(&mut server.trust).await;
    assert_eq!(started_at(&mut call).await, cursor("a", 4));
    call.send(step("b", 1)).await;
    assert_eq!(update(&mut events).await.cursor(), cursor("b", 1));
}

#[tokio::test]
async fn only_the_history_of_the_stream_is_acknowledged() {
    let mut server = Server::start().await;
    let (acks, mut events) = watch(server.channel(), TrustCursor::default(), RECONNECT);
    let mut call = accept(&mut server.trust).await;
    started_at(&mut call).await;
    call.send(step("b", 2)).await;
    update(&mut events).await;
    acks.applied(cursor("a", 99), Vec::new(), 0);
    // A round trip later it was seen, and left out.
    call.send(step("b", 3)).await;
    acks.applied(update(&mut events).await.cursor(), Vec::new(), 0);
    assert_eq!(ack_of(call.receive().await).epoch, 3);
}

#[tokio::test]
async fn a_refusal_is_reported_and_tried_again() {
    let mut server = Server::start().await;
    let (_acks, mut events) = watch(server.channel(), TrustCursor::default(), RECONNECT);
    for _ in 0..3 {
        accept(&mut server.trust).await.fail(Status::failed_precondition("versions: 2 only")).await;
        let Disconnect::Failed(status) = disconnect(&mut events).await else { panic!() };
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "versions: 2 only"));
    }
    let call = accept(&mut server.trust).await;
    call.send(WatchResponse { version: 2, ..step("a", 1) }).await;
    assert!(matches!(disconnect(&mut events).await, Disconnect::Version(2)));
}

#[tokio::test]
async fn a_watch_without_a_handle_for_acknowledgements_goes_on() {
    let mut server = Server::start().await;
    let (acks, mut events) = watch(server.channel(), TrustCursor::default(), RECONNECT);
    drop(acks);
    let call = accept(&mut server.trust).await;
    for epoch in 1..=3 {
        call.send(step("a", epoch)).await;
        assert_eq!(update(&mut events).await.epoch, epoch);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let channel = channel(silent.local_addr().unwrap());
    let (_acks, mut events) = watch(channel, TrustCursor::default(), IMPATIENT);
    let (_held, _) = within(silent.accept()).await.unwrap();
    let reason = disconnect(&mut events).await;
    assert!(matches!(reason, Disconnect::Silent(after) if after == IMPATIENT.opening_deadline), "{reason}");
}

#[tokio::test]
async fn dropping_the_events_ends_the_call() {
    let mut server = Server::start().await;
    let (_acks, events) = watch(server.channel(), TrustCursor::default(), RECONNECT);
    let call = accept(&mut server.trust).await;
    drop(events);
    call.ended().await;
}

#[tokio::test]
async fn calls_pass_on_what_the_server_says() {
    let server = Server::start().await;
    let joined = join(server.channel(), Member::default(), vec![1, 2], Signed::default()).await.unwrap();
    assert_eq!(joined.certificate_chain, [vec![1, 2]]);
    let refused = join(server.channel(), Member::default(), vec![], Signed::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "csr: missing"));
    assert_eq!(renew(server.channel(), vec![3]).await.unwrap().certificate_chain, [vec![3]]);
    let refused = publish_bundle(server.channel(), Signed::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}
