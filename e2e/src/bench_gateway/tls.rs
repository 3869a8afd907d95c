//! Mutual TLS between load and backend: TLS 1.3, P-256, the hybrid key exchange, no resumption, as between sidecars.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::SERVER_NAME;

/// By this the backend tells TLS from a hello that only looks like it.
pub(super) const ALPN: &[u8] = b"bench-tls";

/// Makes a root and both sides' keys in the directory; the client's side is returned.
pub(super) fn make_keys(directory: &Path) -> anyhow::Result<TlsConnector> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(directory.join("root.pem"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for side in ["client", "server"] {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new([SERVER_NAME.to_owned()])?.signed_by(&key, &issuer)?;
        fs::write(file(directory, side, "crt"), leaf.pem())?;
        fs::write(file(directory, side, "key"), key.serialize_pem())?;
    }
    let (chain, key) = own(directory, "client")?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(directory)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config).into())
}

/// The backend's side.
pub(super) fn acceptor(directory: &Path) -> anyhow::Result<TlsAcceptor> {
    let (chain, key) = own(directory, "server")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(directory)?), provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config).into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn file(directory: &Path, side: &str, kind: &str) -> PathBuf {
    directory.join(format!("{side}.{kind}"))
}

fn roots(directory: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("root.pem")).context("root.pem")?)?;
    Ok(roots)
}

fn own(directory: &Path, side: &str) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = vec![CertificateDer::from_pem_file(file(directory, side, "crt"))?];
    Ok((chain, PrivateKeyDer::from_pem_file(file(directory, side, "key"))?))
}
