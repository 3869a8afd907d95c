//! Peers that are not clients: garbage, slowness, floods.

use std::{io, time::Duration};

use east_west_gateway::routes::RouteChange;
use federation_api::discovery::v1 as wire;
use rustls::AlertDescription;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::lab::{Authority, Endpoint, PATIENCE, Running, name, route};

async fn all_that_comes(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the gateway closes")?;
    Ok(bytes)
}

#[tokio::test]
async fn garbage_is_closed_without_a_word_and_without_reaching_an_endpoint() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n"[..], &[0xff; 5000], &[0]] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        // A close with bytes unread is a reset.
        let answer = all_that_comes(&mut stream).await.unwrap_or_default();
        assert_eq!(answer, b"");
    }
    gateway.metric("connections_closed_total{reason=\"not_tls\"} 3").await;
    assert_eq!(echo.accepted(), 0);
    // And the next one is served.
    assert!(gateway.session(&authority, &name("")).await.is_ok());
}

#[tokio::test]
async fn a_malformed_or_oversized_hello_gets_its_alert() {
    let gateway = Running::start(&[]).await;
    let table = [
        // A ClientHello of no bytes.
        (vec![22, 3, 1, 0, 4, 1, 0, 0, 0], 50, "hello_malformed"),
        // An alert first.
        (vec![21, 3, 3, 0, 2, 1, 0], 10, "hello_malformed"),
        // A hello that says it has 16 MiB.
        (vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff], 47, "hello_too_large"),
    ];
    for (bytes, alert, reason) in table {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(all_that_comes(&mut stream).await.unwrap(), [21, 3, 3, 0, 2, 2, alert], "{reason}");
        drop(stream);
        gateway
            .metric(&format!("connections_closed_total{{reason=\"{reason}\"}} {}", if alert == 10 { 2 } else { 1 }))
            .await;
    }
}

#[tokio::test]
async fn a_slow_hello_is_closed_at_its_deadline() {
    let gateway = Running::start(&[]).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let started = Instant::now();
    stream.write_all(&[22, 3, 1]).await.unwrap();
    assert_eq!(all_that_comes(&mut stream).await.unwrap_or_default(), b"");
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
    gateway.metric("connections_closed_total{reason=\"hello_too_slow\"} 1").await;
}

#[tokio::test]
async fn a_probe_is_told_from_a_hello_that_was_cut_off() {
    let gateway = Running::start(&[]).await;
    drop(TcpStream::connect(gateway.address).await.unwrap());
    gateway.metric("connections_closed_total{reason=\"probe\"} 1").await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(&[22, 3]).await.unwrap();
    drop(stream);
    gateway.metric("connections_closed_total{reason=\"hello_cut_off\"} 1").await;
    gateway.metric("connections 0").await;
}

#[tokio::test]
async fn a_source_with_too_many_hellos_outstanding_is_reset_and_others_are_served() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start_with(&[echo.wire("eu-1")], |config| {
        config.limits.max_pending_per_source = 3;
        config.limits.hello_deadline = PATIENCE;
    })
    .await;
    // Sessions that have shown their hello do not count.
    let mut session = gateway.session(&authority, &name("")).await.unwrap();
    let mut flood = Vec::new();
    for _ in 0..3 {
        flood.push(TcpStream::connect(gateway.address).await.unwrap());
    }
    gateway.metric("connections 4").await;
    // The reset may come before the client has looked at its own connect.
    let one_more = async { all_that_comes(&mut TcpStream::connect(gateway.address).await?).await };
    assert_eq!(one_more.await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    gateway.metric("connections_shed_total{limit=\"pending_per_source\"} 1").await;
    // Another source of the same machine.
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let mut other = other.connect(gateway.address).await.unwrap();
    other.write_all(b"GET").await.unwrap();
    assert_eq!(all_that_comes(&mut other).await.unwrap_or_default(), b"");
    gateway.metric("connections_closed_total{reason=\"not_tls\"} 1").await;
    session.echo("not shed").await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_reset_and_old_ones_stay() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start_with(&[echo.wire("eu-1")], |config| config.limits.max_connections = 2).await;
    let mut first = gateway.session(&authority, &name("")).await.unwrap();
    let second = gateway.session(&authority, &name("")).await.unwrap();
    assert_eq!(gateway.session(&authority, &name("")).await.err(), Some(None));
    gateway.metric("connections_shed_total{limit=\"connections\"} 1").await;
    first.echo("old ones stay").await;
    drop(second);
    gateway.metric("connections 1").await;
    assert!(gateway.session(&authority, &name("")).await.is_ok());
}

#[tokio::test]
async fn one_service_cannot_take_the_connections_of_the_others() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway =
        Running::start_with(&[echo.wire("eu-1")], |config| config.limits.max_connections_per_service = 1).await;
    let other = wire::Route { host: "other.shop.svc.clusterset.local".to_owned(), ..route(&[echo.wire("eu-1")]) };
    assert_eq!(gateway.routes.apply([RouteChange::Set(&other)]), []);
    let mut first = gateway.session(&authority, &name("")).await.unwrap();
    // A new state of the route does not forget the count.
    assert_eq!(gateway.routes.apply([RouteChange::Set(&route(&[echo.wire("eu-2")]))]), []);
    let refused = gateway.session(&authority, &name("")).await.err();
    assert_eq!(refused, Some(Some(AlertDescription::InternalError)));
    gateway.metric("connections_closed_total{reason=\"service_full\"} 1").await;
    gateway.metric("connections_shed_total{limit=\"service\"} 1").await;
    assert!(gateway.session(&authority, "outbound_.8080_._.other.shop.svc.clusterset.local").await.is_ok());
    first.echo("old ones stay").await;
    drop(first);
    gateway.metric("connections 0").await;
    assert!(gateway.session(&authority, &name("")).await.is_ok());
}
