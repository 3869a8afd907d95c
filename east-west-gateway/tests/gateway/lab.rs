//! A cluster in one process: an authority, endpoints that speak mutual TLS, a gateway, clients.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use east_west_gateway::{
    Config, Gateway, Metrics, Side,
    config::{AdvertiseConfig, ConnectConfig, DiscoveryConfig, LimitsConfig},
    remotes::{RemoteChange, Remotes},
    routes::{RouteChange, Routes},
};
use federation::Locality;
use federation_api::{discovery::v1 as wire, record::v1 as record};
use mesh_runtime::{Process, RuntimeConfig};
use mesh_tls::{ClientAuth, ExpectedPeer, Identity, TrustStore, client_config, server_config};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{AlertDescription, pki_types::ServerName};
use spiffe_identity::{Bundle, TrustDomain};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// More than anything here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const HOST: &str = "echo.shop.svc.clusterset.local";
const TRUST_DOMAIN: &str = "east.mesh.example";

/// The cluster's certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) trust: TrustStore,
    /// Its root, PEM.
    pub(crate) root: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{TRUST_DOMAIN}").try_into().unwrap())];
        let root = params.self_signed(&key).unwrap();
        let trust = TrustStore::new();
        trust.insert(Bundle {
            trust_domain: trust_domain(),
            x509_authorities: vec![root.der().clone()],
            sequence: 1,
            refresh_hint: None,
        });
        Self { issuer: Issuer::new(params, key), trust, root: root.pem() }
    }

    pub(crate) fn identity(&self, service_account: &str) -> Identity {
        let (leaf, key) = self.leaf(service_account);
        Identity::from_der(vec![leaf.der().clone()], key.into()).unwrap()
    }

    /// A workload's certificate and its key.
    pub(crate) fn leaf(&self, service_account: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let id = format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/{service_account}");
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

pub(crate) fn trust_domain() -> TrustDomain {
    TRUST_DOMAIN.parse().unwrap()
}

/// An endpoint's sidecar: it speaks first, saying its id in a line, repeats what it gets, and after the client's end says
/// how much that was.
pub(crate) struct Endpoint {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    pub(crate) accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Endpoint {
    pub(crate) async fn start(authority: &Authority, pod: &str) -> Self {
        Self::start_with(authority, pod, b"isthmus-tcp").await
    }

    /// One that speaks this protocol only.
    pub(crate) async fn start_with(authority: &Authority, pod: &str, alpn: &[u8]) -> Self {
        let id = format!("east/shop/{pod}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = server_config(&authority.identity(pod), &authority.trust, ClientAuth::Required, &[alpn]);
        let acceptor = TlsAcceptor::from(config);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (said, counter) = (id.clone(), Arc::clone(&accepted));
        let task = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, SeqCst);
                sessions.spawn(session(acceptor.clone(), stream, said.clone()));
            }
        });
        Self { id, address, accepted, task }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    pub(crate) fn wire(&self, zone: &str) -> wire::Endpoint {
        endpoint(&self.id, self.address, zone)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn session(acceptor: TlsAcceptor, stream: TcpStream, id: String) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    stream.write_all(format!("{id}\n").as_bytes()).await?;
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            stream.write_all(format!("end of {total}").as_bytes()).await?;
            return stream.shutdown().await;
        }
        total += count;
        stream.write_all(&buffer[..count]).await?;
    }
}

pub(crate) fn endpoint(id: &str, address: SocketAddr, zone: &str) -> wire::Endpoint {
    wire::Endpoint {
        id: id.to_owned(),
        address: address.ip().to_string(),
        mesh_port: address.port().into(),
        locality: Some(record::Locality { region: "eu".to_owned(), zone: zone.to_owned() }),
        ready: true,
        ..wire::Endpoint::default()
    }
}

/// A port of 127.0.0.1 where nobody listens.
pub(crate) async fn refusing_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

pub(crate) fn route(endpoints: &[wire::Endpoint]) -> wire::Route {
    wire::Route {
        namespace: "shop".to_owned(),
        name: "echo".to_owned(),
        host: HOST.to_owned(),
        ports: vec![8080],
        endpoints: endpoints.to_vec(),
    }
}

pub(crate) fn config(state_directory: PathBuf) -> Config {
    Config {
        runtime: RuntimeConfig::default(),
        name: "gateway-1".to_owned(),
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        workers: 1,
        proxy_protocol_from: Vec::new(),
        egress: None,
        advertise: AdvertiseConfig { address: "gateway.east.example".to_owned(), port: 15443 },
        locality: Locality::new("eu", "eu-1"),
        discovery: DiscoveryConfig {
            addresses: vec!["127.0.0.1:1".to_owned()],
            trust_domain: TRUST_DOMAIN.to_owned(),
            root_file: PathBuf::new(),
            token_file: PathBuf::new(),
        },
        state_directory,
        connect: ConnectConfig::default(),
        limits: LimitsConfig { hello_deadline: Duration::from_millis(500), ..LimitsConfig::default() },
    }
}

/// A gateway that serves one listener until it is drained.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) routes: Arc<Routes>,
    pub(crate) remotes: Arc<Remotes>,
    pub(crate) process: Process,
    pub(crate) serving: JoinHandle<io::Result<()>>,
}

impl Running {
    pub(crate) async fn start(endpoints: &[wire::Endpoint]) -> Self {
        Self::start_with(endpoints, |_| {}).await
    }

    pub(crate) async fn start_with(endpoints: &[wire::Endpoint], adjust: impl FnOnce(&mut Config)) -> Self {
        Self::start_as("east", Side::Outside, endpoints, adjust).await
    }

    /// One of a cluster that serves connections from one side only.
    pub(crate) async fn start_as(
        cluster: &str,
        side: Side,
        endpoints: &[wire::Endpoint],
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = config(PathBuf::new());
        adjust(&mut config);
        let routes = Arc::new(Routes::new(cluster.parse().unwrap()));
        assert_eq!(routes.apply([RouteChange::Set(&route(endpoints))]), []);
        let (process, metrics) = (Process::for_tests(), Metrics::default());
        process.register(|registry| metrics.register(registry));
        let remotes = Arc::new(Remotes::new(cluster.parse().unwrap()));
        let gateway = Gateway::new(&config, Arc::clone(&routes), Arc::clone(&remotes), metrics);
        let listener = TcpListener::bind(config.listen[0]).await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = process.drain();
        let deadline = Duration::from_millis(700);
        let serving = tokio::spawn(async move { gateway.serve(side, listener, drain, deadline).await });
        Self { address, routes, remotes, process, serving }
    }

    /// Says that another cluster has gateways there.
    pub(crate) fn announce(&self, cluster: &str, gateways: &[SocketAddr]) {
        let gateways = gateways.iter().enumerate().map(|(number, address)| record::Gateway {
            name: format!("gw-{number}"),
            address: address.ip().to_string(),
            port: address.port().into(),
            ..record::Gateway::default()
        });
        let remote = wire::Remote { cluster: cluster.to_owned(), gateways: gateways.collect() };
        assert_eq!(self.remotes.apply([RemoteChange::Set(&remote)]), []);
    }

    /// Waits until a line of the metrics is there.
    pub(crate) async fn metric(&self, line: &str) {
        let wanted = format!("isthmus_test_{line}\n");
        let until = tokio::time::Instant::now() + PATIENCE;
        while !self.process.metrics_text().unwrap().contains(&wanted) {
            assert!(tokio::time::Instant::now() < until, "no {line:?} in:\n{}", self.process.metrics_text().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A session to the service by this name, without any check of who answers but the trust domain's.
    pub(crate) async fn session(&self, authority: &Authority, name: &str) -> Result<Session, Option<AlertDescription>> {
        session_at(self.address, authority, name).await
    }
}

pub(crate) struct Session {
    pub(crate) stream: TlsStream<TcpStream>,
    /// Who answered.
    pub(crate) id: String,
}

/// Opens a session; `Err` holds the alert, or `None` when the connection ended without one.
pub(crate) async fn session_at(
    gateway: SocketAddr,
    authority: &Authority,
    name: &str,
) -> Result<Session, Option<AlertDescription>> {
    let stream = timeout(PATIENCE, TcpStream::connect(gateway)).await.expect("an answer in time").map_err(|_| None)?;
    session_on(stream, authority, name).await
}

/// [`session_at`] on a connection that is there already.
pub(crate) async fn session_on(
    stream: TcpStream,
    authority: &Authority,
    name: &str,
) -> Result<Session, Option<AlertDescription>> {
    let identity = authority.identity("client");
    let config = client_config(
        Some(&identity),
        &authority.trust,
        ExpectedPeer::AnyInTrustDomain(trust_domain()),
        &[b"isthmus-tcp"],
    );
    let opening = async {
        let mut stream =
            TlsConnector::from(config).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await?;
        let mut id = String::new();
        loop {
            match stream.read_u8().await? {
                b'\n' => return Ok(Session { stream, id }),
                byte => id.push(char::from(byte)),
            }
        }
    };
    timeout(PATIENCE, opening).await.expect("a session or a refusal in time").map_err(|error: io::Error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
            _ => None,
        }
    })
}

impl Session {
    /// Sends a text and reads it back.
    pub(crate) async fn echo(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = vec![0; text.len()];
        timeout(PATIENCE, self.stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, text.as_bytes());
    }
}

/// A server name of the service.
pub(crate) fn name(subset: &str) -> String {
    format!("outbound_.8080_.{subset}_.{HOST}")
}
