//! Measuring the gateways of other clusters, as their users reach them: nothing is assumed to work.
//!
//! A probe opens a whole mesh session through the gateway to a service that the cluster exports, and reads the verdict of
//! the sidecar at its end. Where nothing is exported it can only see whether the gateway takes connections. The
//! round-trip time is that of opening the connection.
//!
//! A cluster whose workloads may not dial out is measured the way that they take: through the egress side of its own gateways. Which
//! gateway of the other cluster is behind it then nobody knows, and its round-trip time is that of the verdict; where nothing is
//! exported nothing is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use federation::sni::{Sni, Subset};
use federation::{ClusterName, Gateway, GatewayAddress, Protocol};
use federation_api::verdict;
use futures_util::StreamExt as _;
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, handshake};
use rand::RngExt as _;
use rustls_pki_types::ServerName;
use spiffe_identity::SpiffeId;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::debug;

use crate::config::ProbeConfig;
use crate::proxies::Proxies;
use crate::reconciler::Input;
use crate::snapshot::Snapshot;

/// What a probe offers: HTTP/2 between sidecars, of which it needs only the verdict before it.
const ALPN: &[u8] = b"isthmus-h2";
/// After a change of the gateways the next probes follow this soon at the earliest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);

/// How far a probe got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// A mesh session with a verified peer, and its verdict.
    Session,
    /// A connection to the gateway: the cluster exports nothing that could be asked for.
    Connection,
}

/// What is known of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// When it was probed last.
    pub probed: SystemTime,
    /// Whether that worked, and how far it went; else why not.
    pub outcome: Result<Depth, String>,
    /// When it worked last.
    pub succeeded: Option<SystemTime>,
    /// The round-trip time when it worked last.
    pub round_trip: Option<Duration>,
    /// The own gateway whose egress side it went through, to whichever gateway of the cluster that chose.
    pub through: Option<String>,
}

/// A gateway by cluster and name.
type Key = (ClusterName, String);

/// What is known of all gateways. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Measurements(Arc<Mutex<BTreeMap<Key, Measurement>>>);

impl Measurements {
    /// What is known of a gateway.
    #[must_use]
    pub fn of(&self, cluster: &ClusterName, gateway: &str) -> Option<Measurement> {
        let key = (cluster.clone(), gateway.to_owned());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    fn add(&self, key: Key, through: Option<String>, outcome: Result<(Depth, Duration), String>) {
        let now = SystemTime::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.get(&key);
        let (succeeded, round_trip) = match &outcome {
            Ok((_, time)) => (Some(now), Some(*time)),
            Err(_) => (before.and_then(|it| it.succeeded), before.and_then(|it| it.round_trip)),
        };
        let outcome = outcome.map(|(depth, _)| depth);
        all.insert(key, Measurement { probed: now, outcome, succeeded, round_trip, through });
    }

    fn retain(&self, known: &BTreeSet<Key>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| known.contains(key));
    }

    /// The shortest round-trip time to each cluster over the gateways that work.
    fn round_trips(&self) -> BTreeMap<ClusterName, Duration> {
        let mut times: BTreeMap<ClusterName, Duration> = BTreeMap::new();
        for ((cluster, _), measurement) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let (Ok(_), Some(time)) = (&measurement.outcome, measurement.round_trip) {
                times.entry(cluster.clone()).and_modify(|best| *best = time.min(*best)).or_insert(time);
            }
        }
        times
    }
}

/// What to probe.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    cluster: ClusterName,
    gateway: Gateway,
    /// Something to ask for: the server name, and who may answer.
    service: Option<(String, Vec<String>)>,
}

/// Probes until nobody shows snapshots any more.
pub struct Prober {
    /// How often, how many.
    pub config: ProbeConfig,
    /// The control-plane's own.
    pub identity: Identity,
    /// Whom the mesh believes.
    pub trust: TrustStore,
    /// Where the own gateways' egress sides are found, if nobody may dial out.
    pub way_out: Option<Proxies>,
    /// Where the gateways stand.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where round-trip times go.
    pub inputs: mpsc::Sender<Input>,
    /// Where results go.
    pub measurements: Measurements,
}

impl Prober {
    /// Runs the probes.
    pub async fn run(mut self) {
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            let mut targets = targets(&snapshot);
            let known: BTreeSet<Key> = targets.iter().map(|it| (it.cluster.clone(), it.gateway.name.clone())).collect();
            self.measurements.retain(&known);
            // Without a name to ask for, the way out leads nowhere.
            targets.retain(|target| self.way_out.is_none() || target.service.is_some());
            futures_util::stream::iter(targets)
                .for_each_concurrent(self.config.concurrency, |target| self.probe(target, &snapshot))
                .await;
            let times = self.measurements.round_trips();
            if !times.is_empty() && self.inputs.send(Input::RoundTrips(times)).await.is_err() {
                return;
            }
            tokio::time::sleep(SHORTEST_PAUSE.min(self.config.interval)).await;
            let interval = self.config.interval.mul_f64(rand::rng().random_range(0.8..1.2));
            let others = |snapshot: &Arc<Snapshot>| keys(snapshot) != known;
            tokio::select! {
                () = tokio::time::sleep(interval.saturating_sub(SHORTEST_PAUSE)) => {}
                changed = self.snapshots.wait_for(others) => if changed.is_err() { return },
            }
        }
    }

    async fn probe(&self, target: Target, snapshot: &Snapshot) {
        let way_out = self.way_out.as_ref().map(choose);
        let through = way_out.iter().flatten().map(|gateway| gateway.name.clone()).next();
        let attempt = self.attempt(&target, way_out, snapshot);
        let outcome = match timeout(self.config.timeout, Box::pin(attempt)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {:?}", self.config.timeout)),
        };
        if let Err(error) = &outcome {
            debug!(cluster = %target.cluster, gateway = target.gateway.name, error, "a gateway's probe failed");
        }
        self.measurements.add((target.cluster, target.gateway.name), through, outcome);
    }

    /// `way_out`: through the egress side of an own gateway, of which there may be none.
    async fn attempt(
        &self,
        target: &Target,
        way_out: Option<Option<Gateway>>,
        snapshot: &Snapshot,
    ) -> Result<(Depth, Duration), String> {
        let relayed = way_out.is_some();
        let (host, port) = match way_out {
            None => {
                let address = resolve(target, snapshot).await?;
                (address.ip().to_string(), address.port())
            }
            Some(None) => return Err("no gateway of this cluster has an egress side".to_owned()),
            Some(Some(own)) => (own.address.to_string(), own.port),
        };
        let started = Instant::now();
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| format!("no connection to {host} port {port}: {error}"))?;
        let round_trip = started.elapsed();
        let Some((server_name, identities)) = &target.service else {
            return Ok((Depth::Connection, round_trip));
        };
        let expected: Vec<SpiffeId> = identities.iter().filter_map(|id| id.parse().ok()).collect();
        let config = client_config(Some(&self.identity), &self.trust, ExpectedPeer::AnyOf(expected.into()), &[ALPN]);
        let name = ServerName::try_from(server_name.clone()).map_err(|error| format!("{server_name}: {error}"))?;
        let session = handshake::connect(stream, &config, name, self.config.timeout).await;
        let mut session = session.map_err(|error| error.to_string())?;
        let asked = Instant::now();
        // Whatever the verdict: the way there works, and somebody who may answers.
        verdict::read(&mut session, self.config.timeout).await.map_err(|error| error.to_string())?;
        Ok((Depth::Session, if relayed { asked.elapsed() } else { round_trip }))
    }
}

/// One of the own gateways' egress sides.
fn choose(proxies: &Proxies) -> Option<Gateway> {
    let mut gateways = proxies.egress_gateways();
    let number = rand::rng().random_range(0..gateways.len().max(1));
    (number < gateways.len()).then(|| gateways.swap_remove(number))
}

/// A host name's addresses are held to the cluster's delegation, like those it says itself.
async fn resolve(target: &Target, snapshot: &Snapshot) -> Result<SocketAddr, String> {
    let port = target.gateway.port;
    let host = match &target.gateway.address {
        GatewayAddress::Ip(address) => return Ok(SocketAddr::new(*address, port)),
        GatewayAddress::Host(host) => host.as_str(),
    };
    let delegation = snapshot.clusters.get(&target.cluster).and_then(|cluster| cluster.delegation.as_ref());
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let mut allowed = found.filter(|address| delegation.is_some_and(|it| it.allows_address(address.ip())));
    allowed.next().ok_or_else(|| format!("{host} has no address that is delegated to the cluster"))
}

fn keys(snapshot: &Snapshot) -> BTreeSet<Key> {
    let gateways = |(cluster, status): (&ClusterName, &crate::snapshot::ClusterStatus)| {
        let key = |gateway: &Gateway| (cluster.clone(), gateway.name.clone());
        status.gateways.iter().map(key).collect::<Vec<_>>()
    };
    snapshot.clusters.iter().flat_map(gateways).collect()
}

fn targets(snapshot: &Snapshot) -> Vec<Target> {
    let mut targets = Vec::new();
    for (cluster, status) in &snapshot.clusters {
        let service = service_to_ask(snapshot, cluster);
        targets.extend(status.gateways.iter().map(|gateway| Target {
            cluster: cluster.clone(),
            gateway: gateway.clone(),
            service: service.clone(),
        }));
    }
    targets
}

/// A service with a ready endpoint there and a port that the mesh carries.
fn service_to_ask(snapshot: &Snapshot, cluster: &ClusterName) -> Option<(String, Vec<String>)> {
    snapshot.services.values().find_map(|view| {
        let exporter = view.clusters.iter().find(|exporter| exporter.cluster == *cluster)?;
        let usable = exporter.trusted && exporter.zones.iter().any(|zone| zone.ready > 0);
        let carried = |port: &&federation::merge::ImportPort| {
            port.port.protocol == Protocol::Tcp && port.clusters.contains(cluster)
        };
        let port = view.import.ports.iter().find(carried).filter(|_| usable && !exporter.identities.is_empty())?;
        let host = view.import.service.host();
        let sni = Sni { port: port.port.port, subset: Subset::Cluster(cluster.clone()), host: host.into() };
        Some((sni.to_string(), exporter.identities.clone()))
    })
}
