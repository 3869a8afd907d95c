//! The program, put together.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use federation_api::discovery::v1::discovery_server::DiscoveryServer;
use mesh_runtime::{DrainWatcher, Process};
use mesh_tls::rpc::{self, AcceptLimits};
use mesh_tls::{ClientAuth, Identity, TrustStore, server_config};
use spiffe_identity::{Bundle, DEFAULT_REFRESH_HINT, HINTS_BEFORE_USE, Pace, TrustDomain};
use svid_issuer::Authority;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use crate::admin::{self, Admin, AdminSocket};
use crate::authority::{self, OwnAuthority};
use crate::config::{Config, Origin, RotationConfig};
use crate::discovery::DiscoveryService;
use crate::driver::{Driver, INPUTS};
use crate::foreign_bundles::{self, ForeignBundles};
use crate::import_files::{self, ImportFiles};
use crate::kubernetes::{Election, Reviewer, Term, Writer, connect, standing_addresses, tell_policies, tell_roots};
use crate::membership::Membership;
use crate::metrics::{Identities, Metrics};
use crate::names::NameSockets;
use crate::plane::{Plane, PlaneFacts, joined_input};
use crate::probe::{Measurements, Prober};
use crate::proxies::Proxies;
use crate::reconciler::{Facts, Input, Now, Reconciler, Restored};
use crate::rotation::Rotator;
use crate::snapshot::Snapshot;
use crate::source::{FileSource, KubernetesSource, Source as _};
use crate::state::StateDirectory;
use crate::tokens::TokenKey;
use crate::vips::{SavedVips, VipAllocator};

/// What was opened and bound before anything runs.
struct Parts {
    config: Arc<Config>,
    state: StateDirectory,
    authority: Arc<Authority>,
    tokens: Arc<TokenKey>,
    membership: Option<Membership>,
    restored: Restored,
    imports: Option<ImportFiles>,
    listener: TcpListener,
    names: NameSockets,
    socket: AdminSocket,
    foreign: ForeignBundles,
    foreign_metrics: foreign_bundles::Metrics,
}

/// Runs a control-plane until its process drains.
///
/// # Errors
/// Something of the configuration cannot be opened or bound, or a part of the program failed.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let started = process.readiness().require("the cluster's own services");
    let joined = process.readiness().require("join");
    let synced = process.readiness().require("the federation's first full state");
    let drain = process.drain();
    let mut term = match &config.kubernetes {
        None => None,
        Some(kubernetes) => {
            let election = Election::new(connect(kubernetes).await?, &kubernetes.namespace);
            tokio::select! {
                () = drain.signaled() => return Ok(()),
                term = election.win() => Some(term),
            }
        }
    };
    let mut parts = Box::pin(open(config)).await?;
    if let Some(term) = &term
        && parts.restored.vips.is_empty()
    {
        parts.restored.vips = SavedVips::of_imports(standing_addresses(&term.client()).await?);
    }
    let mut tasks = JoinSet::new();
    let snapshots = start(parts, term.as_ref(), &process, &mut tasks)?;
    tasks.spawn(become_ready(snapshots, started, joined, synced));
    let outcome = until_the_end(&mut tasks, term.as_mut(), drain).await;
    tasks.shutdown().await;
    if let Some(term) = term {
        term.release().await;
    }
    outcome
}

/// Waits for the drain, for a part that fails, or for the Lease to be lost.
async fn until_the_end(tasks: &mut Tasks, term: Option<&mut Term>, drain: DrainWatcher) -> anyhow::Result<()> {
    let mut lost = std::pin::pin!(async {
        match term {
            Some(term) => term.hold().await,
            None => std::future::pending().await,
        }
    });
    loop {
        tokio::select! {
            // First: what ends because of the drain is no failure.
            biased;
            () = drain.signaled() => return Ok(()),
            lost = &mut lost => return Err(lost.into()),
            // Readiness, and servers that drained, end by themselves.
            Some(ended) = tasks.join_next() => ended.context("a part of the program failed")??,
        }
    }
}

async fn open(config: Config) -> anyhow::Result<Parts> {
    let listen = config.discovery.listen;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("discovery.listen: cannot listen on {listen}"))?;
    let names = NameSockets::bind(&config.dns.listen).await?;
    let socket = AdminSocket::bind(&config.admin_socket).await?;
    let opened = tokio::task::spawn_blocking(move || {
        let state = StateDirectory::open(&config.state_directory)?;
        let trust_domain: TrustDomain = config.trust_domain_name().parse()?;
        let authority = authority::open(&config, &trust_domain, SystemTime::now())?;
        authority::write_pins(&authority, &state)?;
        let imports = match config.origin() {
            Some(Origin::Directories { imports, .. }) => {
                Some(ImportFiles::open(imports).with_context(|| format!("importsDirectory: {}", imports.display()))?)
            }
            _ => None,
        };
        let foreign_metrics = foreign_bundles::Metrics::default();
        let foreign = ForeignBundles::open(&config.foreign_trust_domains, state.clone(), foreign_metrics.clone())?;
        Ok::<_, anyhow::Error>(Parts {
            foreign,
            foreign_metrics,
            tokens: Arc::new(TokenKey::open_or_create(&state, trust_domain.as_str())?),
            membership: Membership::load(&state, &config.federation)?,
            restored: Restored::read(&state)?,
            config: Arc::new(config),
            state,
            authority: Arc::new(authority),
            imports,
            listener,
            names,
            socket,
        })
    });
    opened.await?
}

type Tasks = JoinSet<anyhow::Result<()>>;

/// Starts every task; they end with the set.
fn start(
    parts: Parts,
    term: Option<&Term>,
    process: &Process,
    tasks: &mut Tasks,
) -> anyhow::Result<watch::Receiver<Arc<Snapshot>>> {
    let Parts {
        config,
        state,
        authority,
        tokens,
        membership,
        restored,
        imports,
        listener,
        names,
        socket,
        foreign,
        foreign_metrics,
    } = parts;
    let bundle = own_bundle(&config, &authority, &restored);
    let trust = TrustStore::new();
    trust.insert(bundle.clone());
    let (inputs, received) = mpsc::channel(INPUTS);
    let foreign_inputs = inputs.clone();
    let own = OwnAuthority::new(Arc::clone(&authority), config.svid_lifetime, state.clone(), inputs.clone())?;
    let identity = own.identity().clone();
    let (sender, snapshots) = watch::channel(Arc::<Snapshot>::default());
    let proxies = Proxies::new(restored.gateways.clone(), Instant::now());
    let plane_facts = PlaneFacts {
        cluster: config.cluster.clone(),
        federation: config.federation.clone(),
        plane: config.federation.as_str().parse()?,
        trust: trust.clone(),
        own: authority.trust_domain().clone(),
        state: state.clone(),
    };
    let (plane, handle, joiner, joins) =
        Plane::new(plane_facts, &restored, inputs.clone(), snapshots.clone(), proxies.clone());
    let joined = membership.as_ref().map(joined_input).transpose()?;
    let facts = Facts {
        cluster: config.cluster.clone(),
        federation: config.federation.clone(),
        trust_domain: config.trust_domain_name(),
        bundle,
        spread: rand::random(),
    };
    let vips = VipAllocator::new(config.clusterset_ips.ipv4, config.clusterset_ips.ipv6, restored.vips.clone());
    let reconciler = Reconciler::new(facts, vips, restored, joined, Now::read());
    let driver =
        Driver { reconciler, inputs: received, state, trust: trust.clone(), snapshots: sender, plane: handle.clone() };
    spawn(tasks, "the reconciler", driver.run());
    spawn(tasks, "the plane", plane.run(joins, membership));
    let (rotator, rotations) =
        Rotator::new(own.clone(), pace(&config), proxies.clone(), handle.clone(), snapshots.clone());
    spawn(tasks, "the rotation of roots", rotator.run());
    let reviewer = follow_objects(&config, term, imports, &inputs, &snapshots, tasks);
    spawn(tasks, "the gateways", tell_gateways(proxies.clone(), config.egress_restricted, inputs.clone()));

    let measurements = Measurements::default();
    let prober = Prober {
        config: config.probes.clone(),
        identity: identity.clone(),
        trust: trust.clone(),
        way_out: config.egress_restricted.then(|| proxies.clone()),
        snapshots: snapshots.clone(),
        inputs,
        measurements: measurements.clone(),
    };
    process.register(|registry| foreign_metrics.register(registry));
    spawn(tasks, "foreign bundles", foreign.run(foreign_inputs));
    spawn(tasks, "the prober", prober.run());
    spawn(tasks, "the authority's upkeep", own.clone().keep());

    let metrics = Metrics::default();
    process.register(|registry| metrics.register(registry));
    let identities = Identities { authority: own.clone(), plane: handle.clone(), rotations: rotations.clone() };
    spawn(tasks, "metrics", metrics.follow(snapshots.clone(), proxies.clone(), measurements.clone(), identities));
    let dns = names.addresses().to_vec();
    serve_names(names, &snapshots, process, tasks);

    let admin = Admin {
        config: Arc::clone(&config),
        snapshots: snapshots.clone(),
        proxies: proxies.clone(),
        measurements,
        tokens: Arc::clone(&tokens),
        joiner,
        authority: own,
        rotations,
        plane: handle,
        dns,
        readiness: process.readiness().clone(),
    };
    let drain = process.drain();
    let serving = socket.serve(admin::router(admin), async move { drain.signaled().await });
    tasks.spawn(async move { serving.await.context("adminSocket") });

    let service = DiscoveryService::new(
        authority,
        TokenAttestor { own: tokens, reviewer },
        config.svid_lifetime,
        snapshots.clone(),
        proxies,
    );
    serve_discovery(listener, service, &identity, &trust, tasks);
    Ok(snapshots)
}

/// A part that must not end before the program does.
fn spawn(tasks: &mut Tasks, part: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        task.await;
        anyhow::bail!("{part} ended")
    });
}

fn serve_names(names: NameSockets, snapshots: &watch::Receiver<Arc<Snapshot>>, process: &Process, tasks: &mut Tasks) {
    if names.addresses().is_empty() {
        return;
    }
    info!(addresses = ?names.addresses(), "answering names");
    let metrics = federation_dns::Metrics::default();
    process.register(|registry| metrics.register(registry));
    let (snapshots, drain) = (snapshots.clone(), process.drain());
    tasks.spawn(async move { names.serve(snapshots, metrics, drain.signaled()).await });
}

fn serve_discovery(
    listener: TcpListener,
    service: DiscoveryService<TokenAttestor>,
    identity: &Identity,
    trust: &TrustStore,
    tasks: &mut Tasks,
) {
    let tls = server_config(identity, trust, ClientAuth::Optional, &[rpc::ALPN]);
    let limits = AcceptLimits { close_when_distrusted: Some(trust.clone()), ..AcceptLimits::default() };
    let incoming = rpc::incoming(listener, tls, limits);
    let server = rpc::server().add_service(DiscoveryServer::new(service)).serve_with_incoming(incoming);
    tasks.spawn(async move { server.await.context("discovery") });
}

/// Starts whatever reads the cluster's own objects and writes what follows from them. Returns who checks the tokens of an
/// API server.
fn follow_objects(
    config: &Config,
    term: Option<&Term>,
    imports: Option<ImportFiles>,
    inputs: &mpsc::Sender<Input>,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    tasks: &mut Tasks,
) -> Option<Reviewer> {
    if let Some(imports) = imports {
        spawn(tasks, "import files", import_files::follow(imports, snapshots.clone()));
    }
    if let Some(Origin::Directories { manifests, .. }) = config.origin() {
        let source = FileSource::new(manifests.to_owned(), config.rescan_interval);
        spawn(tasks, "the source", source.run(inputs.clone()));
    }
    let term = term?;
    let source = KubernetesSource::new(term.client());
    spawn(tasks, "the source", source.run(inputs.clone()));
    let (cluster, federation) = (config.cluster.clone(), config.federation.clone());
    let writer = Writer::new(term.client(), term.replica(), snapshots.clone(), cluster, federation);
    spawn(tasks, "the writer", writer.run());
    spawn(tasks, "the conditions of policies", tell_policies(term.client()));
    let namespace = config.kubernetes.as_ref().map(|kubernetes| kubernetes.namespace.clone()).unwrap_or_default();
    spawn(tasks, "the ConfigMap of the roots", tell_roots(term.client(), namespace, snapshots.clone()));
    Some(Reviewer::new(term.client()))
}

/// The own token key, shared with the admin socket; in a Kubernetes cluster also its API server.
struct TokenAttestor {
    own: Arc<TokenKey>,
    reviewer: Option<Reviewer>,
}

impl svid_issuer::Attestor for TokenAttestor {
    async fn attest(&self, token: &str) -> Result<svid_issuer::Workload, svid_issuer::AttestError> {
        match (self.own.check(token), &self.reviewer) {
            (Err(_), Some(reviewer)) => reviewer.attest(token).await,
            (checked, _) => checked,
        }
    }
}

fn pace(config: &Config) -> Pace {
    let RotationConfig { refresh_hint, skew, stall } = config.rotation;
    let absence = refresh_hint * HINTS_BEFORE_USE;
    Pace { refresh_hint, longest_svid: config.svid_lifetime, skew, absence, stall }
}

/// The bundle of the cluster's own roots, with a sequence that goes on from what was published before.
fn own_bundle(config: &Config, authority: &Authority, restored: &Restored) -> Bundle {
    let roots = authority::roots(authority);
    // Said only where it is not what everybody assumes.
    let hint = Some(config.rotation.refresh_hint).filter(|hint| *hint != DEFAULT_REFRESH_HINT);
    Bundle {
        trust_domain: authority.trust_domain().clone(),
        sequence: restored.bundle_sequence(&roots, SystemTime::now()),
        x509_authorities: roots,
        refresh_hint: hint,
    }
}

/// Passes on where the cluster's own gateways are, also when only time has changed that.
async fn tell_gateways(proxies: Proxies, egress_restricted: bool, inputs: mpsc::Sender<Input>) {
    let mut changed = proxies.changed();
    loop {
        changed.borrow_and_update();
        let (gateways, due) = proxies.gateways(Instant::now());
        if inputs.send(Input::Gateways(gateways)).await.is_err() {
            return;
        }
        let egress = if egress_restricted { proxies.egress_gateways() } else { Vec::new() };
        // Without any known one the last ones stay: sidecars that may not dial out have nothing better.
        if !(egress_restricted && egress.is_empty()) && inputs.send(Input::EgressGateways(egress)).await.is_err() {
            return;
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = sleep_until(due) => {}
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Lets go of each guard when what it stands for has happened.
async fn become_ready(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    started: mesh_runtime::ReadinessGuard,
    joined: mesh_runtime::ReadinessGuard,
    synced: mesh_runtime::ReadinessGuard,
) -> anyhow::Result<()> {
    snapshots.wait_for(|snapshot| snapshot.revision > 0).await?;
    started.ready();
    snapshots.wait_for(|snapshot| snapshot.generation.is_some()).await?;
    joined.ready();
    snapshots.wait_for(|snapshot| snapshot.generation.is_some() && snapshot.synced).await?;
    synced.ready();
    info!("ready");
    Ok(())
}
