//! What a server's sidecar lets in, seen by a peer that is no sidecar.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use federation_api::mesh::v1::Verdict;
use federation_api::mesh::v1::verdict::Code;
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, handshake};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::applications::Application;
use crate::client::{Answer, request};
use crate::cluster::{Cluster, HTTP, PATIENCE, RAW, host};

/// A peer with an identity of its own.
pub(crate) struct Peer {
    pub(crate) identity: Option<Identity>,
    pub(crate) trust: TrustStore,
    pub(crate) server: String,
}

impl Peer {
    fn of(cluster: &Cluster, account: &str) -> Self {
        let state = cluster.state();
        Self {
            identity: Some(state.identity("shop", account)),
            trust: state.own_trust(),
            server: cluster.identity("cart"),
        }
    }

    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        sni: &str,
        alpn: &[u8],
    ) -> std::io::Result<(TlsStream<TcpStream>, Verdict)> {
        let expected = ExpectedPeer::exactly(self.server.parse().unwrap());
        let config = mesh_tls::client_config(self.identity.as_ref(), &self.trust, expected, &[alpn]);
        let stream = TcpStream::connect(address).await?;
        let name = sni.to_owned().try_into().unwrap();
        let mut stream = handshake::connect(stream, &config, name, PATIENCE).await.map_err(std::io::Error::other)?;
        let verdict = federation_api::verdict::read(&mut stream, PATIENCE).await.map_err(std::io::Error::other)?;
        Ok((stream, verdict))
    }

    pub(crate) async fn verdict(&self, address: SocketAddr, sni: &str, alpn: &[u8]) -> Code {
        self.dial(address, sni, alpn).await.unwrap().1.code()
    }
}

fn sni(port: u16, subset: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{}", host("cart"))
}

pub(crate) async fn session(stream: TlsStream<TcpStream>) -> http2::SendRequest<Full<Bytes>> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

#[tokio::test]
async fn the_server_speaks_first_and_names_itself_or_the_reason() {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let gone = Application::echo("redis").await;
    let bindings = [(HTTP, application.port()), (RAW, gone.port())];
    let pod = east.pod("cart-1", "cart", &bindings).await;
    gone.kill().await;
    let peer = Peer::of(&east, "frontend");
    let (_, verdict) = peer.dial(pod.mesh(), &sni(80, "c-east.e-7"), b"isthmus-h2").await.unwrap();
    assert_eq!(
        (verdict.code(), verdict.endpoint.as_str(), verdict.cluster.as_str()),
        (Code::Ok, "east/shop/cart-1", "east")
    );
    for (sni, alpn, expected) in [
        (sni(80, ""), b"isthmus-h2".as_slice(), Code::Ok),
        (sni(81, ""), b"isthmus-h2", Code::UnknownService),
        (sni(80, "c-west"), b"isthmus-h2", Code::UnknownService),
        (format!("outbound_.80_._.{}", host("other")), b"isthmus-h2", Code::UnknownService),
        ("not-an-sni".to_owned(), b"isthmus-h2", Code::UnknownService),
        // Raw bytes to an HTTP port would get around the checks of each request.
        (sni(80, ""), b"isthmus-tcp", Code::Denied),
        (sni(6379, ""), b"isthmus-h2", Code::Denied),
        (sni(6379, ""), b"isthmus-tcp", Code::ApplicationUnreachable),
    ] {
        assert_eq!(peer.verdict(pod.mesh(), &sni, alpn).await, expected, "{sni} {}", String::from_utf8_lossy(alpn));
    }
}

#[tokio::test]
async fn an_authority_of_another_service_is_misdirected() {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let pod = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    let peer = Peer::of(&east, "frontend");
    let (stream, _) = peer.dial(pod.mesh(), &sni(80, "c-east"), b"isthmus-h2").await.unwrap();
    let mut sender = session(stream).await;
    let mut status = async |uri: &str, fields: &[(&str, &str)]| {
        let mut request = request(Method::GET, uri, "", fields);
        if fields.is_empty() {
            request.headers_mut().remove("host");
        }
        Answer::read(sender.send_request(request).await.unwrap()).await.unwrap().status
    };
    let misdirected = StatusCode::MISDIRECTED_REQUEST;
    assert_eq!(status("http://cart.shop.svc.clusterset.local/", &[]).await, StatusCode::OK);
    assert_eq!(status("http://Cart.shop.svc.clusterset.local:80/", &[]).await, StatusCode::OK);
    assert_eq!(status("http://cart.shop.svc.clusterset.local:0080/", &[]).await, StatusCode::OK);
    assert_eq!(status("http://cart.shop.svc.clusterset.local:99999/", &[]).await, misdirected);
    assert_eq!(status("http://cart.shop.svc.clusterset.local:81/", &[]).await, misdirected);
    assert_eq!(status("http://other.shop.svc.clusterset.local/", &[]).await, misdirected);
    assert_eq!(status("http://localhost/", &[]).await, misdirected);
    assert_eq!(application.requests(), 3);
}

#[tokio::test]
async fn nobody_comes_in_without_an_identity_that_is_trusted() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let application = Application::http1("cart-1").await;
    let pod = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    let foreign =
        Peer { trust: east.state().own_trust(), server: east.identity("cart"), ..Peer::of(&west, "frontend") };
    assert!(foreign.dial(pod.mesh(), &sni(80, ""), b"isthmus-h2").await.is_err());
    let anonymous = Peer { identity: None, ..Peer::of(&east, "frontend") };
    assert!(anonymous.dial(pod.mesh(), &sni(80, ""), b"isthmus-h2").await.is_err());
    // Once the federation has told of it, the member may call.
    east.trusts(&west);
    let deadline = std::time::Instant::now() + PATIENCE;
    while foreign.dial(pod.mesh(), &sni(80, ""), b"isthmus-h2").await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the foreign root was never trusted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_draining_sidecar_sends_newcomers_away_and_lets_sessions_finish() {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let pod = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    let peer = Peer::of(&east, "frontend");
    let (stream, _) = peer.dial(pod.mesh(), &sni(80, ""), b"isthmus-h2").await.unwrap();
    let mut sender = session(stream).await;
    let uri = "http://cart.shop.svc.clusterset.local/";
    assert!(sender.send_request(request(Method::GET, uri, "", &[])).await.is_ok());
    pod.process.trigger_drain();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !sender.is_closed() {
        assert!(std::time::Instant::now() < deadline, "no GOAWAY came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(peer.verdict(pod.mesh(), &sni(80, ""), b"isthmus-h2").await, Code::Draining);
}

#[tokio::test]
async fn requests_that_are_begun_and_reset_at_once_end_their_own_session_only() {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    let (attacker, honest) = (Peer::of(&east, "mallory"), Peer::of(&east, "frontend"));
    let uri = format!("http://{}/", host("cart"));
    let (stream, _) = honest.dial(server.mesh(), &sni(80, ""), b"isthmus-h2").await.unwrap();
    let mut calls = session(stream).await;
    let (stream, _) = attacker.dial(server.mesh(), &sni(80, ""), b"isthmus-h2").await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let ended = tokio::spawn(connection);
    let mut begun = 0;
    // Nobody needs a hundred thousand requests that he does not want.
    while begun < 100_000 {
        sender = match sender.ready().await {
            Ok(sender) => sender,
            Err(_) => break,
        };
        let request = http::Request::post(&uri).body(()).unwrap();
        match sender.send_request(request, false) {
            Ok((_, mut body)) => body.send_reset(h2::Reason::CANCEL),
            Err(_) => break,
        }
        begun += 1;
        if begun % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(begun < 100_000, "the session went on");
    let error = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap_err();
    // Its word may be lost when the attacker goes on writing into the closed connection.
    assert!(error.is_io() || error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
    let answer = calls.send_request(request(Method::GET, &uri, "", &[])).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

/// An HTTP/2 frame: length, type, flags, stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn header_blocks_without_end_are_cut_off() {
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    let attacker = Peer::of(&east, "mallory");
    let (mut stream, _) = attacker.dial(server.mesh(), &sni(80, ""), b"isthmus-h2").await.unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    stream.write_all(&preface).await.unwrap();
    // A literal field without indexing, name and value one byte each, many times over.
    let fields = [0x00, 0x01, b'x', 0x01, b'y'].repeat(1000);
    stream.write_all(&frame(HEADERS, 0, 1, &fields)).await.unwrap();
    let flooding = async {
        let mut sent = 0_usize;
        while sent < 64 * 1024 * 1024 {
            if stream.write_all(&frame(CONTINUATION, 0, 1, &fields)).await.is_err() {
                return sent;
            }
            sent += fields.len();
        }
        sent
    };
    let sent = tokio::time::timeout(PATIENCE, flooding).await.unwrap();
    assert!(sent < 16 * 1024 * 1024, "{sent} bytes were taken");
    assert_eq!(application.requests(), 0);
    assert!(server.process.readiness().is_ready());
}
