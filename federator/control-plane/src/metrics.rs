//! What the program counts, all of it seen in the snapshots.

mod identity;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Duration, MissedTickBehavior, interval};

pub use self::identity::Identities;
use crate::probe::Measurements;
use crate::proxies::{Kind, Proxies};
use crate::snapshot::Snapshot;

/// How often ages are brought up to date.
const STEP: Duration = Duration::from_secs(1);
/// Clusters with metrics of their own, at most.
const MAX_CLUSTERS: usize = 1_000;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClusterLabel {
    cluster: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GatewayLabels {
    cluster: String,
    gateway: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// The program's metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    exports: Gauge,
    imports: Gauge,
    synced: Gauge,
    joined: Gauge,
    federator_connected: Gauge,
    trust_bundle_connected: Gauge,
    federator_age: Gauge<f64, AtomicU64>,
    trust_epoch: Gauge,
    manifest_problems: Gauge,
    manifests_passed_over: Gauge,
    proxies: Family<KindLabel, Gauge>,
    cluster_suspect: Family<ClusterLabel, Gauge>,
    cluster_age: Family<ClusterLabel, Gauge<f64, AtomicU64>>,
    cluster_alarms: Family<ClusterLabel, Gauge>,
    gateway_reachable: Family<GatewayLabels, Gauge>,
    gateway_round_trip: Family<GatewayLabels, Gauge<f64, AtomicU64>>,
    identity: identity::Metrics,
}

impl Metrics {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let it = self.clone();
        it.identity.register(registry);
        registry.register("exports", "ServiceExports of the cluster", it.exports);
        registry.register("imports", "Imported services", it.imports);
        registry.register("synced", "1 when the first full state was applied", it.synced);
        registry.register("joined", "1 when the cluster is a member", it.joined);
        registry.register("federator_connected", "1 while the session is open", it.federator_connected);
        registry.register("trust_bundle_connected", "1 while the watch is open", it.trust_bundle_connected);
        let help = "Age of the last word from the federator, -1 before the first";
        registry.register("federator_state_age_seconds", help, it.federator_age);
        registry.register("trust_epoch", "Epoch of the trust state that is applied", it.trust_epoch);
        registry.register("manifest_problems", "Problems in the manifests", it.manifest_problems);
        let help = "Documents of kinds that mean nothing here";
        registry.register("manifests_passed_over", help, it.manifests_passed_over);
        registry.register("proxies", "Connected proxies", it.proxies);
        registry.register("cluster_suspect", "1 while the federation has lost touch", it.cluster_suspect);
        let help = "Age of the last record that was applied or confirmed";
        registry.register("cluster_state_age_seconds", help, it.cluster_age);
        registry.register("cluster_alarms", "Alarms about a cluster's records", it.cluster_alarms);
        registry.register("gateway_reachable", "1 when the last probe worked", it.gateway_reachable);
        registry.register("gateway_round_trip_seconds", "Measured by the last probe", it.gateway_round_trip);
    }

    /// Follows the state until nobody shows it any more.
    pub async fn follow(
        self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        proxies: Proxies,
        measurements: Measurements,
        identities: Identities,
    ) {
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            steps.tick().await;
            if snapshots.has_changed().is_err() {
                return;
            }
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            self.show(&snapshot, &proxies, &measurements);
            self.identity.show(&identities, &snapshot);
        }
    }

    fn show(&self, snapshot: &Snapshot, proxies: &Proxies, measurements: &Measurements) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.exports.set(count(snapshot.exports.len()));
        self.imports.set(count(snapshot.services.len()));
        self.synced.set(i64::from(snapshot.synced));
        self.joined.set(i64::from(snapshot.generation.is_some()));
        self.federator_connected.set(i64::from(snapshot.federator.connected));
        self.trust_bundle_connected.set(i64::from(snapshot.trust_bundle.connected));
        self.federator_age.set(snapshot.federator.last_applied.map_or(-1.0, age));
        self.trust_epoch.set(i64::try_from(snapshot.trust_epoch).unwrap_or(i64::MAX));
        self.manifest_problems.set(count(snapshot.source.problems.len()));
        self.manifests_passed_over.set(snapshot.source.passed_over.values().copied().map(i64::from).sum());
        let connected = proxies.connected();
        for (kind, name) in [(Kind::Sidecar, "sidecar"), (Kind::Gateway, "gateway")] {
            let of_kind = connected.iter().filter(|proxy| proxy.kind == kind).count();
            self.proxies.get_or_create(&KindLabel { kind: name }).set(count(of_kind));
        }
        self.show_clusters(snapshot, measurements);
    }

    /// Clusters come and go: what is shown is what there is.
    fn show_clusters(&self, snapshot: &Snapshot, measurements: &Measurements) {
        self.cluster_suspect.clear();
        self.cluster_age.clear();
        self.cluster_alarms.clear();
        self.gateway_reachable.clear();
        self.gateway_round_trip.clear();
        for (name, status) in snapshot.clusters.iter().take(MAX_CLUSTERS) {
            let label = ClusterLabel { cluster: name.to_string() };
            let suspect = status.liveness.is_some_and(|liveness| !liveness.connected);
            self.cluster_suspect.get_or_create(&label).set(i64::from(suspect));
            self.cluster_alarms.get_or_create(&label).set(i64::try_from(status.alarms.len()).unwrap_or(i64::MAX));
            if let Some(applied) = status.last_applied {
                self.cluster_age.get_or_create(&label).set(age(applied));
            }
            for gateway in &status.gateways {
                let Some(measured) = measurements.of(name, &gateway.name) else { continue };
                let label = GatewayLabels { cluster: name.to_string(), gateway: gateway.name.clone() };
                self.gateway_reachable.get_or_create(&label).set(i64::from(measured.outcome.is_ok()));
                if let Some(time) = measured.round_trip {
                    self.gateway_round_trip.get_or_create(&label).set(time.as_secs_f64());
                }
            }
        }
    }
}

fn age(since: SystemTime) -> f64 {
    SystemTime::now().duration_since(since).unwrap_or_default().as_secs_f64()
}
