//! Handshakes over real sockets.

use std::{sync::Arc, time::Duration};

use mesh_tls::{
    ClientAuth, ExpectedPeer, Identity, PeerError, TrustStore, client_config,
    handshake::{HandshakeError, accept, connect},
    peer_id, server_config,
};
use proptest::prelude::*;
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig, client::Resumption,
};
use rustls_pki_types::ServerName;
use spiffe_identity::SpiffeId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{client, server};

use crate::domain::{Domain, PATIENCE, trusting};

type Client = Result<client::TlsStream<TcpStream>, HandshakeError>;
type Server = Result<server::TlsStream<TcpStream>, HandshakeError>;

/// One connection. TLS 1.3 clients finish before the server has judged them, so a client that got through also reads: the
/// server greets with one byte, or its refusal arrives as an alert.
pub(crate) async fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Client, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let server_side = async {
        let mut stream = accept(accepted, server, PATIENCE).await?;
        stream.write_all(b"!").await.map_err(HandshakeError::Stream)?;
        Ok(stream)
    };
    let client_side = async {
        let mut stream = connect(stream, client, ServerName::try_from("127.0.0.1").unwrap(), PATIENCE).await?;
        stream.read_u8().await.map_err(HandshakeError::Stream)?;
        Ok(stream)
    };
    tokio::join!(client_side, server_side)
}

/// Why the server's refusal reads as it does on the client.
fn alert(outcome: Client) -> AlertDescription {
    let error = match outcome {
        Err(HandshakeError::Stream(error)) => *error.into_inner().unwrap().downcast::<rustls::Error>().unwrap(),
        Err(HandshakeError::Tls(error)) => error,
        other => panic!("not refused by TLS: {other:?}"),
    };
    match error {
        rustls::Error::AlertReceived(alert) => alert,
        other => panic!("no alert: {other}"),
    }
}

fn refused_for(outcome: Client) -> PeerError {
    match outcome {
        Err(HandshakeError::Peer(error)) => error,
        other => panic!("the server was not refused for who it is: {other:?}"),
    }
}

fn client_refused_for(outcome: Server) -> PeerError {
    match outcome {
        Err(HandshakeError::Peer(error)) => error,
        other => panic!("the client was not refused for who it is: {other:?}"),
    }
}

pub(crate) struct Pair {
    pub(crate) east: Domain,
    pub(crate) west: Domain,
    pub(crate) trust: TrustStore,
    pub(crate) server_identity: Identity,
    pub(crate) client_identity: Identity,
}

impl Pair {
    /// A server `cart` in west and a client `till` in east, who both trust both.
    pub(crate) fn new() -> Self {
        let (east, west) = (Domain::new("east.mesh.example"), Domain::new("west.mesh.example"));
        let trust = trusting([&east, &west]);
        let (server_identity, client_identity) = (west.identity("cart"), east.identity("till"));
        Self { east, west, trust, server_identity, client_identity }
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        server_config(&self.server_identity, &self.trust, ClientAuth::Required, &[b"h2"])
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client_expecting(ExpectedPeer::exactly(self.west.id("cart")))
    }

    fn client_expecting(&self, expected: ExpectedPeer) -> Arc<ClientConfig> {
        client_config(Some(&self.client_identity), &self.trust, expected, &[b"h2"])
    }
}

#[tokio::test]
async fn both_ends_learn_each_other_s_identity_over_hybrid_tls13() {
    let pair = Pair::new();
    let (client, server) = shake(&pair.client(), &pair.server()).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(peer_id(client.get_ref().1), Some(pair.west.id("cart")));
    assert_eq!(peer_id(server.get_ref().1), Some(pair.east.id("till")));
    let connection = server.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn a_client_refuses_a_server_it_did_not_expect() {
    let pair = Pair::new();
    let outcome = |expected: ExpectedPeer| {
        let (client, server) = (pair.client_expecting(expected), pair.server());
        async move { shake(&client, &server).await.0 }
    };
    let cart = pair.west.id("cart");
    let others: Arc<[SpiffeId]> = [pair.west.id("till"), pair.east.id("cart")].into();
    let refused = refused_for(outcome(ExpectedPeer::AnyOf(others.clone())).await);
    assert_eq!(refused, PeerError::NotExpected { id: cart.clone(), expected: ExpectedPeer::AnyOf(others) });
    refused_for(outcome(ExpectedPeer::AnyOf([].into())).await);
    refused_for(outcome(ExpectedPeer::AnyInTrustDomain(pair.east.name.clone())).await);
    let with_it: Arc<[SpiffeId]> = [pair.west.id("till"), cart].into();
    assert!(outcome(ExpectedPeer::AnyOf(with_it)).await.is_ok());
    assert!(outcome(ExpectedPeer::AnyInTrustDomain(pair.west.name.clone())).await.is_ok());
}

#[tokio::test]
async fn a_foreign_root_authenticates_neither_server_nor_client() {
    let pair = Pair::new();
    // Signed by east's root, which everybody trusts, though not for west.
    let forged = pair.east.sign(&crate::domain::leaf_params(&pair.west.id("cart")));
    let identity = Identity::from_der(vec![forged.der.clone()], forged.private_key()).unwrap();
    let server = server_config(&identity, &pair.trust, ClientAuth::Required, &[b"h2"]);
    let (client, _) = shake(&pair.client(), &server).await;
    assert_eq!(refused_for(client), PeerError::UnknownIssuer(pair.west.id("cart")));
    let expected = ExpectedPeer::exactly(pair.west.id("cart"));
    let forger = client_config(Some(&identity), &pair.trust, expected, &[b"h2"]);
    let (client, server) = shake(&forger, &pair.server()).await;
    assert_eq!(client_refused_for(server), PeerError::UnknownIssuer(pair.west.id("cart")));
    assert_eq!(alert(client), AlertDescription::CertificateUnknown);
}

#[tokio::test]
async fn client_certificates_are_required_optional_or_not_asked_for() {
    let pair = Pair::new();
    let anonymous = client_config(None, &pair.trust, ExpectedPeer::exactly(pair.west.id("cart")), &[b"h2"]);
    let server = |client_auth| server_config(&pair.server_identity, &pair.trust, client_auth, &[b"h2"]);
    let (client, _) = shake(&anonymous, &server(ClientAuth::Required)).await;
    assert_eq!(alert(client), AlertDescription::CertificateRequired);
    let (_, accepted) = shake(&anonymous, &server(ClientAuth::Optional)).await;
    assert_eq!(peer_id(accepted.unwrap().get_ref().1), None);
    let (_, accepted) = shake(&pair.client(), &server(ClientAuth::Optional)).await;
    assert_eq!(peer_id(accepted.unwrap().get_ref().1), Some(pair.east.id("till")));
    let (_, accepted) = shake(&pair.client(), &server(ClientAuth::None)).await;
    assert_eq!(peer_id(accepted.unwrap().get_ref().1), None);
    // Optional is no way in for a certificate that is shown and wrong.
    pair.trust.remove(&pair.east.name);
    let (_, refused) = shake(&pair.client(), &server(ClientAuth::Optional)).await;
    assert_eq!(client_refused_for(refused), PeerError::UnknownTrustDomain(pair.east.id("till")));
}

#[tokio::test]
async fn the_next_handshake_uses_the_newest_roots() {
    let pair = Pair::new();
    let (client, server) = (pair.client(), pair.server());
    assert!(shake(&client, &server).await.1.is_ok());
    let rotated = Domain::new("east.mesh.example");
    pair.trust.insert(rotated.bundle());
    assert_eq!(client_refused_for(shake(&client, &server).await.1), PeerError::UnknownIssuer(pair.east.id("till")));
    pair.trust.insert(rotated.bundle_of([pair.east.root.clone(), rotated.root.clone()]));
    assert!(shake(&client, &server).await.1.is_ok());
    let leaf = rotated.leaf("till");
    pair.client_identity.replace(vec![leaf.der.clone()], leaf.private_key()).unwrap();
    assert!(shake(&client, &server).await.1.is_ok(), "both roots sign during a rotation");
}

#[tokio::test]
async fn the_next_handshake_shows_the_newest_identity() {
    let pair = Pair::new();
    let server_identity = Identity::empty();
    let server = server_config(&server_identity, &pair.trust, ClientAuth::Required, &[b"h2"]);
    let client = pair.client_expecting(ExpectedPeer::AnyInTrustDomain(pair.west.name.clone()));
    assert!(shake(&client, &server).await.0.is_err(), "nobody is served before the first identity");
    for name in ["cart", "till"] {
        let leaf = pair.west.leaf(name);
        server_identity.replace(vec![leaf.der.clone()], leaf.private_key()).unwrap();
        assert_eq!(peer_id(shake(&client, &server).await.0.unwrap().get_ref().1), Some(pair.west.id(name)));
    }
    let leaf = pair.east.leaf("cart");
    pair.client_identity.replace(vec![leaf.der.clone()], leaf.private_key()).unwrap();
    assert_eq!(peer_id(shake(&client, &server).await.1.unwrap().get_ref().1), Some(pair.east.id("cart")));
}

#[tokio::test]
async fn a_wrong_identity_leaves_the_old_one_in_place() {
    let pair = Pair::new();
    let (one, other) = (pair.west.leaf("cart"), pair.west.leaf("cart"));
    assert!(pair.server_identity.replace(vec![one.der.clone()], other.private_key()).is_err(), "another's key");
    assert!(pair.server_identity.replace(vec![pair.west.root.clone()], one.private_key()).is_err(), "no leaf");
    assert!(pair.server_identity.replace(vec![], one.private_key()).is_err());
    assert!(pair.server_identity.replace(vec![one.der.clone(); 5], one.private_key()).is_err());
    assert!(shake(&pair.client(), &pair.server()).await.0.is_ok());
    assert_eq!(pair.server_identity.spiffe_id(), Some(pair.west.id("cart")));
}

#[tokio::test]
async fn every_handshake_is_a_full_one() {
    let pair = Pair::new();
    let server = pair.server();
    let mut resuming = Arc::unwrap_or_clone(pair.client());
    resuming.resumption = Resumption::in_memory_sessions(16);
    resuming.enable_early_data = true;
    let resuming = Arc::new(resuming);
    for _ in 0..3 {
        let (client, _server) = shake(&resuming, &server).await;
        let client = client.unwrap();
        let connection = client.get_ref().1;
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
        assert!(!connection.is_early_data_accepted());
    }
    // And so a client that was quarantined is out at once.
    pair.trust.remove(&pair.east.name);
    assert_eq!(
        client_refused_for(shake(&resuming, &server).await.1),
        PeerError::UnknownTrustDomain(pair.east.id("till"))
    );
}

#[tokio::test]
async fn our_clients_do_not_resume_with_servers_that_offer_it() {
    let pair = Pair::new();
    let mut offering = Arc::unwrap_or_clone(pair.server());
    offering.send_tls13_tickets = 2;
    offering.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    let (offering, client) = (Arc::new(offering), pair.client());
    for _ in 0..2 {
        let (client, _server) = shake(&client, &offering).await;
        assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn older_tls_and_other_protocols_are_refused() {
    let pair = Pair::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let (client, _) = shake(&Arc::new(old), &pair.server()).await;
    assert_eq!(alert(client), AlertDescription::ProtocolVersion);
    let expected = ExpectedPeer::exactly(pair.west.id("cart"));
    let other = client_config(Some(&pair.client_identity), &pair.trust, expected, &[b"isthmus-tcp"]);
    let (client, _) = shake(&other, &pair.server()).await;
    assert_eq!(alert(client), AlertDescription::NoApplicationProtocol);
}

#[tokio::test]
async fn a_silent_peer_costs_no_more_than_the_deadline() {
    let pair = Pair::new();
    let deadline = Duration::from_millis(50);
    let (silent, other_end) = tokio::io::duplex(4096);
    let accepted = accept(silent, &pair.server(), deadline).await;
    assert!(matches!(accepted, Err(HandshakeError::TimedOut(_))));
    drop(other_end);
    let (silent, _other_end) = tokio::io::duplex(64);
    let connected = connect(silent, &pair.client(), ServerName::try_from("cart").unwrap(), deadline).await;
    assert!(matches!(connected, Err(HandshakeError::TimedOut(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_of_a_client_panic_the_server(bytes in proptest::collection::vec(any::<u8>(), 0..600), as_record: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pair = Pair::new();
            let (near, mut far) = tokio::io::duplex(4096);
            if as_record {
                let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                far.write_all(&[&[22, 3, 1], length.as_slice()].concat()).await.unwrap();
            }
            far.write_all(&bytes).await.unwrap();
            far.shutdown().await.unwrap();
            assert!(accept(near, &pair.server(), PATIENCE).await.is_err());
        });
    }
}
