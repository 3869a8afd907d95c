//! From the signal to the end.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::lab::{Authority, Endpoint, PATIENCE, Running, name};

#[tokio::test]
async fn a_draining_gateway_takes_no_connection_and_ends_with_its_last_one() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let mut session = gateway.session(&authority, &name("c-east")).await.unwrap();
    gateway.process.trigger_drain();
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(gateway.address).await.is_ok() {
        assert!(Instant::now() < until, "it goes on accepting");
    }
    session.echo("undisturbed").await;
    session.stream.shutdown().await.unwrap();
    let mut rest = String::new();
    timeout(PATIENCE, session.stream.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "end of 11");
    drop(session);
    gateway.metric("connections_closed_total{reason=\"closed\"} 1").await;
    timeout(PATIENCE, gateway.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn connections_that_stay_are_ended_at_the_deadline() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let mut session = gateway.session(&authority, &name("c-east")).await.unwrap();
    let started = Instant::now();
    gateway.process.trigger_drain();
    let ended = timeout(PATIENCE, session.stream.read_u8()).await.unwrap().unwrap_err();
    // TCP ended, TLS did not: the client can tell that it was cut off.
    assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    assert!(started.elapsed() >= std::time::Duration::from_millis(600), "{:?}", started.elapsed());
    gateway.metric("connections_closed_total{reason=\"drained\"} 1").await;
    timeout(PATIENCE, gateway.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn connections_that_wait_to_be_accepted_are_served() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    // On one thread the gateway cannot run between these two.
    let stream = std::net::TcpStream::connect(gateway.address).unwrap();
    gateway.process.trigger_drain();
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    stream.write_all(b"GET").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    gateway.metric("connections_closed_total{reason=\"not_tls\"} 1").await;
    timeout(PATIENCE, gateway.serving).await.unwrap().unwrap().unwrap();
}
