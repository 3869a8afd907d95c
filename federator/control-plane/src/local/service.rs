//! One service of this cluster, with its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::SystemTime;

use federation::export::IpFamily;
use federation::{
    ClusterName, Export, HeadlessEndpoint, HostLabel, Locality, Port, ServiceHost, ServiceId, ServiceType, ZoneCapacity,
};
use federation_resources::pruned::{Endpoint, EndpointSlice, Service, ServiceExport, ServiceKind};

use super::LocalIndex;

/// A service and, if somebody asked for it, its export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    /// Its name.
    pub id: ServiceId,
    /// The Service; absent when only a ServiceExport has the name.
    pub service: Option<Service>,
    /// The ServiceExport, if there is one.
    pub export: Option<ServiceExport>,
    /// Endpoints with a sidecar, by id.
    pub endpoints: Vec<LocalEndpoint>,
    /// Endpoints without: they count as no capacity.
    pub without_sidecar: u32,
    /// Its namespace has opted in, and it has an address: the cluster's sidecars carry traffic to it as it is.
    pub local: bool,
    /// A local service's endpoints without a sidecar, by id; nobody knows who they are.
    pub plain: Vec<LocalEndpoint>,
    /// A headless service's endpoints with a sidecar, by slice.
    pub slices: BTreeMap<String, Vec<HeadlessEndpoint>>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// `<cluster>/<namespace>/<pod>`
    pub id: String,
    /// Its pod's name; its address where it is no pod.
    pub pod: String,
    /// Of the service's first family where the pod has several.
    pub address: IpAddr,
    /// All of its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its node's place.
    pub locality: Locality,
    /// May take traffic.
    pub ready: bool,
    /// Its share among the endpoints, at least 1.
    pub weight: u32,
    /// Who it is; empty without a sidecar.
    pub service_account: String,
    /// The number behind each of the service's ports, by the port's name; `None` where the slice leaves it open.
    pub targets: BTreeMap<String, Option<u16>>,
    /// What it is called below its cluster; of a headless service only.
    pub labels: BTreeSet<HostLabel>,
}

impl LocalEndpoint {
    /// Its own hosts in the clusterset, of the service that it is an endpoint of.
    pub fn hosts(&self, service: &ServiceId, own: &ClusterName) -> impl Iterator<Item = ServiceHost> {
        self.labels.iter().filter_map(|label| service.endpoint_host(own.clone(), label.clone()).ok())
    }
}

/// Why a ServiceExport exports nothing: the reasons of its condition `Valid=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// There is no Service of the name.
    NoService,
    /// An ExternalName service.
    InvalidServiceType,
}

impl LocalService {
    pub(super) fn compute(
        index: &LocalIndex,
        id: &ServiceId,
        service: Option<Service>,
        export: Option<ServiceExport>,
    ) -> Self {
        let first_family = service.as_ref().and_then(|service| service.ip_families.first().copied());
        let headless = service.as_ref().is_some_and(|service| service.kind == ServiceKind::Headless);
        let addressed = service.as_ref().is_some_and(|service| service.kind == ServiceKind::Addressed);
        let local = addressed && index.opted_in(&id.namespace);
        let mut collected = Collected {
            index,
            headless,
            first_family: first_family.unwrap_or(IpFamily::IPv4),
            by_pod: BTreeMap::new(),
            without_sidecar: BTreeSet::new(),
            plain: local.then(BTreeMap::new),
        };
        let mut slices = BTreeMap::new();
        for slice in index.slices(id) {
            let endpoints: Vec<_> =
                slice.endpoints.iter().filter_map(|endpoint| collected.add(slice, endpoint)).collect();
            if headless {
                slices.insert(slice.name.clone(), endpoints);
            }
        }
        Self {
            id: id.clone(),
            service,
            export,
            without_sidecar: u32::try_from(collected.without_sidecar.len()).unwrap_or(u32::MAX),
            endpoints: collected.by_pod.into_values().collect(),
            local,
            plain: collected.plain.into_iter().flat_map(BTreeMap::into_values).collect(),
            slices,
        }
    }

    /// The Service, if its export is asked for and possible; `Ok(None)` when no export is asked for.
    ///
    /// # Errors
    /// [`Invalid`]: asked for, but not possible.
    pub fn exported(&self) -> Result<Option<(&Service, &ServiceExport)>, Invalid> {
        let Some(export) = &self.export else { return Ok(None) };
        match &self.service {
            None => Err(Invalid::NoService),
            Some(service) if service.kind == ServiceKind::ExternalName => Err(Invalid::InvalidServiceType),
            Some(service) => Ok(Some((service, export))),
        }
    }

    /// Whether an export is asked for and possible.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        matches!(self.exported(), Ok(Some(_)))
    }

    /// Capacity by zone as it is, sorted.
    #[must_use]
    pub fn zones(&self) -> Vec<ZoneCapacity> {
        ZoneCapacity::add_up(self.endpoints.iter().map(|it| (&it.locality, it.weight, it.ready)))
    }

    /// Who may answer, sorted.
    #[must_use]
    pub fn service_accounts(&self) -> BTreeSet<String> {
        self.endpoints.iter().map(|endpoint| endpoint.service_account.clone()).collect()
    }

    /// The export as it is published: with the capacity that was decided to be told. `created` stands in where the
    /// ServiceExport does not say when it was made.
    #[must_use]
    pub fn as_export(&self, created: SystemTime, zones: Vec<ZoneCapacity>) -> Option<Export> {
        let (service, export) = self.exported().ok()??;
        Some(Export {
            service: self.id.clone(),
            service_type: match service.kind {
                ServiceKind::Headless => ServiceType::Headless,
                ServiceKind::Addressed | ServiceKind::ExternalName => ServiceType::ClusterSetIP,
            },
            ports: service.ports.clone(),
            client_ip_affinity: service.client_ip_affinity,
            ip_families: service.ip_families.clone(),
            internal_traffic_policy: service.internal_traffic_policy.clone(),
            traffic_distribution: service.traffic_distribution.clone(),
            labels: export.labels.clone(),
            annotations: export.annotations.clone(),
            created: export.created.unwrap_or(created),
            service_accounts: self.service_accounts().into_iter().collect(),
            zones,
        })
    }

    /// The number that a pod listens on for a port of the service.
    #[must_use]
    pub fn target(endpoint: &LocalEndpoint, port: &Port) -> Option<u16> {
        endpoint.targets.get(&port.name).map(|target| target.unwrap_or(port.port))
    }
}

struct Collected<'a> {
    index: &'a LocalIndex,
    headless: bool,
    first_family: IpFamily,
    by_pod: BTreeMap<String, LocalEndpoint>,
    without_sidecar: BTreeSet<String>,
    /// Those without a sidecar, where they matter.
    plain: Option<BTreeMap<String, LocalEndpoint>>,
}

impl Collected<'_> {
    /// Takes one endpoint of a slice; a pod of two families is in two slices and counts once.
    fn add(&mut self, slice: &EndpointSlice, endpoint: &Endpoint) -> Option<HeadlessEndpoint> {
        let address = *endpoint.addresses.first()?;
        let pod = endpoint.pod.as_ref().and_then(|name| self.index.pod(&slice.namespace, name));
        let locality = self.locality(endpoint, pod.and_then(|pod| pod.node.as_deref()));
        let pod = pod.filter(|pod| pod.sidecar);
        let name = endpoint.pod.clone().unwrap_or_else(|| address.to_string());
        let service_account = pod.map(|pod| pod.service_account.clone());
        let named = HeadlessEndpoint {
            hostname: endpoint.hostname.clone(),
            addresses: endpoint.addresses.clone(),
            locality: locality.clone(),
            ready: endpoint.ready,
            service_account: service_account.clone().unwrap_or_default(),
        };
        let new = LocalEndpoint {
            id: self.index.endpoint_id(&slice.namespace, &name),
            pod: name.clone(),
            address,
            addresses: endpoint.addresses.iter().copied().collect(),
            locality,
            ready: endpoint.ready,
            weight: pod.map_or(1, |pod| pod.weight),
            service_account: service_account.clone().unwrap_or_default(),
            targets: slice.ports.iter().map(|port| (port.name.clone(), port.port)).collect(),
            labels: self.headless.then(|| named.label()).flatten().into_iter().collect(),
        };
        if service_account.is_none() {
            self.without_sidecar.insert(name);
            if let Some(plain) = &mut self.plain {
                take(plain, new, self.first_family);
            }
            return None;
        }
        take(&mut self.by_pod, new, self.first_family);
        Some(named)
    }

    /// The node's place where the node is known, else the zone that the slice says.
    fn locality(&self, endpoint: &Endpoint, pods_node: Option<&str>) -> Locality {
        let node = endpoint.node.as_deref().or(pods_node);
        match node.and_then(|node| self.index.locality_of_node(node)) {
            Some(locality) => locality.clone(),
            None => Locality::new("", endpoint.zone.clone().unwrap_or_default()),
        }
    }
}

fn take(by_pod: &mut BTreeMap<String, LocalEndpoint>, new: LocalEndpoint, first_family: IpFamily) {
    let Some(known) = by_pod.get_mut(&new.pod) else {
        by_pod.insert(new.pod.clone(), new);
        return;
    };
    if family(new.address) == first_family && family(known.address) != first_family {
        known.address = new.address;
    }
    known.addresses.extend(new.addresses);
    known.targets.extend(new.targets);
    known.labels.extend(new.labels);
    known.ready |= new.ready;
}

fn family(address: IpAddr) -> IpFamily {
    match address {
        IpAddr::V4(_) => IpFamily::IPv4,
        IpAddr::V6(_) => IpFamily::IPv6,
    }
}
