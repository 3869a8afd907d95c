//! From what discovery says of a service to the balancer's plan.

use std::collections::HashMap;
use std::sync::Arc;

use balance::{Group, Member, Plan, Reach};
use federation::order::{self, Candidate};
use federation::sni::Subset;
use federation::{ClusterName, Gateway, Locality, Sni};
use mesh_tls::{ExpectedPeer, Identity, TrustStore};
use spiffe_identity::SpiffeId;

use crate::metrics::Metrics;
use crate::service::{Cluster, Endpoint, Service};
use crate::session::path::{Path, PathId, PathTls, Via};
use crate::telemetry::WayMetrics;

/// ALPN of sessions that carry HTTP/2.
pub(crate) const ALPN_HTTP: &[u8] = b"isthmus-h2";
/// ALPN of sessions that carry opaque bytes.
pub(crate) const ALPN_TCP: &[u8] = b"isthmus-tcp";

/// Slots of one remote cluster and port at most: the sessions that a client spreads over the endpoints behind gateways.
const MAX_SLOTS: usize = 8;

/// What every plan is made with.
#[derive(Clone)]
pub(crate) struct Planner {
    pub(crate) identity: Identity,
    pub(crate) trust: TrustStore,
    pub(crate) metrics: Metrics,
    /// Where this client's slots begin: clients begin at different places, so that together they are even.
    pub(crate) first_slot: u16,
}

/// The client's own place.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Place {
    pub(crate) cluster: Option<ClusterName>,
    pub(crate) locality: Locality,
}

impl Planner {
    /// The plan for one port of a service, with the paths that are there already.
    pub(crate) fn plan(
        &self,
        service: &Service,
        port: u16,
        place: &Place,
        known: &HashMap<PathId, Path>,
    ) -> Plan<Path> {
        let exporting: Vec<(&Cluster, Vec<_>)> = service
            .clusters
            .iter()
            .filter(|cluster| cluster.ports.contains(&port))
            .map(|cluster| (cluster, cluster.capacity()))
            .collect();
        let candidates: Vec<Candidate<'_>> = exporting
            .iter()
            .map(|(cluster, zones)| Candidate {
                cluster: &cluster.name,
                local: place.cluster.as_ref() == Some(&cluster.name),
                zones,
                suspect: cluster.suspect,
                round_trip: cluster.round_trip,
            })
            .collect();
        let groups = order::order(&place.locality, &candidates)
            .into_iter()
            .filter_map(|group| {
                let (cluster, _) = exporting.iter().find(|(cluster, _)| cluster.name == group.cluster)?;
                let making = Making { planner: self, service, port, cluster, known };
                Some(making.group(group))
            })
            .collect();
        Plan { groups }
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
    cluster: &'a Cluster,
    known: &'a HashMap<PathId, Path>,
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
            suspect: group.suspect,
            members,
        }
    }

    fn endpoints(&self, localities: &[Locality]) -> Vec<Member<Path>> {
        self.cluster
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready && localities.contains(&endpoint.locality))
            .filter_map(|endpoint| self.endpoint(endpoint))
            .map(Member::endpoint)
            .collect()
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Option<Path> {
        let via = Via::Endpoint { id: Arc::clone(&endpoint.id), address: endpoint.address };
        self.path(via, Subset::Cluster(self.cluster.name.clone()), Arc::from([endpoint.identity.clone()]))
    }

    /// As many slots as there are endpoints, within bounds, and at least one through every gateway.
    fn slots(&self, ready: u32) -> Vec<Member<Path>> {
        let mut gateways: Vec<&Gateway> = self.cluster.gateways.iter().filter(|gateway| !gateway.draining).collect();
        if gateways.is_empty() {
            // Better a draining gateway than none.
            gateways = self.cluster.gateways.iter().collect();
        }
        if gateways.is_empty() {
            return Vec::new();
        }
        gateways.sort();
        let ready = usize::try_from(ready).unwrap_or(usize::MAX);
        let slots = ready.clamp(1, MAX_SLOTS).max(gateways.len());
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

    fn path(&self, via: Via, subset: Subset, identities: Arc<[SpiffeId]>) -> Option<Path> {
        let sni = Sni { port: self.port, subset, host: self.service.host.clone() };
        let id = PathId { cluster: self.cluster.name.clone(), via, server_name: sni.to_string(), identities };
        if let Some(path) = self.known.get(&id) {
            return Some(path.clone());
        }
        let tls = self.planner.tls(&id.identities);
        let label = self.service.id.to_string();
        let metrics = WayMetrics::outbound(&self.planner.metrics, &label, self.cluster.name.as_str());
        Path::new(id, tls, self.cluster.round_trip, metrics)
    }
}
