//! Fetching foreign bundles from real TLS servers, well-behaved and hostile ones. Each refusal has a twin in
//! `a_bundle_is_fetched_by_either_profile` that differs in one thing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use control_plane::foreign_bundles::fetch::{PollError, WebRoots, fetch};
use control_plane::foreign_bundles::{ForeignBundles, ForeignProfile, ForeignTrustDomain, Metrics};
use control_plane::reconciler::Input;
use control_plane::state::StateDirectory;
use mesh_tls::handshake::HandshakeError;
use mesh_tls::{ClientAuth, Identity, TrustStore, new_key_and_csr, server_config};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe_identity::federation::{Endpoint, FetchError, UrlError};
use spiffe_identity::{Bundle, BundleSet, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const ENDPOINT_ID: &str = "spiffe://partner.example/bundle-server";

/// A trust domain outside the federation, with its own web authority.
struct Partner {
    directory: TempDir,
    trust_domain: TrustDomain,
    authority: Authority,
    web_roots: PathBuf,
    web: Arc<ServerConfig>,
}

impl Partner {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain: TrustDomain = "partner.example".parse().unwrap();
        let authority = Authority::open_or_create(&directory.path().join("ca"), &trust_domain, SystemTime::now());
        let (root, web) = web_server("127.0.0.1");
        let web_roots = directory.path().join("web.pem");
        std::fs::write(&web_roots, root).unwrap();
        Self { directory, trust_domain, authority: authority.unwrap(), web_roots, web }
    }

    fn bundle(&self, sequence: u64) -> Bundle {
        Bundle {
            trust_domain: self.trust_domain.clone(),
            x509_authorities: vec![self.authority.root()],
            sequence,
            refresh_hint: Some(Duration::from_secs(60)),
        }
    }

    /// A server that shows this identity.
    fn spiffe(&self, id: &str) -> Arc<ServerConfig> {
        let (key, csr) = new_key_and_csr().unwrap();
        let id: SpiffeId = id.parse().unwrap();
        let svid = self.authority.issue(&csr, &id, Duration::from_secs(600), SystemTime::now()).unwrap();
        let identity = Identity::from_der(svid.chain, key).unwrap();
        server_config(&identity, &TrustStore::new(), ClientAuth::None, &[b"http/1.1"])
    }

    fn web_endpoint(&self, server: &Server) -> Endpoint {
        Endpoint::https_web(self.trust_domain.clone(), server.url("/bundle").parse().unwrap())
    }

    fn spiffe_endpoint(&self, server: &Server) -> Endpoint {
        let url = server.url("/bundle").parse().unwrap();
        let id = ENDPOINT_ID.parse().unwrap();
        Endpoint::https_spiffe(self.trust_domain.clone(), url, id, self.bundle(1)).unwrap()
    }

    fn roots(&self) -> WebRoots {
        WebRoots::open(Some(&self.web_roots)).unwrap()
    }

    /// What a web server with this answer leads to.
    async fn fetch_web(&self, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Result<Bundle, PollError> {
        let server = Server::start(self.web.clone(), answer).await;
        fetch(&self.web_endpoint(&server), &BundleSet::new(), &self.roots()).await
    }
}

/// An authority's certificate in PEM, and a server with a certificate of it.
fn web_server(name: &str) -> (String, Arc<ServerConfig>) {
    let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = rcgen::CertifiedIssuer::self_signed(root, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(leaf.der().to_vec())],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        );
    (root.pem(), Arc::new(config.unwrap()))
}

/// Answers each request with bytes of a test's making.
struct Server {
    port: u16,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    async fn start(config: Arc<ServerConfig>, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start_with(config, Duration::ZERO, answer).await
    }

    /// Pauses after each kilobyte.
    async fn start_with(
        config: Arc<ServerConfig>,
        pause: Duration,
        answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(config);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that refuses the server, or has read enough, ends the connection.
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = respond(stream, pause, &answer).await;
                }
            }
        });
        Self { port, serving }
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }
}

async fn respond(
    mut stream: TlsStream<TcpStream>,
    pause: Duration,
    answer: &(impl Fn(&str) -> Vec<u8> + Send + Sync),
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    for piece in answer(&String::from_utf8_lossy(&request)).chunks(1024) {
        stream.write_all(piece).await?;
        if !pause.is_zero() {
            stream.flush().await?;
            tokio::time::sleep(pause).await;
        }
    }
    stream.shutdown().await
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn jwks(bundle: &Bundle) -> impl Fn(&str) -> Vec<u8> + Send + Sync + 'static {
    let body = bundle.to_jwks();
    move |_| ok(body.as_bytes())
}

fn moved(status: u16, to: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Moved\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_bundle_is_fetched_by_either_profile() {
    let partner = Partner::new();
    let wanted = partner.bundle(7);
    assert_eq!(partner.fetch_web(jwks(&wanted)).await.unwrap(), wanted);
    let server = Server::start(partner.spiffe(ENDPOINT_ID), jwks(&wanted)).await;
    let endpoint = partner.spiffe_endpoint(&server);
    assert_eq!(fetch(&endpoint, &BundleSet::new(), &WebRoots::none()).await.unwrap(), wanted);
}

#[tokio::test]
async fn the_request_is_what_the_standard_asks_for() {
    let partner = Partner::new();
    let body = partner.bundle(7).to_jwks();
    let fetched = partner.fetch_web(move |request| {
        let lower = request.to_lowercase();
        let fits = request.starts_with("GET /bundle HTTP/1.1\r\n")
            && lower.contains("accept: application/json\r\n")
            && lower.contains("host: 127.0.0.1:")
            && !lower.contains("accept-encoding");
        if fits { ok(body.as_bytes()) } else { b"HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n".to_vec() }
    });
    assert_eq!(fetched.await.unwrap(), partner.bundle(7));
}

#[tokio::test]
async fn a_web_server_of_another_authority_or_name_is_refused() {
    let partner = Partner::new();
    let (other_root, other) = web_server("elsewhere.example");
    for config in [web_server("127.0.0.1").1, other] {
        let server = Server::start(config, jwks(&partner.bundle(7))).await;
        let refused = fetch(&partner.web_endpoint(&server), &BundleSet::new(), &partner.roots()).await.unwrap_err();
        assert!(matches!(refused, PollError::Handshake(HandshakeError::Tls(_))), "{refused}");
    }
    drop(other_root);
}

#[tokio::test]
async fn an_endpoint_with_another_identity_is_refused() {
    let (partner, stranger) = (Partner::new(), Partner::new());
    let wrong =
        [partner.spiffe("spiffe://partner.example/somebody"), stranger.spiffe(ENDPOINT_ID), partner.web.clone()];
    for config in wrong {
        let server = Server::start(config, jwks(&partner.bundle(7))).await;
        let refused = fetch(&partner.spiffe_endpoint(&server), &BundleSet::new(), &partner.roots()).await.unwrap_err();
        assert!(matches!(refused, PollError::Handshake(HandshakeError::Peer(_))), "{refused}");
    }
}

#[tokio::test]
async fn later_fetches_believe_the_newest_bundle_and_not_the_bootstrap_one() {
    let (partner, successor) = (Partner::new(), Partner::new());
    let mut held = BundleSet::new();
    held.offer(successor.bundle(8)).unwrap();
    let server = Server::start(successor.spiffe(ENDPOINT_ID), jwks(&successor.bundle(8))).await;
    fetch(&partner.spiffe_endpoint(&server), &held, &WebRoots::none()).await.unwrap();
    let server = Server::start(partner.spiffe(ENDPOINT_ID), jwks(&successor.bundle(8))).await;
    fetch(&partner.spiffe_endpoint(&server), &held, &WebRoots::none()).await.unwrap_err();
}

#[tokio::test]
async fn temporary_redirects_are_followed_and_no_others() {
    let partner = Partner::new();
    let redirected =
        |status: u16| {
            let body = partner.bundle(7).to_jwks();
            partner.fetch_web(move |request| {
                if request.starts_with("GET /there") { ok(body.as_bytes()) } else { moved(status, "/there") }
            })
        };
    for status in [302, 303, 307] {
        assert_eq!(redirected(status).await.unwrap(), partner.bundle(7));
    }
    for status in [301, 308] {
        let refused = redirected(status).await.unwrap_err();
        assert!(matches!(refused, PollError::Fetch(FetchError::PermanentRedirect(_))), "{refused}");
    }
    let refused = partner.fetch_web(|_| moved(307, "/again")).await.unwrap_err();
    assert!(matches!(refused, PollError::Fetch(FetchError::TooManyRedirects)), "{refused}");
}

#[tokio::test]
async fn a_redirect_to_plain_http_is_refused() {
    let partner = Partner::new();
    let refused = partner.fetch_web(|_| moved(307, "http://127.0.0.1/bundle")).await.unwrap_err();
    assert!(matches!(refused, PollError::Fetch(FetchError::Redirect(UrlError::Scheme))), "{refused}");
}

#[tokio::test]
async fn a_redirect_to_a_server_of_another_identity_is_refused() {
    let partner = Partner::new();
    for (id, followed) in [("spiffe://partner.example/somebody", false), (ENDPOINT_ID, true)] {
        let there = Server::start(partner.spiffe(id), jwks(&partner.bundle(7))).await;
        let location = there.url("/bundle");
        let here = Server::start(partner.spiffe(ENDPOINT_ID), move |_| moved(307, &location)).await;
        let fetched = fetch(&partner.spiffe_endpoint(&here), &BundleSet::new(), &WebRoots::none()).await;
        assert_eq!(fetched.is_ok(), followed, "{id}");
    }
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused_whether_it_is_announced_or_not() {
    let partner = Partner::new();
    let body = vec![b' '; 10_000_000];
    let announced = body.clone();
    let refused = partner.fetch_web(move |_| ok(&announced)).await.unwrap_err();
    assert!(matches!(refused, PollError::Fetch(FetchError::TooLarge)), "{refused}");
    let refused = partner.fetch_web(move |_| [b"HTTP/1.1 200 OK\r\n\r\n", body.as_slice()].concat()).await.unwrap_err();
    assert!(matches!(refused, PollError::Fetch(FetchError::TooLarge)), "{refused}");
}

#[tokio::test]
async fn a_compressed_body_is_refused_unread() {
    let partner = Partner::new();
    let bomb = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b";
    let refused = partner.fetch_web(|_| bomb.to_vec()).await.unwrap_err();
    assert!(matches!(refused, PollError::Fetch(FetchError::Encoding(_))), "{refused}");
}

#[tokio::test]
async fn a_slow_body_ends_with_the_deadline() {
    let partner = Partner::new();
    let started = Instant::now();
    let body = vec![b' '; 1_000_000];
    let server = Server::start_with(partner.web.clone(), Duration::from_millis(200), move |_| ok(&body)).await;
    let refused = fetch(&partner.web_endpoint(&server), &BundleSet::new(), &partner.roots()).await.unwrap_err();
    assert!(matches!(refused, PollError::Fetch(FetchError::TooSlow)), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_is_no_bundle_is_refused() {
    let partner = Partner::new();
    let answers: [&[u8]; 4] = [b"{}", b"not json", b"{\"keys\":[],\"keys\":[]}", b""];
    for body in answers {
        let refused = partner.fetch_web(move |_| ok(body)).await.unwrap_err();
        assert!(matches!(refused, PollError::Fetch(FetchError::Bundle(_))), "{refused}");
    }
    let refused = partner.fetch_web(|_| b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec()).await.unwrap_err();
    assert!(matches!(refused, PollError::Fetch(FetchError::Status(500))), "{refused}");
    partner.fetch_web(|_| b"SSH-2.0-server\r\n\r\n".to_vec()).await.unwrap_err();
}

fn configured(partner: &Partner, server: &Server) -> Vec<ForeignTrustDomain> {
    vec![ForeignTrustDomain {
        trust_domain: partner.trust_domain.clone(),
        url: server.url("/bundle").parse().unwrap(),
        profile: ForeignProfile::Web { roots_file: Some(partner.web_roots.clone()) },
    }]
}

async fn next(inputs: &mut mpsc::Receiver<Input>) -> Vec<Bundle> {
    match tokio::time::timeout(Duration::from_secs(20), inputs.recv()).await.unwrap().unwrap() {
        Input::ForeignBundles(bundles) => bundles,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_last_good_bundle_outlives_a_restart_and_is_not_rolled_back() {
    let partner = Partner::new();
    let state = StateDirectory::open(&partner.directory.path().join("state")).unwrap();
    let server = Server::start(partner.web.clone(), jwks(&partner.bundle(7))).await;
    let config = configured(&partner, &server);
    let run = |config: Vec<ForeignTrustDomain>, metrics: Metrics| {
        let bundles = ForeignBundles::open(&config, state.clone(), metrics).unwrap();
        let (inputs, received) = mpsc::channel(4);
        (tokio::spawn(bundles.run(inputs)), received)
    };
    let (running, mut inputs) = run(config, Metrics::default());
    assert_eq!(next(&mut inputs).await, []);
    assert_eq!(next(&mut inputs).await, [partner.bundle(7)]);
    let file = state.path("foreign-bundles.json");
    let written = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("spiffe_sequence"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !written() {
        assert!(Instant::now() < deadline, "it is written down");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.abort();

    // An older bundle is served now, correctly signed by nobody but TLS: the newer one stays.
    let older = Server::start(partner.web.clone(), jwks(&partner.bundle(6))).await;
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::default();
    metrics.register(&mut registry);
    let (running, mut inputs) = run(configured(&partner, &older), metrics);
    assert_eq!(next(&mut inputs).await, [partner.bundle(7)]);
    let shown = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !shown().contains("result=\"failed\"") {
        assert!(Instant::now() < deadline, "{}", shown());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(inputs.try_recv().is_err(), "nothing changed");
    running.abort();

    // No longer configured, no longer believed; what was seen is remembered.
    let bundles = ForeignBundles::open(&[], state.clone(), Metrics::default()).unwrap();
    assert_eq!(bundles.bundles(), []);
}
