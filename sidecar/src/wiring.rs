//! Puts the parts together.

use std::fs::File;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use federation_api::client::Reconnect;
use federation_api::client::discovery::{Discovery, WatchOptions};
use federation_api::discovery::v1::ProxyKind;
use mesh_runtime::{Process, ReadinessGuard};
use mesh_tls::{ClientAuth, Identity, TrustStore};
use rustix::fs::{FlockOperation, flock};
use socket2::{Domain, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, Semaphore};
use tracing::info;

use crate::config::{Config, WorkloadConfig};
use crate::identity::{Issuing, Pins};
use crate::inbound::Inbound;
use crate::inbound::admission::Admission;
use crate::inbound::application::Application;
use crate::inbound::denials::Denials;
use crate::inbound::serving::Served;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::outbound::Outbound;
use crate::routing::plan::{ALPN_HTTP, ALPN_TCP, Place, Planner};
use crate::routing::state::State;
use crate::routing::{Router, upkeep};
use crate::session::dial::Dialer;
use crate::session::resolver::Resolver;
use crate::tasks::Tasks;
use crate::trust_age::TrustAge;
use crate::workload_api::{self, Socket, Standing, WorkloadApi};
use crate::{admin, capture};

/// Connections that the kernel holds for a listener until they are taken.
const BACKLOG: i32 = 1024;

/// After the drain has begun: time for every session's task to notice and to hold it.
const SETTLE: Duration = Duration::from_millis(100);

/// A running sidecar.
pub struct Sidecar {
    process: Process,
    tasks: Tasks,
    outbound: Vec<SocketAddr>,
    inbound: Vec<SocketAddr>,
}

impl std::fmt::Debug for Sidecar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Sidecar")
            .field("outbound", &self.outbound)
            .field("inbound", &self.inbound)
            .finish_non_exhaustive()
    }
}

/// What all parts share.
struct Parts {
    config: Config,
    process: Process,
    tasks: Tasks,
    metrics: Metrics,
    identity: Identity,
    trust: TrustStore,
    router: Router,
    dialer: Dialer,
    serving: Arc<Served>,
    admission: Admission,
    ejected: Arc<Notify>,
    standing: Standing,
    trust_age: Arc<TrustAge>,
}

impl Sidecar {
    /// Binds the listeners and starts every part; ready when there is an identity and a first state.
    ///
    /// # Errors
    /// When a listener cannot be bound or the state directory cannot be used.
    pub async fn start(config: Config, process: Process) -> anyhow::Result<Self> {
        let identity_ready = process.readiness().require("identity");
        let state_ready = process.readiness().require("state");
        create_private(&config.state_directory)?;
        let locked = lock(&config.state_directory)?;
        let outbound = bind("listeners.outbound", &config.listeners.outbound).await?;
        let inbound = bind("listeners.inbound", &config.listeners.inbound).await?;
        let names = NameSockets::bind(&config.listeners.dns).await?;
        let strict = bind("listeners.strict", &config.listeners.strict).await?;
        left_alone(&config)?;
        let socket = match &config.workload_api {
            Some(api) => Some(Socket::bind(&api.socket).await.context("workloadApi.socket")?),
            None => None,
        };
        let parts = Parts::new(config, process)?;
        let sidecar = Self {
            process: parts.process.clone(),
            tasks: parts.tasks.clone(),
            outbound: addresses(&outbound)?,
            inbound: addresses(&inbound)?,
        };
        // Held while anything of this sidecar runs, its drain included.
        parts.tasks.spawn(async move {
            let _locked = locked;
            std::future::pending::<()>().await;
        });
        parts.serve_outbound(outbound);
        parts.serve_inbound(inbound, strict);
        parts.serve_names(names)?;
        if let Some(socket) = socket {
            parts.serve_workload_api(socket)?;
        }
        parts.keep_up();
        parts.follow(identity_ready, state_ready)?;
        info!(outbound = ?sidecar.outbound, inbound = ?sidecar.inbound, "sidecar started");
        Ok(sidecar)
    }

    /// Where the explicit proxy listens.
    #[must_use]
    pub fn outbound(&self) -> &[SocketAddr] {
        &self.outbound
    }

    /// Where mesh connections are taken.
    #[must_use]
    pub fn inbound(&self) -> &[SocketAddr] {
        &self.inbound
    }

    /// Serves until the drain has begun. What is under way then goes on in its own tasks and holds the drain.
    pub async fn run(self) {
        let drain = self.process.drain();
        drain.signaled().await;
        info!("draining");
        // Listeners stay: new connections from the mesh are told to go elsewhere, and the application may need others to
        // finish. What is under way holds the drain, and the process waits for it after this.
        let _hold = drain.hold();
        tokio::time::sleep(SETTLE).await;
    }

    /// Ends everything at once.
    pub async fn stop(self) {
        self.tasks.end().await;
    }
}

impl Parts {
    fn new(config: Config, process: Process) -> anyhow::Result<Self> {
        let tasks = Tasks::default();
        let metrics = Metrics::default();
        process.register(|registry| metrics.register(registry));
        let (identity, trust) = (Identity::empty(), TrustStore::new());
        let loopback = config.workload.addresses.iter().any(|address| address.is_loopback());
        let resolver = Resolver::new(loopback);
        let dialer = Dialer::new(resolver, trust.clone(), tasks.clone(), process.drain(), metrics.clone());
        let router = Router::new(config.outbound.lookup_deadline);
        let serving: Arc<Served> = Arc::default();
        let admission = Admission::new(config.inbound.max_requests);
        let own = config.discovery.trust_domain().map_err(|problem| anyhow::anyhow!(problem))?;
        // Before anything listens.
        let trust_age = TrustAge::new(config.max_trust_age, own, trust.clone(), metrics.clone());
        process.add_debug_routes(admin::routes(admin::Shown {
            router: router.clone(),
            identity: identity.clone(),
            trust: trust.clone(),
            serving: Arc::clone(&serving),
            metrics: metrics.clone(),
            admission: admission.clone(),
        }));
        Ok(Self {
            config,
            process,
            tasks,
            metrics,
            identity,
            trust,
            router,
            dialer,
            serving,
            admission,
            ejected: Arc::default(),
            standing: Standing::default(),
            trust_age,
        })
    }

    fn serve_outbound(&self, listeners: Vec<TcpListener>) {
        let outbound = Arc::new(Outbound {
            dialer: self.dialer.clone(),
            router: self.router.clone(),
            identity: self.identity.clone(),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            drain: self.process.drain(),
            connections: Arc::new(Semaphore::new(self.config.outbound.max_connections)),
            requests: Arc::new(Semaphore::new(self.config.outbound.max_requests)),
        });
        for listener in listeners {
            self.tasks.spawn(Arc::clone(&outbound).serve(listener));
        }
    }

    fn serve_inbound(&self, listeners: Vec<TcpListener>, strict: Vec<TcpListener>) {
        let alpn = [ALPN_HTTP, ALPN_TCP];
        let inbound = Arc::new(Inbound {
            tls: mesh_tls::server_config(&self.identity, &self.trust, ClientAuth::Required, &alpn),
            trust: self.trust.clone(),
            identity: self.identity.clone(),
            serving: Arc::clone(&self.serving),
            application: Application::new(self.config.workload.application(), self.config.inbound, self.tasks.clone()),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            drain: self.process.drain(),
            connections: Arc::new(Semaphore::new(self.config.inbound.max_connections)),
            admission: self.admission.clone(),
            denials: Denials::default(),
        });
        for listener in listeners {
            self.tasks.spawn(Arc::clone(&inbound).serve(listener));
        }
        let captured = !strict.is_empty();
        self.tasks.spawn(capture::strict::follow(Arc::clone(&self.serving), self.metrics.clone(), captured));
        for listener in strict {
            self.tasks.spawn(Arc::clone(&inbound).serve_plaintext(listener));
        }
    }

    fn serve_workload_api(&self, socket: Socket) -> anyhow::Result<()> {
        let metrics = workload_api::Metrics::default();
        self.process.register(|registry| metrics.register(registry));
        let trust_domain = self.config.discovery.trust_domain().map_err(|problem| anyhow::anyhow!(problem))?;
        let (identity, trust) = (self.identity.clone(), self.trust.clone());
        let api = WorkloadApi::new(trust_domain, identity, trust, self.standing.clone(), metrics);
        self.tasks.spawn(api.serve(socket));
        Ok(())
    }

    fn serve_names(&self, sockets: NameSockets) -> anyhow::Result<()> {
        if sockets.tcp.is_empty() {
            return Ok(());
        }
        let resolvers = capture::system_resolvers().map_err(|error| anyhow::anyhow!("/etc/resolv.conf: {error}"))?;
        let names = Names::new(self.router.clone(), &resolvers, self.tasks.clone());
        for socket in sockets.udp {
            self.tasks.spawn(Arc::clone(&names).serve_udp(socket));
        }
        for listener in sockets.tcp {
            self.tasks.spawn(Arc::clone(&names).serve_tcp(listener));
        }
        Ok(())
    }

    fn keep_up(&self) {
        if self.config.capture.is_some() {
            self.tasks.spawn(capture::local::follow(self.router.clone(), self.metrics.clone()));
        }
        self.tasks.spawn(upkeep::probe(self.router.clone(), self.dialer.clone(), Arc::clone(&self.ejected)));
        self.tasks.spawn(Arc::clone(&self.trust_age).keep());
        self.tasks.spawn(upkeep::tidy(self.router.clone()));
        self.tasks.spawn(upkeep::spread(self.router.clone()));
    }

    /// Gets an identity, then follows discovery: at once when both are on disk.
    fn follow(self, identity_ready: ReadinessGuard, state_ready: ReadinessGuard) -> anyhow::Result<()> {
        let named = |problem: String| anyhow::anyhow!(problem);
        let pins = Pins::new(self.config.discovery.trust_domain().map_err(named)?, &self.config.discovery.root_file);
        pins.read();
        let control_plane = self.config.discovery.control_plane().map_err(named)?;
        let mut issuing = Issuing::new(
            self.config.discovery.clone(),
            control_plane,
            pins.clone(),
            self.identity.clone(),
            &self.config.state_directory,
            self.metrics.clone(),
            self.standing.clone(),
        );
        issuing.load();
        let channel = issuing.channel();
        let options = WatchOptions {
            kind: ProxyKind::Sidecar,
            proxy: self.config.workload.name.clone(),
            workload_addresses: self.config.workload.addresses.clone(),
            hosts: Vec::new(),
            advertise: None,
            state_file: Some(self.config.state_directory.join("state")),
            reconnect: Reconnect::default(),
        };
        let state = State {
            router: self.router.clone(),
            planner: Planner {
                identity: self.identity.clone(),
                trust: self.trust.clone(),
                metrics: self.metrics.clone(),
                first_slot: first_slot(&self.config.workload),
            },
            pins,
            serving: self.serving,
            metrics: self.metrics,
            ejected: self.ejected,
            client: self.config.workload.application(),
            place: Place::default(),
            denied_epoch: 0,
            trust_age: self.trust_age,
        };
        let (identity, router, standing) = (self.identity, self.router, self.standing);
        self.tasks.spawn(issuing.keep_renewed());
        self.tasks.spawn(Box::pin(async move {
            // The watch needs an SVID; asking before there is one would only be refused.
            let mut issued = identity.changed();
            while identity.spiffe_id().is_none() {
                if issued.changed().await.is_err() {
                    return;
                }
            }
            identity_ready.ready();
            let (discovery, events) = Discovery::watch(channel, options);
            router.ask(discovery.clone());
            state
                .run(discovery, events, move || {
                    standing.complete();
                    state_ready.ready();
                })
                .await;
        }));
        Ok(())
    }
}

/// Where captured queries arrive.
struct NameSockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl NameSockets {
    async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let tcp = bind("listeners.dns", addresses).await?;
        let mut udp = Vec::with_capacity(addresses.len());
        for address in addresses {
            let socket = bound(*address, addresses, Type::DGRAM).and_then(|socket| UdpSocket::from_std(socket.into()));
            udp.push(socket.with_context(|| format!("listeners.dns: {address} (UDP)"))?);
        }
        Ok(Self { udp, tcp })
    }
}

/// Where a client's slots begin: clients begin at different places, so that together they are even, and each at the same place
/// after a restart, so that one that stays with an endpoint finds it again.
fn first_slot(workload: &WorkloadConfig) -> u16 {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((&workload.name, &workload.addresses));
    // Any 16 bits of it.
    (hash & u64::from(u16::MAX)) as u16
}

/// One sidecar at a time works on a state directory. The lock ends with the process, however it ends.
fn lock(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("stateDirectory: {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("stateDirectory: another sidecar works in {}", directory.display()))?;
    Ok(file)
}

/// With capture, this process's own connections must not come back to it.
fn left_alone(config: &Config) -> anyhow::Result<()> {
    let Some(capture) = &config.capture else { return Ok(()) };
    let user = rustix::process::getuid().as_raw();
    anyhow::ensure!(
        capture.excluded_users.contains(&user),
        "capture.excludedUsers: this process runs as user {user}, who is not among them, so it would capture itself"
    );
    Ok(())
}

/// A directory that its owner alone can read: it holds a key.
fn create_private(path: &Path) -> anyhow::Result<()> {
    let named = || format!("stateDirectory: {}", path.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).with_context(named)
}

async fn bind(field: &str, addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let socket = bound(*address, addresses, Type::STREAM).with_context(|| format!("{field}: {address}"))?;
        let listener = socket.listen(BACKLOG).map_err(anyhow::Error::from).and_then(|()| {
            let listener: std::net::TcpListener = socket.into();
            Ok(TcpListener::from_std(listener)?)
        });
        listeners.push(listener.with_context(|| format!("{field}: {address}"))?);
    }
    Ok(listeners)
}

/// A socket at an address. `[::]` is IPv4's as well, unless that has an address of its own in the list.
fn bound(address: SocketAddr, all: &[SocketAddr], kind: Type) -> std::io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() && all.iter().any(|other| other.is_ipv4() && other.port() == address.port()) {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn addresses(listeners: &[TcpListener]) -> anyhow::Result<Vec<SocketAddr>> {
    listeners.iter().map(|listener| listener.local_addr().context("listener")).collect()
}
