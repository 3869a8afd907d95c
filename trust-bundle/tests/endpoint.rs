//! The bundle endpoint over real TLS.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_tls::{ClientAuth, ExpectedPeer, Identity, TrustStore, handshake, new_key_and_csr, server_config};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use spiffe_identity::{Bundle, BundleSet, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trust_bundle::endpoint::{self, Metrics, WebCertificate, WebConfig};

const PATIENCE: Duration = Duration::from_secs(20);

struct Federation {
    directory: TempDir,
    authority: Authority,
    bundles: watch::Sender<Arc<BundleSet>>,
}

struct Served {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Federation {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain: TrustDomain = "mesh.example".parse().unwrap();
        let authority = Authority::open_or_create(directory.path(), &trust_domain, SystemTime::now()).unwrap();
        let mut set = BundleSet::new();
        set.offer(bundle(&authority, 7)).unwrap();
        Self { directory, authority, bundles: watch::Sender::new(Arc::new(set)) }
    }

    fn trust(&self) -> TrustStore {
        let trust = TrustStore::new();
        trust.insert(bundle(&self.authority, 7));
        trust
    }

    fn id() -> SpiffeId {
        "spiffe://mesh.example/service/trust-bundle".parse().unwrap()
    }

    async fn serve(&self, tls: Arc<ServerConfig>) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(endpoint::serve(listener, tls, self.bundles.subscribe(), Metrics::default()));
        Served { address, serving }
    }

    async fn serve_spiffe(&self) -> Served {
        let (key, csr) = new_key_and_csr().unwrap();
        let svid = self.authority.issue(&csr, &Self::id(), Duration::from_secs(600), SystemTime::now()).unwrap();
        let identity = Identity::from_der(svid.chain, key).unwrap();
        self.serve(server_config(&identity, &TrustStore::new(), ClientAuth::None, &[b"http/1.1"])).await
    }

    fn client(&self) -> Arc<ClientConfig> {
        mesh_tls::client_config(None, &self.trust(), ExpectedPeer::exactly(Self::id()), &[b"http/1.1"])
    }
}

fn bundle(authority: &Authority, sequence: u64) -> Bundle {
    Bundle {
        trust_domain: authority.trust_domain().clone(),
        x509_authorities: vec![authority.root()],
        sequence,
        refresh_hint: Some(spiffe_identity::DEFAULT_REFRESH_HINT),
    }
}

/// One request over a connection of its own: the whole answer.
async fn ask(server: &Served, client: &Arc<ClientConfig>, request: &str) -> String {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = handshake::connect(stream, client, name, PATIENCE).await.unwrap();
    stream.write_all(format!("{request}\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_bundle_is_served_without_asking_for_a_client_certificate() {
    let federation = Federation::new();
    let server = federation.serve_spiffe().await;
    let answer = ask(&server, &federation.client(), "GET /mesh.example HTTP/1.1").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    let read = Bundle::from_jwks("mesh.example".parse().unwrap(), body.as_bytes()).unwrap();
    assert_eq!(read, bundle(&federation.authority, 7));
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    for key in document["keys"].as_array().unwrap() {
        assert_eq!(key["use"], "x509-svid", "others reject what they do not know");
    }
}

#[tokio::test]
async fn other_requests_are_refused_and_the_newest_bundle_is_served() {
    let federation = Federation::new();
    let server = federation.serve_spiffe().await;
    let client = federation.client();
    let refused = [
        ("GET / HTTP/1.1", "404"),
        ("GET /other.example HTTP/1.1", "404"),
        ("GET /mesh.example/../mesh.example HTTP/1.1", "404"),
        ("POST /mesh.example HTTP/1.1", "405"),
        ("DELETE /mesh.example HTTP/1.1", "405"),
    ];
    for (request, status) in refused {
        let answer = ask(&server, &client, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    let head = ask(&server, &client, "HEAD /mesh.example HTTP/1.1").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    let mut set = BundleSet::new();
    set.offer(bundle(&federation.authority, 8)).unwrap();
    federation.bundles.send_replace(Arc::new(set));
    let answer = ask(&server, &client, "GET /mesh.example HTTP/1.1").await;
    assert!(answer.contains("\"spiffe_sequence\":8"), "{answer}");
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let federation = Federation::new();
    let server = federation.serve_spiffe().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = handshake::connect(stream, &federation.client(), name, PATIENCE).await.unwrap();
    let started = Instant::now();
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

/// A web certificate for 127.0.0.1, written to two files, and the authority to believe.
fn write_web(directory: &Path) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(directory.join("web.crt"), certificate.pem()).unwrap();
    std::fs::write(directory.join("web.key"), key.serialize_pem()).unwrap();
    certificate.der().clone()
}

fn web_client(root: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    Arc::new(builder.with_no_client_auth())
}

#[tokio::test]
async fn a_replaced_web_certificate_is_shown_and_a_bad_one_is_not() {
    let federation = Federation::new();
    let directory = federation.directory.path();
    let first = write_web(directory);
    let config = WebConfig { certificate_file: directory.join("web.crt"), key_file: directory.join("web.key") };
    let certificate = WebCertificate::open(config.clone()).unwrap();
    let server = federation.serve(certificate.server_config(b"http/1.1").unwrap()).await;
    let get = "GET /mesh.example HTTP/1.1";
    assert!(ask(&server, &web_client(first.clone()), get).await.contains("\"keys\""));

    let second = write_web(directory);
    certificate.reload().unwrap();
    assert!(ask(&server, &web_client(second.clone()), get).await.contains("\"keys\""));

    for (file, text) in [("web.key", "nothing"), ("web.crt", "")] {
        std::fs::write(directory.join(file), text).unwrap();
        let refused = certificate.reload().unwrap_err().to_string();
        assert!(refused.contains("web."), "{refused}");
        assert!(WebCertificate::open(config.clone()).is_err());
    }
    assert!(ask(&server, &web_client(second), get).await.contains("\"keys\""));
}
