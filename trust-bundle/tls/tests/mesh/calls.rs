//! RPC with client certificates, over tonic.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use mesh_tls::{
    ClientAuth, DenyList, ExpectedPeer, client_config,
    rpc::{self, AcceptLimits, ChannelOptions},
    server_config,
};
use rustls::{ServerConfig, pki_types::ServerName};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::watch,
    time::timeout,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    client::Grpc,
    server::{NamedService, ServerStreamingService, UnaryService},
    transport::Channel,
};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::{domain::PATIENCE, handshakes::Pair};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Answers `WhoAmI` with the caller and the replica's own name, and `Watch` with one message and silence.
#[derive(Clone)]
struct Answers {
    replica: &'static str,
}

impl NamedService for Answers {
    const NAME: &'static str = "test.Answers";
}

impl Service<http::Request<Body>> for Answers {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answers = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, ()>::default());
            Ok(match request.uri().path() {
                "/test.Answers/Watch" => grpc.server_streaming(answers, request).await,
                _ => grpc.unary(answers, request).await,
            })
        })
    }
}

impl UnaryService<()> for Answers {
    type Response = String;
    type Future = std::future::Ready<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let answer = rpc::peer(&request).map(|id| Response::new(format!("{} at {}", id, self.replica)));
        std::future::ready(answer)
    }
}

impl ServerStreamingService<()> for Answers {
    type Response = String;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let first = tokio_stream::once(Ok("first".to_owned()));
        let messages: Self::ResponseStream = Box::pin(first.chain(tokio_stream::pending()));
        std::future::ready(Ok(Response::new(messages)))
    }
}

/// A served replica on a runtime of its own: dropping it closes its listener and every connection, as a death would.
struct Replica {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn replica(name: &'static str, config: &Arc<ServerConfig>, limits: AcceptLimits) -> Replica {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = config.clone();
    let listening = runtime.spawn(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = rpc::incoming(listener, config, limits);
        tokio::spawn(rpc::server().add_service(Answers { replica: name }).serve_with_incoming(incoming));
        address
    });
    Replica { address: listening.await.unwrap(), runtime: Some(runtime) }
}

async fn who_am_i(channel: &Channel) -> Result<String, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/test.Answers/WhoAmI");
    let answer = grpc.unary(Request::new(()), path, ProstCodec::<(), String>::default());
    Ok(timeout(PATIENCE, answer).await.unwrap()?.into_inner())
}

fn options() -> ChannelOptions {
    ChannelOptions { start: Some(0), ..ChannelOptions::default() }
}

#[tokio::test]
async fn a_call_names_its_caller() {
    let pair = Pair::new();
    let one = replica("one", &pair.server(), AcceptLimits::default()).await;
    let channel = rpc::channel([one.address], pair.client(), options());
    assert_eq!(who_am_i(&channel).await.unwrap(), format!("{} at one", pair.east.id("till")));
}

#[tokio::test]
async fn a_call_without_a_certificate_is_unauthenticated() {
    let pair = Pair::new();
    let server = server_config(&pair.server_identity, &pair.trust, ClientAuth::Optional, &[rpc::ALPN]);
    let one = replica("one", &server, AcceptLimits::default()).await;
    let anonymous = client_config(None, &pair.trust, ExpectedPeer::exactly(pair.west.id("cart")), &[rpc::ALPN]);
    let refused = who_am_i(&rpc::channel([one.address], anonymous, options())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(who_am_i(&rpc::channel([one.address], pair.client(), options())).await.is_ok());
}

#[tokio::test]
async fn a_connection_without_a_certificate_ends_soon_though_it_keeps_silent() {
    let pair = Pair::new();
    let server = server_config(&pair.server_identity, &pair.trust, ClientAuth::Optional, &[rpc::ALPN]);
    let limits = AcceptLimits { anonymous_lifetime: Duration::from_millis(300), ..AcceptLimits::default() };
    let one = replica("one", &server, limits).await;
    let known = rpc::channel([one.address], pair.client(), options());
    assert!(who_am_i(&known).await.is_ok());
    let anonymous = client_config(None, &pair.trust, ExpectedPeer::exactly(pair.west.id("cart")), &[rpc::ALPN]);
    let stream = TcpStream::connect(one.address).await.unwrap();
    let name = ServerName::try_from("mesh.invalid").unwrap();
    let mut silent = mesh_tls::handshake::connect(stream, &anonymous, name, PATIENCE).await.unwrap();
    let ended = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "still open after {PATIENCE:?}");
    assert!(who_am_i(&known).await.is_ok(), "a connection with a certificate stays");
}

#[tokio::test]
async fn a_channel_passes_over_endpoints_that_do_not_answer() {
    let pair = Pair::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let one = replica("one", &pair.server(), AcceptLimits::default()).await;
    let endpoints = [
        closed.to_string(),
        "name.invalid:1".to_owned(),
        "no port".to_owned(),
        silent.local_addr().unwrap().to_string(),
        format!("localhost:{}", one.address.port()),
    ];
    let options = ChannelOptions { connect_timeout: Duration::from_millis(500), ..options() };
    let channel = rpc::channel(endpoints, pair.client(), options);
    assert!(who_am_i(&channel).await.unwrap().ends_with("at one"));
}

#[tokio::test]
async fn a_channel_moves_on_when_its_replica_dies() {
    let pair = Pair::new();
    let one = replica("one", &pair.server(), AcceptLimits::default()).await;
    let two = replica("two", &pair.server(), AcceptLimits::default()).await;
    let channel = rpc::channel([one.address, two.address], pair.client(), options());
    assert!(who_am_i(&channel).await.unwrap().ends_with("at one"));
    assert!(who_am_i(&channel).await.unwrap().ends_with("at one"), "it stays while it works");
    drop(one);
    let started = Instant::now();
    let answer = loop {
        match who_am_i(&channel).await {
            Ok(answer) if answer.ends_with("at two") => break answer,
            _ => assert!(started.elapsed() < PATIENCE, "no reconnection"),
        }
        tokio::task::yield_now().await;
    };
    assert!(answer.starts_with("spiffe://"));
}

/// A way to a replica that can stop to carry bytes while its connections stay open, as a lost network does.
async fn way_to(address: SocketAddr, frozen: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut carried = Vec::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let mut frozen = frozen.clone();
            carried.push(tokio::spawn(async move {
                let mut far = TcpStream::connect(address).await.unwrap();
                let frozen = async { frozen.wait_for(|frozen| *frozen).await.map(|_| ()) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = frozen => std::future::pending().await,
                }
            }));
        }
    });
    way
}

#[tokio::test]
async fn a_replica_gone_silent_is_noticed_by_its_missing_sign_of_life() {
    let pair = Pair::new();
    let one = replica("one", &pair.server(), AcceptLimits::default()).await;
    let two = replica("two", &pair.server(), AcceptLimits::default()).await;
    let (freeze, frozen) = watch::channel(false);
    let way = way_to(one.address, frozen).await;
    let options = ChannelOptions {
        keepalive: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(200),
        ..options()
    };
    let channel = rpc::channel([way, two.address], pair.client(), options);
    let mut messages = open_stream(&channel).await;
    freeze.send(true).unwrap();
    assert!(timeout(PATIENCE, messages.message()).await.unwrap().is_err(), "the live stream ends");
    assert!(who_am_i(&channel).await.unwrap().ends_with("at two"));
}

#[tokio::test]
async fn a_failed_connection_says_why_for_each_endpoint() {
    let pair = Pair::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let one = replica("one", &pair.server(), AcceptLimits::default()).await;
    let expected = ExpectedPeer::exactly(pair.west.id("till"));
    let client = client_config(Some(&pair.client_identity), &pair.trust, expected, &[rpc::ALPN]);
    let refused = who_am_i(&rpc::channel([closed, one.address], client, options())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let why = refused.message();
    assert!(why.contains(&format!("{closed}: no connection: Connection refused")), "{why}");
    let not_expected = format!("{}: peer {} is not among the expected identities", one.address, pair.west.id("cart"));
    assert!(why.contains(&not_expected), "{why}");
    let nowhere = who_am_i(&rpc::channel([""; 0], pair.client(), options())).await.unwrap_err();
    assert!(nowhere.message().contains("no endpoint"), "{nowhere}");
}

#[tokio::test]
async fn a_quarantine_ends_live_streams_and_refuses_new_ones() {
    let pair = Pair::new();
    let limits = AcceptLimits { close_when_distrusted: Some(pair.trust.clone()), ..AcceptLimits::default() };
    let one = replica("one", &pair.server(), limits).await;
    // The client has a store of its own, so that it is the server who acts.
    let trust = crate::domain::trusting([&pair.west]);
    let expected = ExpectedPeer::exactly(pair.west.id("cart"));
    let client = client_config(Some(&pair.client_identity), &trust, expected, &[rpc::ALPN]);
    let channel = rpc::channel([one.address], client, options());
    let mut messages = open_stream(&channel).await;
    pair.trust.deny(DenyList { trust_domains: [pair.east.name.clone()].into(), ..DenyList::default() });
    assert!(timeout(PATIENCE, messages.message()).await.unwrap().is_err(), "the live stream ends");
    assert!(who_am_i(&channel).await.is_err());
    pair.trust.deny(DenyList::default());
    assert!(who_am_i(&channel).await.is_ok(), "lifting it lets the same channel in again");
}

#[tokio::test]
async fn a_client_leaves_a_server_that_is_quarantined() {
    let pair = Pair::new();
    let one = replica("one", &pair.server(), AcceptLimits::default()).await;
    let trust = crate::domain::trusting([&pair.west]);
    let expected = ExpectedPeer::exactly(pair.west.id("cart"));
    let client = client_config(Some(&pair.client_identity), &trust, expected, &[rpc::ALPN]);
    let options = ChannelOptions { close_when_distrusted: Some(trust.clone()), ..options() };
    let channel = rpc::channel([one.address], client, options);
    let mut messages = open_stream(&channel).await;
    trust.remove(&pair.west.name);
    assert!(timeout(PATIENCE, messages.message()).await.unwrap().is_err());
}

/// A live stream, after its first message.
async fn open_stream(channel: &Channel) -> tonic::Streaming<String> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/test.Answers/Watch");
    let answer = grpc.server_streaming(Request::new(()), path, ProstCodec::<(), String>::default());
    let mut messages = timeout(PATIENCE, answer).await.unwrap().unwrap().into_inner();
    assert_eq!(messages.message().await.unwrap().as_deref(), Some("first"));
    messages
}

#[tokio::test]
async fn silent_clients_neither_delay_others_nor_stay() {
    let pair = Pair::new();
    let limits = AcceptLimits { handshake_deadline: Duration::from_millis(300), ..AcceptLimits::default() };
    let one = replica("one", &pair.server(), limits).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(one.address).await.unwrap());
    }
    let channel = rpc::channel([one.address], pair.client(), options());
    assert!(who_am_i(&channel).await.is_ok());
    for mut stream in silent {
        // Closed at the deadline, with or without an alert first.
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    }
}

#[tokio::test]
async fn one_address_has_a_share_of_the_handshakes() {
    let pair = Pair::new();
    let limits = AcceptLimits { handshakes_per_source: 2, ..AcceptLimits::default() };
    let one = replica("one", &pair.server(), limits).await;
    let silent = [TcpStream::connect(one.address).await.unwrap(), TcpStream::connect(one.address).await.unwrap()];
    let mut third = TcpStream::connect(one.address).await.unwrap();
    let read = timeout(PATIENCE, third.read(&mut [0])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "closed at once, long before the deadline");
    drop(silent);
    let channel = rpc::channel([one.address], pair.client(), options());
    let started = Instant::now();
    while who_am_i(&channel).await.is_err() {
        assert!(started.elapsed() < PATIENCE, "the share is not given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_one_to_end() {
    let pair = Pair::new();
    let limits = AcceptLimits { connections: 1, ..AcceptLimits::default() };
    let one = replica("one", &pair.server(), limits).await;
    let first = rpc::channel([one.address], pair.client(), options());
    assert!(who_am_i(&first).await.is_ok());
    let short = ChannelOptions { connect_timeout: Duration::from_millis(200), ..options() };
    let second = rpc::channel([one.address], pair.client(), short);
    assert!(who_am_i(&second).await.is_err());
    drop(first);
    let started = Instant::now();
    while who_am_i(&second).await.is_err() {
        assert!(started.elapsed() < PATIENCE, "the place is not given back");
    }
}

#[tokio::test]
async fn one_client_has_a_share_of_the_connections_and_others_have_theirs() {
    let pair = Pair::new();
    let limits = AcceptLimits { connections_per_peer: 1, ..AcceptLimits::default() };
    let one = replica("one", &pair.server(), limits).await;
    let first = rpc::channel([one.address], pair.client(), options());
    assert!(who_am_i(&first).await.is_ok());
    let second = rpc::channel([one.address], pair.client(), options());
    assert!(who_am_i(&second).await.is_err(), "the same client again");
    let other = pair.east.identity("other");
    let other = client_config(Some(&other), &pair.trust, ExpectedPeer::exactly(pair.west.id("cart")), &[rpc::ALPN]);
    assert!(who_am_i(&rpc::channel([one.address], other, options())).await.is_ok());
    drop(first);
    let started = Instant::now();
    while who_am_i(&second).await.is_err() {
        assert!(started.elapsed() < PATIENCE, "the share is not given back");
    }
}

#[tokio::test]
async fn clients_without_a_certificate_say_only_so_much_and_have_their_share() {
    let pair = Pair::new();
    let server = server_config(&pair.server_identity, &pair.trust, ClientAuth::Optional, &[rpc::ALPN]);
    let limits = AcceptLimits { anonymous: 1, anonymous_bytes: 64 * 1024, ..AcceptLimits::default() };
    let one = replica("one", &server, limits).await;
    let expected = || ExpectedPeer::exactly(pair.west.id("cart"));
    let anonymous = || {
        let config = client_config(None, &pair.trust, expected(), &[rpc::ALPN]);
        rpc::channel([one.address], config, options())
    };
    let known = rpc::channel([one.address], pair.client(), options());
    // Too large to be answered: the connection ends before it is read. A small one is answered.
    let (small, large) = ("x".repeat(16 * 1024), "x".repeat(256 * 1024));
    assert!(say(&known, large.clone()).await.is_ok(), "a client with a certificate may");
    assert_ne!(say(&anonymous(), large).await.unwrap_err().code(), Code::Unauthenticated);
    let started = Instant::now();
    let talking = loop {
        // The connection before counts until the server has noticed its end.
        let talking = anonymous();
        match say(&talking, small.clone()).await {
            Err(status) if status.code() == Code::Unauthenticated => break talking,
            _ => assert!(started.elapsed() < PATIENCE, "the share is not given back"),
        }
    };
    assert_ne!(say(&anonymous(), small).await.unwrap_err().code(), Code::Unauthenticated, "one too many");
    assert!(who_am_i(&known).await.is_ok());
    drop(talking);
}

/// [`who_am_i`], with a request of some size.
async fn say(channel: &Channel, words: String) -> Result<String, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/test.Answers/WhoAmI");
    let answer = grpc.unary(Request::new(words), path, ProstCodec::<String, String>::default());
    Ok(timeout(PATIENCE, answer).await.unwrap()?.into_inner())
}
