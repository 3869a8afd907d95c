//! Services, imported or the cluster's own, and the own workload, as discovery says them, parsed once.

mod failover;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use federation::{ClusterName, Gateway, Locality, MeshHost, Port, Protocol, ServiceId, ZoneCapacity};
use federation_api::discovery::v1 as wire;
use federation_api::record::v1 as record;
use spiffe_identity::SpiffeId;

use crate::inbound::policy::Policies;

pub(crate) use failover::{Failover, Retrying};

/// A resource that was not understood: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(crate) struct ResourceError {
    field: String,
    problem: String,
}

impl ResourceError {
    fn new(field: impl Into<String>, problem: impl ToString) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }
}

/// A service that this workload calls.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) id: ServiceId,
    pub(crate) host: MeshHost,
    pub(crate) addresses: Vec<IpAddr>,
    /// TCP ports only.
    pub(crate) ports: Vec<Port>,
    /// Its name stands for its endpoints' addresses, not for one of its own.
    pub(crate) headless: bool,
    /// Its clients stay with one endpoint.
    pub(crate) sticky: bool,
    pub(crate) clusters: Vec<Cluster>,
    /// The policy that applies.
    pub(crate) failover: Failover,
}

/// One cluster that exports it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    /// Its endpoints must show one of these.
    pub(crate) identities: Arc<[SpiffeId]>,
    pub(crate) ports: Vec<u16>,
    pub(crate) zones: Vec<ZoneCapacity>,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Of a headless service, with their host names.
    pub(crate) headless: Vec<Headless>,
    pub(crate) suspect: bool,
    pub(crate) round_trip: Option<Duration>,
}

/// An endpoint of the own cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) id: Arc<str>,
    pub(crate) reach: Reach,
    pub(crate) locality: Locality,
    pub(crate) ready: bool,
    /// At least 1.
    pub(crate) weight: u32,
}

/// How an endpoint of the own cluster is reached.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reach {
    /// Its sidecar takes mesh connections.
    Sidecar {
        /// There.
        address: SocketAddr,
        /// As who it must show itself.
        identity: SpiffeId,
    },
    /// It has none, as only a local service's endpoint may: its application is called as it is.
    Plain {
        /// The application's.
        address: IpAddr,
        /// Where it listens, by the service's port.
        targets: BTreeMap<u16, u16>,
    },
}

impl Cluster {
    /// Nothing of the clusterset goes without identities, whatever is said.
    fn of(self, host: &MeshHost) -> Result<Self, ResourceError> {
        let plain = |endpoint: &Endpoint| matches!(endpoint.reach, Reach::Plain { .. });
        match self.endpoints.iter().position(plain) {
            Some(place) if !host.is_local() => {
                Err(ResourceError::new(format!("endpoints[{place}].identity"), "is missing"))
            }
            _ => Ok(self),
        }
    }

    /// Capacity by zone: of the own cluster as its endpoints are at this moment, of another as it says.
    pub(crate) fn capacity(&self, own: bool) -> Vec<ZoneCapacity> {
        if !own {
            return self.zones.clone();
        }
        ZoneCapacity::add_up(self.endpoints.iter().map(|it| (&it.locality, it.weight, it.ready)))
    }
}

impl TryFrom<wire::Service> for Service {
    type Error = ResourceError;

    fn try_from(wire: wire::Service) -> Result<Self, ResourceError> {
        let id = ServiceId::parse_parts(&wire.namespace, &wire.name)
            .map_err(|error| ResourceError::new("namespace, name", error))?;
        let host: MeshHost = wire.host.parse().map_err(|error| ResourceError::new("host", error))?;
        if *host.service() != id {
            return Err(ResourceError::new("host", format!("{host} is not the host of {id}")));
        }
        let failover = wire.failover.map(Failover::try_from).transpose().map_err(|error| error.within("failover"))?;
        let addresses = parse_all("vips", &wire.vips)?;
        let ports = convert_all::<_, Port>("ports", wire.ports)?;
        let clusters = wire
            .clusters
            .into_iter()
            .enumerate()
            .map(|(place, cluster)| {
                let cluster = Cluster::try_from(cluster).and_then(|cluster| cluster.of(&host));
                cluster.map_err(|error| error.within(&format!("clusters[{place}]")))
            })
            .collect::<Result<Vec<Cluster>, _>>()?;
        if let MeshHost::ClusterSet(clusterset) = &host
            && let Some((cluster, _)) = clusterset.endpoint()
            && let Some(place) = clusters.iter().position(|it| it.name != *cluster)
        {
            let problem = format!("{} has no endpoint {host}", clusters[place].name);
            return Err(ResourceError::new(format!("clusters[{place}].cluster"), problem));
        }
        Ok(Self {
            headless: wire.r#type == i32::from(record::ServiceType::Headless),
            id,
            host,
            addresses,
            ports: ports.into_iter().filter(|port| port.protocol == Protocol::Tcp).collect(),
            sticky: wire.client_ip_affinity_seconds > 0,
            clusters,
            failover: failover.unwrap_or_default(),
        })
    }
}

impl ResourceError {
    fn within(mut self, field: &str) -> Self {
        self.field = format!("{field}.{}", self.field);
        self
    }
}

impl TryFrom<wire::Cluster> for Cluster {
    type Error = ResourceError;

    fn try_from(wire: wire::Cluster) -> Result<Self, ResourceError> {
        let ports = wire
            .ports
            .iter()
            .map(|port| u16::try_from(*port).map_err(|error| ResourceError::new("ports", error)))
            .collect::<Result<_, _>>()?;
        let endpoints = wire
            .endpoints
            .into_iter()
            .enumerate()
            .map(|(place, endpoint)| {
                Endpoint::try_from(endpoint).map_err(|error| error.within(&format!("endpoints[{place}]")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name: wire.cluster.parse().map_err(|error| ResourceError::new("cluster", error))?,
            identities: parse_all("identities", &wire.identities)?.into(),
            ports,
            zones: convert_all("zones", wire.zones)?,
            gateways: convert_all("gateways", wire.gateways)?,
            endpoints,
            suspect: wire.suspect,
            headless: convert_all("headless", wire.headless)?,
            round_trip: (wire.round_trip_us > 0).then(|| Duration::from_micros(u64::from(wire.round_trip_us))),
        })
    }
}

impl TryFrom<wire::Endpoint> for Endpoint {
    type Error = ResourceError;

    fn try_from(wire: wire::Endpoint) -> Result<Self, ResourceError> {
        let address: IpAddr = wire.address.parse().map_err(|error| ResourceError::new("address", error))?;
        let port = |field: &str, number: u32| u16::try_from(number).map_err(|error| ResourceError::new(field, error));
        let mesh_port = port("mesh_port", wire.mesh_port)?;
        let reach = if mesh_port == 0 && wire.identity.is_empty() {
            let target = |(of, target): (&u32, &u32)| Ok((port("targets", *of)?, port("targets", *target)?));
            Reach::Plain { address, targets: wire.targets.iter().map(target).collect::<Result<_, ResourceError>>()? }
        } else {
            let identity = wire.identity.parse().map_err(|error| ResourceError::new("identity", error))?;
            Reach::Sidecar { address: SocketAddr::new(address, mesh_port), identity }
        };
        Ok(Self {
            id: wire.id.into(),
            reach,
            locality: locality(wire.locality)?,
            ready: wire.ready,
            weight: wire.weight.max(1),
        })
    }
}

/// An endpoint of a headless service: what its name needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Headless {
    pub(crate) hostname: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ready: bool,
}

impl TryFrom<record::HeadlessEndpoint> for Headless {
    type Error = ResourceError;

    fn try_from(wire: record::HeadlessEndpoint) -> Result<Self, ResourceError> {
        Ok(Self {
            hostname: Some(wire.hostname).filter(|hostname| !hostname.is_empty()),
            addresses: parse_all("addresses", &wire.addresses)?,
            ready: wire.ready,
        })
    }
}

/// What this sidecar serves.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Workload {
    /// `<cluster>/<namespace>/<pod name>`; empty while no endpoint has its address.
    pub(crate) endpoint: String,
    pub(crate) locality: Locality,
    pub(crate) bindings: Vec<Arc<Binding>>,
    pub(crate) policies: Policies,
}

/// A port of an exported service, or of a local one, that the workload answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Binding {
    pub(crate) host: MeshHost,
    /// The host as text: compared with every request's authority.
    pub(crate) host_text: String,
    pub(crate) port: Port,
    pub(crate) target_port: u16,
}

impl Workload {
    /// The binding of a service's port.
    pub(crate) fn binding(&self, host: &MeshHost, port: u16) -> Option<&Arc<Binding>> {
        self.bindings.iter().find(|binding| binding.port.port == port && binding.host == *host)
    }
}

impl TryFrom<wire::Workload> for Workload {
    type Error = ResourceError;

    fn try_from(wire: wire::Workload) -> Result<Self, ResourceError> {
        let bindings = wire
            .bindings
            .into_iter()
            .enumerate()
            .map(|(place, binding)| {
                let binding =
                    Binding::try_from(binding).map_err(|error| error.within(&format!("bindings[{place}]")))?;
                Ok(Arc::new(binding))
            })
            .collect::<Result<_, ResourceError>>()?;
        let policies = wire.policies.try_into().map_err(|error| ResourceError::new("policies", error))?;
        Ok(Self { endpoint: wire.endpoint, locality: locality(wire.locality)?, bindings, policies })
    }
}

impl TryFrom<wire::Binding> for Binding {
    type Error = ResourceError;

    fn try_from(wire: wire::Binding) -> Result<Self, ResourceError> {
        let host: MeshHost = wire.host.parse().map_err(|error| ResourceError::new("host", error))?;
        let port = wire.port.ok_or_else(|| ResourceError::new("port", "is missing"))?;
        let target_port = u16::try_from(wire.target_port).ok().filter(|port| *port > 0);
        Ok(Self {
            host_text: host.to_string(),
            host,
            port: port.try_into().map_err(|error| ResourceError::new("port", error))?,
            target_port: target_port
                .ok_or_else(|| ResourceError::new("target_port", format!("{} is no port", wire.target_port)))?,
        })
    }
}

fn locality(wire: Option<record::Locality>) -> Result<Locality, ResourceError> {
    wire.map(Locality::try_from)
        .transpose()
        .map(Option::unwrap_or_default)
        .map_err(|error| ResourceError::new("locality", error))
}

fn parse_all<T>(field: &str, texts: &[String]) -> Result<Vec<T>, ResourceError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    texts
        .iter()
        .enumerate()
        .map(|(place, text)| text.parse().map_err(|error| ResourceError::new(format!("{field}[{place}]"), error)))
        .collect()
}

fn convert_all<W, T>(field: &str, messages: Vec<W>) -> Result<Vec<T>, ResourceError>
where
    T: TryFrom<W, Error: std::fmt::Display>,
{
    messages
        .into_iter()
        .enumerate()
        .map(|(place, message)| {
            T::try_from(message).map_err(|error| ResourceError::new(format!("{field}[{place}]"), error))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn wire_service() -> wire::Service {
        wire::Service {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            host: "cart.shop.svc.clusterset.local".to_owned(),
            vips: vec!["241.0.0.7".to_owned()],
            ports: vec![
                record::Port {
                    name: "http".to_owned(),
                    port: 80,
                    protocol: record::Protocol::Tcp.into(),
                    app_protocol: String::new(),
                },
                record::Port {
                    name: "dns".to_owned(),
                    port: 53,
                    protocol: record::Protocol::Udp.into(),
                    app_protocol: String::new(),
                },
            ],
            clusters: vec![wire::Cluster {
                cluster: "east".to_owned(),
                identities: vec!["spiffe://east.mesh.example/ns/shop/sa/cart".to_owned()],
                ports: vec![80],
                endpoints: vec![wire::Endpoint {
                    id: "east/shop/cart-1".to_owned(),
                    address: "10.0.0.1".to_owned(),
                    mesh_port: 15008,
                    locality: Some(record::Locality { region: "r".to_owned(), zone: "a".to_owned() }),
                    ready: true,
                    identity: "spiffe://east.mesh.example/ns/shop/sa/cart".to_owned(),
                    ..wire::Endpoint::default()
                }],
                ..wire::Cluster::default()
            }],
            ..wire::Service::default()
        }
    }

    #[test]
    fn a_service_is_parsed_whole_and_its_udp_ports_are_left_out() {
        let service = Service::try_from(wire_service()).unwrap();
        assert_eq!(service.ports.len(), 1);
        let cluster = &service.clusters[0];
        let address = "10.0.0.1:15008".parse().unwrap();
        let identity = "spiffe://east.mesh.example/ns/shop/sa/cart".parse().unwrap();
        assert_eq!(cluster.endpoints[0].reach, Reach::Sidecar { address, identity });
        let capacity = ZoneCapacity { locality: Locality::new("r", "a"), total: 1, ready: 1 };
        assert_eq!(cluster.capacity(true), [capacity]);
        assert_eq!(cluster.capacity(false), []);
    }

    #[test]
    fn capacity_is_the_weight_of_endpoints() {
        let mut wire = wire_service();
        let endpoints = &mut wire.clusters[0].endpoints;
        endpoints.push(wire::Endpoint { id: "east/shop/cart-2".to_owned(), weight: 4, ..endpoints[0].clone() });
        endpoints.push(wire::Endpoint { weight: 3, ready: false, ..endpoints[1].clone() });
        let service = Service::try_from(wire).unwrap();
        let capacity = ZoneCapacity { locality: Locality::new("r", "a"), total: 8, ready: 5 };
        assert_eq!(service.clusters[0].capacity(true), [capacity], "one of no weight counts as 1");
    }

    #[test]
    fn only_a_local_services_endpoint_may_go_without_a_sidecar() {
        let mut wire = wire_service();
        let endpoint = &mut wire.clusters[0].endpoints[0];
        (endpoint.mesh_port, endpoint.targets) = (0, [(80, 8080)].into());
        endpoint.identity.clear();
        let error = Service::try_from(wire.clone()).unwrap_err().to_string();
        assert_eq!(error, "clusters[0].endpoints[0].identity: is missing");
        wire.host = "cart.shop.svc.cluster.local".to_owned();
        let service = Service::try_from(wire.clone()).unwrap();
        let plain = Reach::Plain { address: "10.0.0.1".parse().unwrap(), targets: [(80, 8080)].into() };
        assert_eq!((service.host.is_local(), &service.clusters[0].endpoints[0].reach), (true, &plain));
        wire.clusters[0].endpoints[0].targets = [(80, 70_000)].into();
        assert!(Service::try_from(wire).unwrap_err().to_string().contains("endpoints[0].targets: "));
    }

    #[test]
    fn an_endpoint_is_one_clusters_alone() {
        let mut wire = wire_service();
        wire.host = "cart-1.east.cart.shop.svc.clusterset.local".to_owned();
        let service = Service::try_from(wire.clone()).unwrap();
        assert_eq!((service.id.to_string(), service.host.label()), ("shop/cart".to_owned(), "shop/cart".to_owned()));
        wire.clusters[0].cluster = "west".to_owned();
        let error = Service::try_from(wire).unwrap_err().to_string();
        assert_eq!(error, "clusters[0].cluster: west has no endpoint cart-1.east.cart.shop.svc.clusterset.local");
    }

    #[test]
    fn an_error_names_the_field() {
        type Break = fn(&mut wire::Service);
        let cases: [(Break, &str); 4] = [
            (|service| service.host = "other.shop.svc.clusterset.local".to_owned(), "host"),
            (|service| service.vips[0] = "x".to_owned(), "vips[0]"),
            (|service| service.clusters[0].identities[0] = "x".to_owned(), "clusters[0].identities[0]"),
            (|service| service.clusters[0].endpoints[0].mesh_port = 70_000, "clusters[0].endpoints[0].mesh_port"),
        ];
        for (change, field) in cases {
            let mut wire = wire_service();
            change(&mut wire);
            let error = Service::try_from(wire).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
        }
    }
}
