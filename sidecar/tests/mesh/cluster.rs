//! Clusters of a federation: a control-plane, workloads with sidecars, and what each is told of the other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::discovery::v1::{self as wire, Binding, Endpoint, Mesh, TrustBundle, Workload};
use federation_api::record::v1::{Gateway, Locality, Port, Protocol, ServiceType, ZoneCapacity};
use mesh_runtime::{Process, RuntimeConfig};
use sidecar::Sidecar;
use sidecar::config::{Config, DiscoveryConfig, InboundConfig, Listeners, OutboundConfig, WorkloadConfig};
use svid_issuer::Authority;
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, State};

pub(crate) const FEDERATION: &str = "mesh.example";
pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One cluster.
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) control_plane: ControlPlane,
    directory: TempDir,
}

/// A workload with its sidecar.
pub(crate) struct Pod {
    pub(crate) sidecar: Sidecar,
    pub(crate) process: Process,
    pub(crate) config: Config,
    pub(crate) account: String,
}

impl Pod {
    pub(crate) fn proxy(&self) -> SocketAddr {
        self.sidecar.outbound()[0]
    }

    pub(crate) fn mesh(&self) -> SocketAddr {
        self.sidecar.inbound()[0]
    }
}

/// A port of a service that the tests use.
#[derive(Clone, Copy)]
pub(crate) struct TestPort {
    pub(crate) port: u16,
    pub(crate) app_protocol: &'static str,
}

pub(crate) const HTTP: TestPort = TestPort { port: 80, app_protocol: "http" };
pub(crate) const GRPC: TestPort = TestPort { port: 50051, app_protocol: "grpc" };
pub(crate) const RAW: TestPort = TestPort { port: 6379, app_protocol: "tcp" };

/// Of unknown protocol: the first bytes decide.
pub(crate) const UNDECLARED: TestPort = TestPort { port: 9000, app_protocol: "" };
/// Another one.
pub(crate) const UNDECLARED_TOO: TestPort = TestPort { port: 9001, app_protocol: "" };

/// And one more.
pub(crate) const UNDECLARED_THREE: TestPort = TestPort { port: 9002, app_protocol: "" };

impl TestPort {
    pub(crate) fn wire(self) -> Port {
        Port {
            name: String::new(),
            port: self.port.into(),
            protocol: Protocol::Tcp.into(),
            app_protocol: self.app_protocol.to_owned(),
        }
    }
}

impl Cluster {
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::start_with_lifetime(name, Duration::from_secs(3600)).await
    }

    pub(crate) async fn start_with_lifetime(name: &'static str, lifetime: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain = format!("{name}.{FEDERATION}").parse().unwrap();
        let authority =
            Authority::open_or_create(&directory.path().join("ca"), &trust_domain, SystemTime::now()).unwrap();
        std::fs::write(directory.path().join("root.crt"), mesh_tls::pem::certificates_to_pem([&authority.root()]))
            .unwrap();
        let control_plane = ControlPlane::start(State::new(authority, lifetime)).await;
        let cluster = Self { name, control_plane, directory };
        cluster.confirms_trust(0);
        cluster.trusts(&cluster);
        cluster
    }

    /// Tells this cluster's proxies when the trust state was confirmed, in Unix milliseconds.
    pub(crate) fn confirms_trust(&self, at_ms: i64) {
        let mesh = Mesh {
            cluster: self.name.to_owned(),
            federation: FEDERATION.to_owned(),
            trust_domain: self.state().trust_domain().to_string(),
            federation_applied_at_ms: 1_000,
            clusterset_ranges: vec!["241.0.0.0/8".to_owned(), "fd00:241::/64".to_owned()],
            trust_confirmed_at_ms: at_ms,
            ..Mesh::default()
        };
        self.state().set("mesh", Kind::Mesh(mesh));
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.control_plane.state
    }

    /// Tells this cluster's proxies another one's root.
    pub(crate) fn trusts(&self, other: &Self) {
        let trust_domain = other.state().trust_domain().to_string();
        let bundle = TrustBundle {
            trust_domain: trust_domain.clone(),
            x509_authorities: vec![other.state().authority().root().to_vec()],
            sequence: 1,
        };
        self.state().set(&format!("trust/{trust_domain}"), Kind::TrustBundle(bundle));
    }

    pub(crate) fn identity(&self, account: &str) -> String {
        format!("spiffe://{}/ns/shop/sa/{account}", self.state().trust_domain())
    }

    pub(crate) fn config(&self, pod: &str, account: &str) -> Config {
        let token = self.directory.path().join(format!("{pod}.token"));
        std::fs::write(&token, format!("token:shop/{account}\n")).unwrap();
        Config {
            runtime: RuntimeConfig::default(),
            workload: WorkloadConfig { name: pod.to_owned(), addresses: vec![LOOPBACK], app_address: None },
            discovery: DiscoveryConfig {
                addresses: vec![self.control_plane.address.to_string()],
                trust_domain: self.state().trust_domain().to_string(),
                root_file: self.directory.path().join("root.crt"),
                token_file: token,
            },
            listeners: Listeners {
                outbound: vec![SocketAddr::new(LOOPBACK, 0)],
                inbound: vec![SocketAddr::new(LOOPBACK, 0)],
                dns: vec![],
                strict: vec![],
            },
            state_directory: self.state_directory(pod),
            max_trust_age: None,
            workload_api: None,
            capture: None,
            outbound: OutboundConfig::default(),
            inbound: InboundConfig::default(),
        }
    }

    pub(crate) fn state_directory(&self, pod: &str) -> PathBuf {
        self.directory.path().join(pod)
    }

    /// Starts a workload that answers these ports of `cart.shop` with the application at the target ports.
    pub(crate) async fn pod(&self, name: &str, account: &str, bindings: &[(TestPort, u16)]) -> Pod {
        self.workload(name, account, bindings);
        let pod = self.pod_with(self.config(name, account), account).await;
        ready(&pod.process).await;
        pod
    }

    pub(crate) fn workload(&self, name: &str, account: &str, bindings: &[(TestPort, u16)]) {
        let bindings = bindings.iter().map(|(port, target)| Binding {
            host: host("cart"),
            port: Some(port.wire()),
            target_port: (*target).into(),
        });
        let workload = Workload {
            endpoint: format!("{}/shop/{name}", self.name),
            namespace: "shop".to_owned(),
            service_account: account.to_owned(),
            locality: Some(self.locality()),
            bindings: bindings.collect(),
            ..Workload::default()
        };
        self.state().set(&format!("workload@{name}"), Kind::Workload(workload));
    }

    pub(crate) async fn pod_with(&self, config: Config, account: &str) -> Pod {
        let process = Process::for_tests();
        let sidecar = Sidecar::start(config.clone(), process.clone()).await.unwrap();
        Pod { sidecar, process, config, account: account.to_owned() }
    }

    fn locality(&self) -> Locality {
        Locality { region: self.name.to_owned(), zone: format!("{}-a", self.name) }
    }

    /// An endpoint as discovery says it.
    pub(crate) fn endpoint(&self, pod: &Pod) -> Endpoint {
        self.endpoint_at(&pod.config.workload.name, pod.mesh(), &pod.account)
    }

    pub(crate) fn endpoint_at(&self, name: &str, address: SocketAddr, account: &str) -> Endpoint {
        Endpoint {
            id: format!("{}/shop/{name}", self.name),
            address: address.ip().to_string(),
            mesh_port: address.port().into(),
            locality: Some(self.locality()),
            ready: true,
            identity: self.identity(account),
            ..Endpoint::default()
        }
    }

    /// This cluster's part of `cart.shop` for its own clients.
    pub(crate) fn local(&self, endpoints: Vec<Endpoint>, ports: &[TestPort]) -> wire::Cluster {
        wire::Cluster { endpoints, ..self.part(ports) }
    }

    /// This cluster's part of `cart.shop` for clients elsewhere.
    pub(crate) fn remote(&self, ready: u32, gateways: &[(&str, SocketAddr)], ports: &[TestPort]) -> wire::Cluster {
        let gateways = gateways.iter().map(|(name, address)| Gateway {
            name: (*name).to_owned(),
            address: address.ip().to_string(),
            port: address.port().into(),
            locality: Some(self.locality()),
            ..Gateway::default()
        });
        wire::Cluster {
            gateways: gateways.collect(),
            zones: vec![ZoneCapacity { locality: Some(self.locality()), total: ready, ready }],
            ..self.part(ports)
        }
    }

    fn part(&self, ports: &[TestPort]) -> wire::Cluster {
        wire::Cluster {
            cluster: self.name.to_owned(),
            identities: vec![self.identity("cart")],
            trust_domain: self.state().trust_domain().to_string(),
            ports: ports.iter().map(|port| port.port.into()).collect(),
            ..wire::Cluster::default()
        }
    }

    /// Tells this cluster's clients about `cart.shop`.
    pub(crate) fn imports(&self, ports: &[TestPort], clusters: Vec<wire::Cluster>) {
        let service = self.service(ports, clusters);
        self.state().set(&format!("service/{}", host("cart")), Kind::Service(service));
    }

    /// `cart.shop` as this cluster's clients are told of it.
    pub(crate) fn service(&self, ports: &[TestPort], clusters: Vec<wire::Cluster>) -> wire::Service {
        wire::Service {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            host: host("cart"),
            vips: vec!["241.0.0.7".to_owned(), "fd00:241::7".to_owned()],
            ports: ports.iter().map(|port| port.wire()).collect(),
            r#type: ServiceType::ClusterSetIp.into(),
            clusters,
            ..wire::Service::default()
        }
    }
}

pub(crate) fn host(name: &str) -> String {
    format!("{name}.shop.svc.clusterset.local")
}

/// Waits until a process is ready.
pub(crate) async fn ready(process: &Process) {
    eventually("the sidecar is ready", || process.readiness().is_ready()).await;
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
