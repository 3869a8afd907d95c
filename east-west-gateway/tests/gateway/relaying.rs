//! What happens on a session after it was passed on, and what is told of it afterwards.

use std::sync::{Arc, Mutex};

use relay::reset_on_close;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    instrument::WithSubscriber,
    span,
};

use super::lab::{Authority, Endpoint, PATIENCE, Running, name};

#[tokio::test]
async fn a_client_that_has_ended_its_direction_still_gets_the_answer() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let mut session = gateway.session(&authority, &name("c-east")).await.unwrap();
    session.echo("last words").await;
    session.stream.shutdown().await.unwrap();
    let mut rest = String::new();
    timeout(PATIENCE, session.stream.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "end of 10");
    drop(session);
    gateway.metric("connections_closed_total{reason=\"closed\"} 1").await;
}

#[tokio::test]
async fn a_reset_by_the_client_is_counted_as_such() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let mut session = gateway.session(&authority, &name("c-east")).await.unwrap();
    session.echo("x").await;
    reset_on_close(session.stream.get_ref().0).unwrap();
    drop(session);
    gateway.metric("connections_closed_total{reason=\"client_reset\"} 1").await;
    gateway.metric("connections 0").await;
}

#[tokio::test]
async fn a_megabyte_passes_unchanged() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let session = gateway.session(&authority, &name("")).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut read, mut write) = tokio::io::split(session.stream);
    let mut received = vec![0; sent.len()];
    let both = async { tokio::join!(write.write_all(&sent), read.read_exact(&mut received)) };
    let (written, _) = timeout(PATIENCE, both).await.unwrap();
    written.unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn bytes_are_counted_while_their_connection_lives() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let mut session = gateway.session(&authority, &name("c-east")).await.unwrap();
    for _ in 0..20 {
        session.echo(&"x".repeat(10_000)).await;
    }
    let text = gateway.process.metrics_text().unwrap();
    for direction in ["to_endpoint", "to_client"] {
        let name = format!("isthmus_test_relayed_bytes_total{{direction=\"{direction}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
        let counted: u64 = line.parse().unwrap();
        assert!((200_000 - 65_536..210_000).contains(&counted), "{direction}: {counted}");
    }
}

/// Keeps the fields of the access events.
#[derive(Clone, Default)]
struct AccessLog(Arc<Mutex<Vec<String>>>);

impl Subscriber for AccessLog {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "access"
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn each_connection_is_told_of_once_when_it_ends() {
    let log = AccessLog::default();
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    // The gateway's tasks are the ones that write: they take the subscriber of the thread they run on.
    let _guard = tracing::subscriber::set_default(log.clone());
    async {
        let gateway = Running::start(&[echo.wire("eu-7")]).await;
        let mut session = gateway.session(&authority, &name("c-east")).await.unwrap();
        session.echo("hello").await;
        assert!(log.0.lock().unwrap().is_empty(), "nothing is told while it lives");
        drop(session);
        gateway.metric("connections_closed_total{reason=\"closed\"} 1").await;
        assert!(gateway.session(&authority, "localhost").await.is_err());
        gateway.metric("connections_closed_total{reason=\"unknown_name\"} 1").await;
    }
    .with_subscriber(log.clone())
    .await;
    let lines = log.0.lock().unwrap().clone();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for part in [
        "src.addr=127.0.0.1:",
        "server_name=\"outbound_.8080_.c-east_.echo.shop.svc.clusterset.local\"",
        "endpoint=\"east/shop/echo-1\"",
        &format!("dst.addr={}", echo.address),
        "dst.zone=\"eu-7\"",
        "bytes_to_endpoint=",
        "bytes_to_client=",
        "duration_ms=",
        "first_byte_ms=",
        "reason=\"closed\"",
    ] {
        assert!(lines[0].contains(part), "no {part} in {}", lines[0]);
    }
    assert!(
        lines[1].contains("server_name=\"localhost\" endpoint=\"\"") && lines[1].contains("reason=\"unknown_name\""),
        "{}",
        lines[1]
    );
}
