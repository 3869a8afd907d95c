//! Behind load balancers that speak the PROXY protocol.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::lab::{Authority, Endpoint, PATIENCE, Running, name, session_on};

/// A header for a client at this address, port 4711.
fn header(client: [u8; 4]) -> Vec<u8> {
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
    [&fixed[..], &client, &[192, 0, 2, 9], &4711_u16.to_be_bytes(), &15443_u16.to_be_bytes()].concat()
}

async fn behind(networks: &str, endpoint: &Endpoint) -> Running {
    Running::start_with(&[endpoint.wire("eu-1")], |config| {
        config.proxy_protocol_from = vec![networks.parse().unwrap()];
        config.limits.max_pending_per_source = 1;
    })
    .await
}

async fn announced(gateway: &Running, client: [u8; 4]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(&header(client)).await.unwrap();
    stream
}

#[tokio::test]
async fn the_client_that_the_load_balancer_names_counts_as_the_source() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = behind("127.0.0.0/8", &echo).await;
    // One without a hello for each client is allowed: the second of the same client is reset, another client is not.
    let _silent = announced(&gateway, [198, 51, 100, 1]).await;
    let mut one_more = announced(&gateway, [198, 51, 100, 1]).await;
    let ended = timeout(PATIENCE, one_more.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
    gateway.metric("connections_shed_total{limit=\"pending_per_source\"} 1").await;
    let other = announced(&gateway, [198, 51, 100, 2]).await;
    let mut session = session_on(other, &authority, &name("")).await.unwrap();
    session.echo("past the header").await;
}

#[tokio::test]
async fn a_load_balancer_that_says_nothing_is_closed_and_others_need_not() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = behind("127.0.0.0/8", &echo).await;
    assert_eq!(gateway.session(&authority, &name("")).await.err(), Some(None));
    gateway.metric("connections_closed_total{reason=\"proxy_header\"} 1").await;
    // A stranger cannot make up an address: its header is no hello.
    let gateway = behind("192.0.2.0/24", &echo).await;
    let mut made_up = announced(&gateway, [198, 51, 100, 1]).await;
    assert!(timeout(PATIENCE, made_up.read_u8()).await.unwrap().is_err());
    gateway.metric("connections_closed_total{reason=\"not_tls\"} 1").await;
    assert!(gateway.session(&authority, &name("")).await.is_ok());
}
