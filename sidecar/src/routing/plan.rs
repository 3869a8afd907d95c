//! From what discovery says of a service to the balancer's plan.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use balance::{Group, GroupName, Member, Plan, Reach};
use federation::export::ApplicationProtocol;
use federation::order::{self, Candidate, Proximity};
use federation::sni::Subset;
use federation::{ClusterName, Gateway, Locality, Sni};
use mesh_tls::{ExpectedPeer, Identity, TrustStore};
use spiffe_identity::SpiffeId;

use crate::metrics::Metrics;
use crate::service::{Cluster, Endpoint, Reach as EndpointReach, Service};
use crate::session::path::{Path, PathId, PathTls, Via};
use crate::telemetry::WayMetrics;

/// ALPN of sessions that carry HTTP/2.
pub(crate) const ALPN_HTTP: &[u8] = b"isthmus-h2";
/// ALPN of sessions that carry opaque bytes.
pub(crate) const ALPN_TCP: &[u8] = b"isthmus-tcp";

/// Slots of one remote cluster and port at most: the sessions that a client spreads over the endpoints behind gateways.
const MAX_SLOTS: usize = 24;

/// What every plan is made with.
#[derive(Clone)]
pub(crate) struct Planner {
    pub(crate) identity: Identity,
    pub(crate) trust: TrustStore,
    pub(crate) metrics: Metrics,
    /// Where this client's slots begin: clients begin at different places, so that together they are even.
    pub(crate) first_slot: u16,
}

/// A plan, and why it is as it is.
pub(crate) struct Planned {
    pub(crate) plan: Plan<Path>,
    /// Of each group.
    pub(crate) why: Vec<(GroupName, Proximity)>,
}

/// The client's own place.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Place {
    pub(crate) cluster: Option<ClusterName>,
    pub(crate) locality: Locality,
    /// Where its connections to other clusters have to go: the egress side of its own cluster's gateways. Empty: to the other
    /// clusters' gateways.
    pub(crate) egress: Vec<Gateway>,
}

impl Planner {
    /// The plan for one port of a service, with the paths that are there already.
    pub(crate) fn plan(&self, service: &Service, port: u16, place: &Place, known: &HashMap<PathId, Path>) -> Planned {
        let own = |cluster: &Cluster| place.cluster.as_ref() == Some(&cluster.name);
        let exporting: Vec<(&Cluster, Vec<_>)> = service
            .clusters
            .iter()
            .filter(|cluster| cluster.ports.contains(&port))
            // Whatever is said: a local service is its own cluster's.
            .filter(|cluster| !service.host.is_local() || own(cluster))
            .map(|cluster| (cluster, cluster.capacity(own(cluster))))
            .collect();
        let candidates: Vec<Candidate<'_>> = exporting
            .iter()
            .map(|(cluster, zones)| Candidate {
                cluster: &cluster.name,
                local: own(cluster),
                zones,
                suspect: cluster.suspect,
                round_trip: cluster.round_trip,
            })
            .collect();
        let (groups, why) =
            order::order_by(place.cluster.as_ref(), &place.locality, &candidates, &service.failover.preference)
                .into_iter()
                .filter_map(|group| {
                    let (cluster, _) = exporting.iter().find(|(cluster, _)| cluster.name == group.cluster)?;
                    let making =
                        Making { planner: self, service, port, place, cluster, known, tls: RefCell::default() };
                    let why = group.why;
                    let group = making.group(group);
                    let name = group.name.clone();
                    Some((group, (name, why)))
                })
                .unzip();
        Planned { plan: Plan { groups }, why }
    }

    /// TLS towards one set of identities.
    fn tls(&self, identities: &Arc<[SpiffeId]>) -> PathTls {
        let config = |alpn| {
            let expected = ExpectedPeer::AnyOf(Arc::clone(identities));
            mesh_tls::client_config(Some(&self.identity), &self.trust, expected, &[alpn])
        };
        PathTls { http: config(ALPN_HTTP), tcp: config(ALPN_TCP) }
    }
}

/// The paths of one cluster for one port of a service.
struct Making<'a> {
    planner: &'a Planner,
    service: &'a Service,
    port: u16,
    place: &'a Place,
    cluster: &'a Cluster,
    known: &'a HashMap<PathId, Path>,
    /// Of the last path: most endpoints of a service have one identity.
    tls: RefCell<Option<(Arc<[SpiffeId]>, PathTls)>>,
}

impl Making<'_> {
    fn group(&self, group: order::Group) -> Group<Path> {
        let (name, reach, members) = match &group.localities {
            Some(localities) => (
                match localities.as_slice() {
                    [one] if !one.zone.is_empty() => format!("{}/{}", group.cluster, one.zone),
                    _ => format!("{} ({})", group.cluster, group.why.as_str()),
                },
                Reach::Endpoints,
                self.endpoints(localities),
            ),
            None => (group.cluster.to_string(), Reach::Gateways, self.slots(group.ready)),
        };
        Group {
            priority: group.priority,
            name: name.into(),
            reach,
            capacity_total: group.total,
            capacity_ready: group.ready,
            share: group.share,
            suspect: group.suspect,
            members,
        }
    }

    fn endpoints(&self, localities: &[Locality]) -> Vec<Member<Path>> {
        self.cluster
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready && localities.contains(&endpoint.locality))
            .filter_map(|endpoint| {
                Some(Member { weight: endpoint.weight, ..Member::endpoint(self.endpoint(endpoint)?) })
            })
            .collect()
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Option<Path> {
        let id = Arc::clone(&endpoint.id);
        let subset = Subset::Cluster(self.cluster.name.clone());
        match &endpoint.reach {
            EndpointReach::Sidecar { address, identity } => {
                self.path(Via::Endpoint { id, address: *address }, subset, Arc::from([identity.clone()]))
            }
            EndpointReach::Plain { address, targets } => {
                let address = (*address, *targets.get(&self.port)?).into();
                let port = self.service.ports.iter().find(|port| port.port == self.port)?;
                let http2 = port.application_protocol() == ApplicationProtocol::Http2;
                self.path(Via::Plain { id, address, http2 }, subset, Arc::from([]))
            }
        }
    }

    /// Two slots for every endpoint, within bounds, and at least one through every gateway: where slots lead is up to a
    /// hash, and with as many slots as endpoints some endpoints would often get none.
    fn slots(&self, ready: u32) -> Vec<Member<Path>> {
        let egress = &self.place.egress;
        let announced = if egress.is_empty() { &self.cluster.gateways } else { egress };
        let mut gateways: Vec<&Gateway> = announced.iter().filter(|gateway| !gateway.draining).collect();
        if gateways.is_empty() {
            // Better a draining gateway than none.
            gateways = announced.iter().collect();
        }
        if gateways.is_empty() {
            return Vec::new();
        }
        gateways.sort();
        let ready = usize::try_from(ready).unwrap_or(usize::MAX);
        let slots = ready.saturating_mul(2).clamp(1, MAX_SLOTS).max(gateways.len());
        (0..slots)
            .zip(gateways.iter().cycle())
            .filter_map(|(number, gateway)| {
                let number = u16::try_from(number).unwrap_or(u16::MAX);
                let slot = self.planner.first_slot.wrapping_add(number);
                let via = Via::Gateway {
                    name: gateway.name.as_str().into(),
                    address: gateway.address.clone(),
                    port: gateway.port,
                    slot,
                };
                let subset = Subset::Slot(self.cluster.name.clone(), slot);
                let path = self.path(via, subset, Arc::clone(&self.cluster.identities))?;
                Some(Member::path(path, gateway.name.as_str().into()))
            })
            .collect()
    }

    fn tls(&self, identities: &Arc<[SpiffeId]>) -> PathTls {
        let mut last = self.tls.borrow_mut();
        match &*last {
            Some((of, tls)) if of == identities => tls.clone(),
            _ => last.insert((Arc::clone(identities), self.planner.tls(identities))).1.clone(),
        }
    }

    fn path(&self, via: Via, subset: Subset, identities: Arc<[SpiffeId]>) -> Option<Path> {
        let sni = Sni { port: self.port, subset, host: self.service.host.clone() };
        let id = PathId { cluster: self.cluster.name.clone(), via, server_name: sni.to_string(), identities };
        if let Some(path) = self.known.get(&id) {
            return Some(path.clone());
        }
        let tls = (!matches!(id.via, Via::Plain { .. })).then(|| self.tls(&id.identities));
        let metrics =
            WayMetrics::outbound(&self.planner.metrics, &self.service.host.label(), self.cluster.name.as_str());
        Path::new(id, tls, self.cluster.round_trip, metrics)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use federation::{GatewayAddress, ZoneCapacity};

    use super::*;

    fn planner(first_slot: u16) -> Planner {
        Planner { identity: Identity::empty(), trust: TrustStore::new(), metrics: Metrics::default(), first_slot }
    }

    fn gateway(name: &str, draining: bool) -> Gateway {
        Gateway {
            name: name.to_owned(),
            address: GatewayAddress::Host(format!("{name}.example")),
            port: 15443,
            locality: Locality::default(),
            draining,
        }
    }

    fn endpoint(number: u16, zone: &str, ready: bool) -> Endpoint {
        Endpoint {
            id: format!("east/shop/cart-{number}").into(),
            reach: EndpointReach::Sidecar {
                address: ([10, 0, 0, 1], number).into(),
                identity: "spiffe://east.mesh.example/ns/shop/sa/cart".parse().unwrap(),
            },
            locality: Locality::new("r", zone),
            ready,
            weight: u32::from(number),
        }
    }

    fn cluster(name: &str, gateways: Vec<Gateway>, endpoints: Vec<Endpoint>, ready: u32) -> Cluster {
        let identity: SpiffeId = format!("spiffe://{name}.mesh.example/ns/shop/sa/cart").parse().unwrap();
        Cluster {
            name: name.parse().unwrap(),
            identities: [identity].into(),
            ports: vec![80],
            zones: vec![ZoneCapacity { locality: Locality::new("far", "far-a"), total: ready, ready }],
            gateways,
            endpoints,
            headless: vec![],
            suspect: false,
            round_trip: None,
        }
    }

    fn service(clusters: Vec<Cluster>) -> Service {
        let host: federation::MeshHost = "cart.shop.svc.clusterset.local".parse().unwrap();
        Service {
            id: host.service().clone(),
            host,
            addresses: vec![],
            ports: vec![],
            headless: false,
            sticky: false,
            clusters,
            failover: Default::default(),
        }
    }

    fn place() -> Place {
        Place { cluster: Some("east".parse().unwrap()), locality: Locality::new("r", "a"), egress: Vec::new() }
    }

    #[test]
    fn own_endpoints_come_by_zone_and_other_clusters_by_slots_through_their_gateways() {
        let endpoints = vec![endpoint(1, "a", true), endpoint(2, "b", true), endpoint(3, "b", false)];
        let gateways = vec![gateway("gw-2", false), gateway("gw-1", false), gateway("gw-3", true)];
        let service = service(vec![cluster("east", vec![], endpoints, 9), cluster("west", gateways, vec![], 2)]);
        let plan = planner(u16::MAX).plan(&service, 80, &place(), &HashMap::new()).plan;
        let shape: Vec<_> = plan
            .groups
            .iter()
            .map(|group| {
                (group.priority, group.name.as_str(), group.capacity_total, group.capacity_ready, group.members.len())
            })
            .collect();
        assert_eq!(shape, [(0, "east/a", 1, 1, 1), (1, "east/b", 5, 2, 1), (2, "west", 2, 2, 4)]);
        assert_eq!(plan.groups[1].members[0].weight, 2);
        let names: Vec<_> = plan.groups[2].members.iter().map(|member| member.id.id().server_name.clone()).collect();
        let host = "cart.shop.svc.clusterset.local";
        assert_eq!(
            names,
            ["65535", "0", "1", "2"].map(|slot| format!("outbound_.80_.c-west.e-{slot}_.{host}")),
            "slots wrap around"
        );
        let through: BTreeSet<_> =
            plan.groups[2].members.iter().map(|member| member.gateway.as_ref().unwrap().as_str()).collect();
        assert_eq!(through, BTreeSet::from(["gw-1", "gw-2"]), "a draining gateway is left out");
        assert!(planner(0).plan(&service, 81, &place(), &HashMap::new()).plan.groups.is_empty());
    }

    #[test]
    fn who_may_not_dial_out_goes_through_the_own_gateways_with_the_names_of_others() {
        let endpoints = vec![endpoint(1, "a", true)];
        let service = service(vec![
            cluster("east", vec![], endpoints, 1),
            cluster("west", vec![gateway("gw-1", false), gateway("gw-2", false)], vec![], 2),
        ]);
        let own = [gateway("out-1", false), gateway("out-2", true)];
        let own = own.map(|gateway| Gateway { port: 15444, ..gateway });
        let place = Place { egress: own.to_vec(), ..place() };
        let plan = planner(0).plan(&service, 80, &place, &HashMap::new()).plan;
        assert!(matches!(plan.groups[0].members[0].id.id().via, Via::Endpoint { .. }), "the own cluster as ever");
        let members = &plan.groups[1].members;
        assert_eq!(members.len(), 4);
        for member in members {
            let id = member.id.id();
            let address = GatewayAddress::Host("out-1.example".to_owned());
            assert!(matches!(&id.via, Via::Gateway { address: at, port: 15444, .. } if *at == address), "{:?}", id.via);
            assert!(id.server_name.starts_with("outbound_.80_.c-west.e-"), "{}", id.server_name);
        }
    }

    #[test]
    fn a_local_service_stays_in_its_cluster_and_goes_plain_where_there_is_no_sidecar() {
        let plain = Endpoint {
            reach: EndpointReach::Plain { address: [10, 0, 0, 9].into(), targets: [(80, 8080)].into() },
            ..endpoint(2, "a", true)
        };
        let elsewhere = cluster("west", vec![gateway("gw-1", false)], vec![], 9);
        let mut service = service(vec![cluster("east", vec![], vec![endpoint(1, "a", true), plain], 2), elsewhere]);
        service.host = service.id.local_host();
        let http = |port| federation::Port {
            name: String::new(),
            port,
            protocol: federation::Protocol::Tcp,
            app_protocol: "kubernetes.io/h2c".to_owned(),
        };
        service.ports = vec![http(80), http(81)];
        service.clusters[0].ports = vec![80, 81];
        let plan = |port| planner(0).plan(&service, port, &place(), &HashMap::new()).plan;
        let groups = plan(80).groups;
        assert_eq!(groups.len(), 1, "the other cluster is none of its own");
        let [mesh, plain] = groups[0].members.as_slice() else { panic!("{}", groups[0].members.len()) };
        assert_eq!(mesh.id.id().server_name, "outbound_.80_.c-east_.cart.shop.svc.cluster.local");
        assert!(mesh.id.tls().is_some() && plain.id.tls().is_none());
        let address = ([10, 0, 0, 9], 8080).into();
        assert!(matches!(&plain.id.id().via, Via::Plain { address: at, http2: true, .. } if *at == address));
        assert_eq!(plan(81).groups[0].members.len(), 1, "it does not answer that port");
    }

    #[test]
    fn equal_paths_are_kept() {
        let service = service(vec![cluster("west", vec![gateway("gw-1", false)], vec![], 3)]);
        let planner = planner(7);
        let first = planner.plan(&service, 80, &place(), &HashMap::new()).plan;
        let known: HashMap<_, _> =
            first.groups[0].members.iter().map(|member| (member.id.id().clone(), member.id.clone())).collect();
        let second = planner.plan(&service, 80, &place(), &known).plan;
        assert_eq!(first.groups[0].members, second.groups[0].members);
        let others = planner.plan(&service, 80, &place(), &HashMap::new()).plan;
        assert_ne!(first.groups[0].members, others.groups[0].members);
    }

    #[test]
    fn every_gateway_has_a_slot_and_a_draining_one_is_better_than_none() {
        let gateways: Vec<_> = (0..10).map(|number| gateway(&format!("gw-{number}"), true)).collect();
        let service = service(vec![cluster("west", gateways, vec![], 0)]);
        let plan = planner(0).plan(&service, 80, &place(), &HashMap::new()).plan;
        assert_eq!(plan.groups[0].members.len(), 10);
    }
}
