//! From the control-plane to the routes, by way of the disk.

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use federation::ServiceHost;
use federation_api::{
    client::{
        Events, Reconnect,
        discovery::{Discovery, DiscoveryEvent, WatchOptions},
    },
    discovery::v1::{Advertise, Mesh, ProxyKind, Resource, TrustBundle, resource::Resource as Kind},
    record::v1 as record,
};
use mesh_runtime::{DrainWatcher, ReadinessGuard};
use rustls_pki_types::CertificateDer;
use tokio::{sync::watch, time::timeout};
use tracing::{error, info, warn};

use crate::{
    config::Config,
    own_identity::OwnIdentity,
    remotes::{RemoteChange, Remotes},
    routes::{RouteChange, Routes},
};

/// The last good state, below the state directory.
const STATE_FILE: &str = "discovery.state";
/// How long the end of the process waits for the disk.
const FLUSH_DEADLINE: Duration = Duration::from_millis(250);
/// What comes before the host in the name of a `Route` resource.
const ROUTE: &str = "route/";
/// What comes before the cluster in the name of a `Remote` resource.
const REMOTE: &str = "remote/";

/// What discovery fills.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) routes: Arc<Routes>,
    pub(crate) remotes: Arc<Remotes>,
}

/// What the gateway knows of its own state; never a reason to be unready.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    /// The stream is open, and its first state is complete.
    pub(crate) synced: AtomicBool,
    /// Unix milliseconds of the last moment at which the state was known to be current; 0: never.
    current_at: AtomicU64,
    pub(crate) rejected: AtomicU64,
}

impl Freshness {
    /// How old the state may be; `None` before the first one.
    pub(crate) fn age(&self) -> Option<Duration> {
        if self.synced.load(Relaxed) {
            return Some(Duration::ZERO);
        }
        let at = self.current_at.load(Relaxed);
        (at > 0).then(|| SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(at)).unwrap_or_default())
    }

    fn current(&self, at: SystemTime) {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.current_at.store(u64::try_from(at).unwrap_or(u64::MAX), Relaxed);
    }
}

/// Keeps the routes as the control-plane says, and tells it where this gateway is.
pub(crate) struct Follower {
    own: Arc<OwnIdentity>,
    tables: Tables,
    freshness: Arc<Freshness>,
    cluster: String,
    options: WatchOptions,
    state_file: PathBuf,
    /// Held until there is a state to serve by.
    unready: Option<ReadinessGuard>,
    has_state: watch::Sender<bool>,
}

impl Follower {
    /// A follower that does nothing before it [runs](Self::run).
    pub(crate) fn new(
        config: &Config,
        own: Arc<OwnIdentity>,
        tables: Tables,
        freshness: Arc<Freshness>,
        unready: ReadinessGuard,
    ) -> Self {
        let state_file = config.state_directory.join(STATE_FILE);
        let options = WatchOptions {
            kind: ProxyKind::Gateway,
            proxy: config.name.clone(),
            workload_addresses: Vec::new(),
            hosts: Vec::new(),
            advertise: Some(advertise(config, false)),
            state_file: Some(state_file.clone()),
            reconnect: Reconnect::default(),
        };
        let cluster = tables.routes.cluster().to_string();
        let has_state = watch::Sender::new(false);
        Self { own, tables, freshness, cluster, options, state_file, unready: Some(unready), has_state }
    }

    /// Turns true with the first state, from disk or live, together with readiness.
    pub(crate) fn has_state(&self) -> watch::Receiver<bool> {
        self.has_state.subscribe()
    }

    /// Follows until `stop` ends; then waits for the disk.
    pub(crate) async fn run(mut self, drain: DrainWatcher, stop: impl Future<Output = ()>) {
        let mut issued = self.own.identity().changed();
        let mut without_svid = self.own.identity().spiffe_id().is_none();
        let (mut discovery, mut events) = self.watch();
        let (mut stop, mut draining) = (pin!(stop), pin!(drain.signaled()));
        let mut advertised_draining = false;
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = &mut draining, if !advertised_draining => {
                    advertised_draining = true;
                    if let Some(advertise) = &mut self.options.advertise {
                        advertise.draining = true;
                        discovery.advertise(advertise.clone());
                    }
                }
                _ = issued.changed(), if without_svid => {
                    without_svid = false;
                    (discovery, events) = self.watch();
                }
                event = events.recv() => match event {
                    Some(event) => self.on_event(event, &discovery),
                    None => break,
                },
            }
        }
        if timeout(FLUSH_DEADLINE, discovery.flush()).await.is_err() {
            warn!(file = %self.state_file.display(), "the last state is not on disk");
        }
    }

    fn watch(&self) -> (Discovery, Events<DiscoveryEvent>) {
        Discovery::watch(self.own.channel(), self.options.clone())
    }

    fn on_event(&mut self, event: DiscoveryEvent, discovery: &Discovery) {
        match event {
            DiscoveryEvent::FromDisk(resources) => self.start_from_disk(&resources),
            DiscoveryEvent::Connected => info!("connected to the control-plane"),
            DiscoveryEvent::Update { ticket, resources, removed, initial_state_complete } => {
                let refused = self.apply(&resources, &removed);
                if refused.is_empty() {
                    discovery.applied(ticket);
                } else {
                    let names: Vec<_> = refused.iter().map(|(name, _)| name.as_str()).collect();
                    let reasons: Vec<_> = refused.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
                    discovery.rejected(ticket, &names, &reasons.join("; "));
                }
                self.freshness.current(SystemTime::now());
                if initial_state_complete {
                    info!(routes = self.tables.routes.len(), "the control-plane's state is complete");
                    self.freshness.synced.store(true, Relaxed);
                    self.ready();
                }
            }
            DiscoveryEvent::Disconnected { reason, retry_in } => {
                warn!(%reason, ?retry_in, "no control-plane: going on with the last state");
                if self.freshness.synced.swap(false, Relaxed) {
                    self.freshness.current(SystemTime::now());
                }
            }
        }
    }

    fn start_from_disk(&mut self, resources: &[Arc<Resource>]) {
        if resources.is_empty() {
            return;
        }
        self.apply(resources, &[]);
        if let Ok(written) = std::fs::metadata(&self.state_file).and_then(|file| file.modified()) {
            self.freshness.current(written);
        }
        info!(routes = self.tables.routes.len(), "starting with the last good state");
        self.ready();
    }

    fn ready(&mut self) {
        self.unready = None;
        self.has_state.send_replace(true);
    }

    /// Applies one step; what was refused, by resource name, with why.
    fn apply(&self, resources: &[Arc<Resource>], removed: &[String]) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        let mut changes = Vec::new();
        let mut remotes: Vec<RemoteChange<'_>> =
            removed.iter().filter_map(|name| Some(RemoteChange::Remove(name.strip_prefix(REMOTE)?))).collect();
        let gone: Vec<ServiceHost> = removed.iter().filter_map(|name| name.strip_prefix(ROUTE)?.parse().ok()).collect();
        changes.extend(gone.iter().map(RouteChange::Remove));
        for resource in resources {
            match &resource.resource {
                Some(Kind::Route(route)) if resource.name.strip_prefix(ROUTE) == Some(route.host.as_str()) => {
                    changes.push(RouteChange::Set(route));
                }
                Some(Kind::Route(route)) => {
                    // It could never be removed by its name.
                    refused.push((resource.name.clone(), format!("holds the route of {:?}", route.host)));
                }
                Some(Kind::Remote(remote)) if resource.name.strip_prefix(REMOTE) == Some(remote.cluster.as_str()) => {
                    remotes.push(RemoteChange::Set(remote));
                }
                Some(Kind::Remote(remote)) => {
                    refused.push((resource.name.clone(), format!("is about the cluster {:?}", remote.cluster)));
                }
                Some(Kind::TrustBundle(bundle)) => self.trust(bundle),
                Some(Kind::Mesh(mesh)) if mesh.cluster != self.cluster => {
                    error!(
                        configured = self.cluster,
                        told = mesh.cluster,
                        "discovery.trustDomain names another cluster"
                    );
                }
                Some(Kind::Mesh(mesh)) => self.tables.remotes.set_own_egress(self.egress_addresses(mesh)),
                // Everything else is meant for sidecars, or for newer gateways.
                _ => {}
            }
        }
        for (host, error) in self.tables.routes.apply(changes) {
            refused.push((format!("{ROUTE}{host}"), error.to_string()));
        }
        for (cluster, error) in self.tables.remotes.apply(remotes) {
            refused.push((format!("{REMOTE}{cluster}"), error.to_string()));
        }
        for (name, reason) in &refused {
            error!(name, reason, "a resource is refused, the last good one stays");
            self.freshness.rejected.fetch_add(1, Relaxed);
        }
        refused
    }

    /// The cluster's egress listeners, those that are known by address; this gateway's is among them.
    fn egress_addresses(&self, mesh: &Mesh) -> Vec<SocketAddr> {
        let of_mesh = mesh.egress_gateways.iter().map(|gateway| (gateway.address.as_str(), gateway.port));
        let own = self.options.advertise.iter().map(|own| (own.egress_address.as_str(), own.egress_port));
        let address = |(ip, port): (&str, u32)| Some(SocketAddr::new(ip.parse().ok()?, u16::try_from(port).ok()?));
        of_mesh.chain(own).filter_map(address).collect()
    }

    fn trust(&self, bundle: &TrustBundle) {
        if bundle.trust_domain == self.own.trust_domain() {
            self.own.announced(bundle.x509_authorities.iter().map(|der| CertificateDer::from(der.clone())).collect());
        }
    }
}

/// Where peers reach this gateway.
fn advertise(config: &Config, draining: bool) -> Advertise {
    Advertise {
        address: config.advertise.address.clone(),
        port: config.advertise.port.into(),
        locality: Some(record::Locality { region: config.locality.region.clone(), zone: config.locality.zone.clone() }),
        draining,
        egress_address: config.egress.as_ref().map(|egress| egress.address.clone()).unwrap_or_default(),
        egress_port: config.egress.as_ref().map_or(0, |egress| egress.port.into()),
    }
}
