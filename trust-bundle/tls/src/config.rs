//! The two rustls configurations of the mesh.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig, client::Resumption, server::NoServerSessionStorage, version::TLS13};

use crate::{
    ExpectedPeer, Identity, TrustStore, provider,
    verify::{ClientVerifier, ServerVerifier},
};

/// Whether a server asks for a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No handshake without one.
    Required,
    /// It is asked for, judged when shown, and may be missing: joining and bootstrap happen before there is one.
    Optional,
    /// Not asked for, as the SPIFFE bundle endpoint must not (SPIFFE Federation, section 5.2).
    None,
}

/// A server's configuration. Build it once: roots, deny-list and identity are looked up in each handshake.
pub fn server_config(
    identity: &Identity,
    trust: &TrustStore,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    #[expect(clippy::expect_used, reason = "fails only for a provider without TLS 1.3 suites, and ours is a constant")]
    let builder = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites");
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Required | ClientAuth::Optional => builder.with_client_cert_verifier(Arc::new(ClientVerifier {
            trust: trust.clone(),
            mandatory: client_auth == ClientAuth::Required,
        })),
    };
    let mut config = builder.with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = protocols(alpn);
    // A resumed session would bypass the verifier, and with it every revocation.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// A client's configuration for connections to `expected`. It is cheap enough to make one per destination; without an
/// identity (or while it is empty) the client shows no certificate.
pub fn client_config(
    identity: Option<&Identity>,
    trust: &TrustStore,
    expected: ExpectedPeer,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    #[expect(clippy::expect_used, reason = "fails only for a provider without TLS 1.3 suites, and ours is a constant")]
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites");
    let verifier = Arc::new(ServerVerifier { trust: trust.clone(), expected });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity.clone())),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(alpn);
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}
