//! What the rest of the program sees: immutable, published as a whole, shared by reference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation::delegation::Delegation;
use federation::merge::{ConflictReason, Import};
use federation::{
    ClusterName, Gateway, HeadlessEndpoint, Namespace, ServiceHost, ServiceId, ServiceType, ZoneCapacity,
};
use federation_api::discovery::v1::Resource;
use federation_resources::Problem;
use rustls_pki_types::CertificateDer;
use spiffe_identity::TrustDomain;

use crate::conditions::Condition;
use crate::local::{LocalEndpoint, LocalService, NamespaceWorkloads};
use crate::peers::{Alarm, Liveness};

/// The cluster's view of the federation at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every snapshot of this process.
    pub revision: u64,
    /// The first full state was applied: what is not here does not exist.
    pub synced: bool,
    /// The namespaces of this cluster.
    pub namespaces: Arc<BTreeSet<Namespace>>,
    /// Imported services.
    pub services: BTreeMap<ServiceId, Arc<ServiceView>>,
    /// Clusterset IPs, of services and of endpoints of headless ones.
    pub by_vip: Arc<HashMap<IpAddr, ServiceHost>>,
    /// The cluster's own services whose namespaces have opted in, for sidecars.
    pub local_services: BTreeMap<ServiceId, Arc<Resource>>,
    /// Their cluster IPs.
    pub by_cluster_ip: Arc<HashMap<IpAddr, ServiceId>>,
    /// Those for sidecars; none where nobody has opted in.
    pub local_addresses: Option<Arc<Resource>>,
    /// For gateways: exported services, and each endpoint of a headless one.
    pub routes: BTreeMap<ServiceHost, Arc<Resource>>,
    /// For gateways: where other clusters are reached.
    pub remotes: BTreeMap<ClusterName, Arc<Resource>>,
    /// Roots by trust domain.
    pub trust: BTreeMap<String, Arc<Resource>>,
    /// What every proxy must know.
    pub mesh: Arc<Resource>,
    /// What workloads answer.
    pub workloads: BTreeMap<Namespace, Arc<NamespaceWorkloads>>,
    /// The cluster's own services, exported or not.
    pub local: BTreeMap<ServiceId, Arc<LocalService>>,
    /// ServiceExports and how they go.
    pub exports: BTreeMap<ServiceId, Arc<ExportView>>,
    /// The other members.
    pub clusters: BTreeMap<ClusterName, ClusterStatus>,
    /// The epoch of the trust state that is in here.
    pub trust_epoch: u64,
    /// The cluster's own roots.
    pub own_bundle: Arc<OwnBundle>,
    /// What others' signed words make of the own membership.
    pub standing: Standing,
    /// The last sequence that was used.
    pub last_sequence: u64,
    /// The membership is on its way out.
    pub leaving: bool,
    /// Every record of the cluster is withdrawn, and the federator has answered for each.
    pub withdrawn: bool,
    /// Identities that are shut out.
    pub denied: Arc<BTreeSet<String>>,
    /// Trust domains outside the federation that are not believed, with the member whose root's key each has shown.
    pub foreign_refused: Arc<BTreeMap<TrustDomain, TrustDomain>>,
    /// How reading manifests goes.
    pub source: Arc<SourceStatus>,
    /// The session with the federator.
    pub federator: LinkStatus,
    /// The watch of the trust-bundle.
    pub trust_bundle: LinkStatus,
    /// Whether the cluster is a member, and of which generation.
    pub generation: Option<u64>,
    /// The cluster's own gateways as they are published.
    pub gateways: Arc<Vec<Gateway>>,
}

/// The cluster's own roots, as its proxies are told them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnBundle {
    /// Only grows; other roots have a higher one.
    pub sequence: u64,
    /// The roots, DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// The federation has the same ones: from which epoch of the trust state on, at the latest.
    pub published: Option<u64>,
}

/// What the operator's, or a successor's, signed words make of a membership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is against it.
    #[default]
    Good,
    /// Shut out until released.
    Quarantined,
    /// Ended by the operator.
    Evicted,
    /// A later token made another membership of this cluster, of this generation.
    Replaced(u64),
}

/// An imported service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceView {
    /// What the exports make together.
    pub import: Import,
    /// Its addresses here.
    pub vips: Vec<IpAddr>,
    /// Why it, or another cluster's endpoint of it, has none though it should.
    pub without_vip: Option<String>,
    /// What the exporters disagree on.
    pub conflicts: BTreeSet<ConflictReason>,
    /// One sentence for each disagreement.
    pub details: Vec<String>,
    /// Who exports it.
    pub clusters: Vec<ExporterView>,
    /// For sidecars.
    pub resource: Arc<Resource>,
    /// For sidecars: each endpoint of a headless service, by its host.
    pub endpoints: BTreeMap<ServiceHost, Arc<Resource>>,
}

impl ServiceView {
    /// Its hosts that have addresses here: its own, or other clusters' endpoints.
    #[must_use]
    pub fn addressed(&self) -> BTreeSet<ServiceHost> {
        if self.import.service_type == ServiceType::ClusterSetIP {
            return BTreeSet::from([self.import.service.host()]);
        }
        self.stand_ins().map(|(host, _)| host).collect()
    }

    /// Which of its hosts each of its addresses here is.
    pub fn hosts_by_address(&self) -> impl Iterator<Item = (IpAddr, ServiceHost)> {
        let own = self.vips.iter().map(|address| (*address, self.import.service.host()));
        own.chain(
            self.stand_ins()
                .flat_map(|(host, endpoint)| endpoint.addresses.iter().map(move |address| (*address, host.clone()))),
        )
    }

    /// The endpoints of a headless service in other clusters, each with its host.
    pub fn stand_ins(&self) -> impl Iterator<Item = (ServiceHost, &HeadlessEndpoint)> {
        let others = self.clusters.iter().filter(|exporter| !exporter.local);
        others.flat_map(|exporter| {
            exporter.headless.iter().filter_map(|endpoint| {
                let host = self.import.service.endpoint_host(exporter.cluster.clone(), endpoint.label()?).ok()?;
                Some((host, endpoint))
            })
        })
    }
}

/// One exporter of an imported service.
#[derive(Clone, Debug, PartialEq)]
pub struct ExporterView {
    /// The cluster.
    pub cluster: ClusterName,
    /// It is this one.
    pub local: bool,
    /// Its trust domain.
    pub trust_domain: String,
    /// SPIFFE IDs that may answer.
    pub identities: Vec<String>,
    /// The import's ports that it exposes.
    pub ports: Vec<u16>,
    /// Its capacity.
    pub zones: Vec<ZoneCapacity>,
    /// Where to dial, for other clusters.
    pub gateways: Vec<Gateway>,
    /// Whom to dial, for this cluster.
    pub endpoints: Vec<LocalEndpoint>,
    /// A headless service's endpoints: another cluster's with the addresses that stand for them here.
    pub headless: Vec<HeadlessEndpoint>,
    /// The federation has lost touch with it.
    pub suspect: bool,
    /// Its roots are known; without, it cannot be called.
    pub trusted: bool,
    /// Measured, damped.
    pub round_trip: Option<Duration>,
}

/// A ServiceExport of this cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportView {
    /// `spec.exportedLabels`
    pub labels: BTreeMap<String, String>,
    /// `spec.exportedAnnotations`
    pub annotations: BTreeMap<String, String>,
    /// When it was made, or first seen.
    pub created: SystemTime,
    /// `Valid`, `Ready`, `Conflict`.
    pub conditions: Vec<Condition>,
    /// Capacity by zone, as it is.
    pub zones: Vec<ZoneCapacity>,
    /// Endpoints with a sidecar.
    pub endpoints: usize,
    /// Those of them that are ready.
    pub ready: usize,
    /// Endpoints without one.
    pub without_sidecar: u32,
    /// Who may answer.
    pub service_accounts: Vec<String>,
}

/// Another member, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterStatus {
    /// Its session with the federation.
    pub liveness: Option<Liveness>,
    /// Shut out by the operator.
    pub quarantined: bool,
    /// Its membership's generation.
    pub generation: u64,
    /// Its roots are known.
    pub bundle: bool,
    /// What it may claim.
    pub delegation: Option<Delegation>,
    /// Services it exports to namespaces of this cluster.
    pub exports: usize,
    /// Its gateways.
    pub gateways: Vec<Gateway>,
    /// When a record of it was last applied or confirmed.
    pub last_applied: Option<SystemTime>,
    /// What should worry.
    pub alarms: Vec<Alarm>,
}

/// How reading manifests goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Everything that is wrong now.
    pub problems: Vec<Problem>,
    /// Documents of kinds that mean nothing here.
    pub passed_over: BTreeMap<String, u32>,
}

/// A connection to the federation's plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// It is open.
    pub connected: bool,
    /// Why it is not.
    pub problem: Option<String>,
    /// When state last came, or was confirmed to be all there is.
    pub last_applied: Option<SystemTime>,
    /// Up to which revision or epoch.
    pub revision: u64,
    /// Of which history.
    pub incarnation: String,
}
