//! The owner of what discovery says: applies it, resource by resource, and publishes the result.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use federation::{FederationDomain, Gateway};
use federation_api::client::Events;
use federation_api::client::discovery::{Discovery, DiscoveryEvent};
use federation_api::deny_list::verify_deny_list;
use federation_api::discovery::v1 as wire;
use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::signing::PublicKey;
use ipnet::IpNet;
use mesh_tls::{DenyList, TrustStore};
use rustls::pki_types::CertificateDer;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::identity::Pins;
use crate::inbound::serving::{Served, Serving};
use crate::metrics::Metrics;
use crate::routing::plan::{Place, Planner};
use crate::routing::route::{Route, RouteParts};
use crate::routing::{Entry, Router, ServiceRoutes, Table};
use crate::service::{Service, Workload};
use crate::trust_age::TrustAge;

/// A resource was refused: what was applied before stays.
#[derive(Debug, thiserror::Error)]
#[error("{resource}: {problem}")]
struct Rejected {
    resource: String,
    problem: String,
}

/// Applies what discovery says.
pub(crate) struct State {
    pub(crate) router: Router,
    pub(crate) planner: Planner,
    pub(crate) pins: Pins,
    pub(crate) serving: Arc<Served>,
    pub(crate) metrics: Metrics,
    /// Told when something was ejected.
    pub(crate) ejected: Arc<Notify>,
    /// The workload's first address: clients of sticky services are told apart by it.
    pub(crate) client: IpAddr,
    pub(crate) place: Place,
    /// Of the deny-list in force: it only grows.
    pub(crate) denied_epoch: u64,
    pub(crate) trust_age: Arc<TrustAge>,
}

impl State {
    /// Applies events until they end. `first` is called once there is a whole state to serve from.
    pub(crate) async fn run(
        mut self,
        discovery: Discovery,
        mut events: Events<DiscoveryEvent>,
        first: impl FnOnce() + Send,
    ) {
        let mut first = Some(first);
        while let Some(event) = events.recv().await {
            let complete = match event {
                DiscoveryEvent::FromDisk(resources) => {
                    let complete = is_whole(&resources);
                    info!(resources = resources.len(), "state from disk");
                    for rejected in self.apply(&resources, &[]) {
                        warn!(error = %rejected, "state from disk");
                    }
                    complete
                }
                DiscoveryEvent::Connected => false,
                DiscoveryEvent::Update { ticket, resources, removed, initial_state_complete } => {
                    let rejected = self.apply(&resources, &removed);
                    if rejected.is_empty() {
                        discovery.applied(ticket);
                    } else {
                        let names: Vec<&str> = rejected.iter().map(|rejected| rejected.resource.as_str()).collect();
                        let text: Vec<String> = rejected.iter().map(ToString::to_string).collect();
                        discovery.rejected(ticket, &names, &text.join("; "));
                        self.metrics.state_errors.inc_by(rejected.len() as u64);
                        warn!(errors = text.join("; "), "resources not understood, the last good ones are kept");
                    }
                    self.metrics.state_applied.set(unix_seconds(SystemTime::now()));
                    initial_state_complete
                }
                DiscoveryEvent::Disconnected { reason, retry_in } => {
                    warn!(%reason, ?retry_in, "lost the control-plane, going on with the last state");
                    self.pins.read();
                    false
                }
            };
            if complete && let Some(first) = first.take() {
                first();
            }
        }
    }

    /// Applies one step; what is returned was refused.
    fn apply(&mut self, resources: &[Arc<wire::Resource>], removed: &[String]) -> Vec<Rejected> {
        let mut table = Table::clone(&self.router.table());
        let before = self.place.clone();
        let mut rejected = Vec::new();
        for resource in resources {
            if let Err(problem) = self.apply_one(&mut table, resource) {
                rejected.push(Rejected { resource: resource.name.clone(), problem });
            }
        }
        for name in removed {
            self.remove(&mut table, name);
        }
        if self.place != before {
            self.plan_again(&mut table);
        }
        table.addresses = addresses(&table);
        self.metrics.services.set(i64::try_from(table.services.len()).unwrap_or(i64::MAX));
        self.router.publish(table);
        rejected
    }

    fn apply_one(&mut self, table: &mut Table, resource: &wire::Resource) -> Result<(), String> {
        match &resource.resource {
            Some(Kind::Service(service)) => {
                let service = Service::try_from(service.clone()).map_err(|error| error.to_string())?;
                let host = service.host.to_string();
                let known = match table.services.get(host.as_str()) {
                    Some(Entry::Known(known)) => Some(Arc::clone(known)),
                    _ => None,
                };
                let routes = self.routes(service, known.as_deref());
                table.services.insert(host.into(), Entry::Known(Arc::new(routes)));
                Ok(())
            }
            Some(Kind::Absent(_)) => {
                if let Some(host) = resource.name.strip_prefix("service/") {
                    table.services.insert(host.into(), Entry::Absent(Instant::now()));
                }
                Ok(())
            }
            Some(Kind::TrustBundle(bundle)) => self.trust(bundle),
            Some(Kind::Workload(workload)) => {
                let workload = Workload::try_from(workload.clone()).map_err(|error| error.to_string())?;
                self.place.locality = workload.locality.clone();
                self.serve(|serving| (serving.workload, serving.told) = (workload, true));
                Ok(())
            }
            Some(Kind::Mesh(mesh)) => {
                table.ranges = Some(clusterset_ranges(mesh)?);
                self.mesh(mesh)
            }
            Some(Kind::LocalServices(local)) => {
                let address = |text: &String| text.parse().map_err(|error| format!("addresses: {text:?}: {error}"));
                table.local = Arc::new(local.addresses.iter().map(address).collect::<Result<_, String>>()?);
                Ok(())
            }
            // Gateways' resources, and those of a later version.
            Some(Kind::Route(_) | Kind::Remote(_)) | None => Ok(()),
        }
    }

    fn remove(&mut self, table: &mut Table, name: &str) {
        if let Some(host) = name.strip_prefix("service/") {
            table.services.remove(host);
        } else if let Some(trust_domain) = name.strip_prefix("trust/") {
            if let Ok(trust_domain) = trust_domain.parse::<TrustDomain>() {
                self.planner.trust.remove(&trust_domain);
            }
        } else if name == "local-services" {
            table.local = Arc::default();
        } else if name == "workload" {
            self.serve(|serving| serving.workload = Workload::default());
        }
    }

    fn serve(&self, change: impl FnOnce(&mut Serving)) {
        let mut serving = Serving::clone(&self.serving.load());
        change(&mut serving);
        self.serving.store(serving);
    }

    fn trust(&self, wire: &wire::TrustBundle) -> Result<(), String> {
        let trust_domain: TrustDomain = wire.trust_domain.parse().map_err(|error| format!("trust_domain: {error}"))?;
        let roots = wire.x509_authorities.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let bundle = Bundle { trust_domain, x509_authorities: roots, sequence: wire.sequence, refresh_hint: None };
        self.pins.bundle(&bundle);
        self.planner.trust.insert(bundle);
        Ok(())
    }

    fn mesh(&mut self, wire: &wire::Mesh) -> Result<(), String> {
        let cluster = wire.cluster.parse().map_err(|error| format!("cluster: {error}"))?;
        let egress = wire.egress_gateways.iter().cloned().map(Gateway::try_from);
        let egress: Vec<Gateway> =
            egress.collect::<Result<_, _>>().map_err(|error| format!("egress_gateways: {error}"))?;
        if let Some(signed) = &wire.deny_list {
            let federation: FederationDomain =
                wire.federation.parse().map_err(|error| format!("federation: {error}"))?;
            let root =
                PublicKey::from_bytes(&wire.membership_root).map_err(|error| format!("membership_root: {error}"))?;
            let list = verify_deny_list(&root, &federation, signed).map_err(|error| format!("deny_list: {error}"))?;
            if list.epoch < self.denied_epoch {
                return Err(format!("deny_list: epoch {} is older than {}", list.epoch, self.denied_epoch));
            }
            self.denied_epoch = list.epoch;
            let denied = DenyList {
                trust_domains: list
                    .clusters
                    .iter()
                    .filter_map(|cluster| federation.trust_domain(cluster).parse().ok())
                    .collect(),
                ids: list.spiffe_ids.iter().filter_map(|id| id.parse::<SpiffeId>().ok()).collect(),
            };
            deny(&self.planner.trust, denied);
        }
        self.trust_age.confirmed(wire.trust_confirmed_at_ms);
        self.metrics.federation_applied.set(wire.federation_applied_at_ms / 1000);
        self.place.egress = egress;
        self.place.cluster = Some(cluster);
        let cluster = self.place.cluster.clone();
        let federation = wire.federation.parse::<FederationDomain>().ok().map(|domain| domain.as_str().into());
        self.serve(|serving| {
            serving.cluster = cluster;
            serving.federation = federation;
        });
        Ok(())
    }

    /// The routes of a service, with those that are there already kept.
    fn routes(&self, service: Service, known: Option<&ServiceRoutes>) -> ServiceRoutes {
        let affinity = service
            .sticky
            .then(|| BuildHasherDefault::<DefaultHasher>::default().hash_one((&service.host, self.client)));
        let routes = service
            .ports
            .iter()
            .filter_map(|port| {
                let (protocol, undeclared) = (port.application_protocol(), !port.declares_protocol());
                let route = known
                    .and_then(|known| known.routes.iter().find(|route| route.port == port.port))
                    .filter(|route| route.matches(protocol, undeclared, affinity))
                    .cloned();
                let route = match route {
                    Some(route) => route,
                    None => Route::new(RouteParts {
                        host: service.host.clone(),
                        port: port.port,
                        protocol,
                        undeclared,
                        affinity,
                        ejected: Arc::clone(&self.ejected),
                        metrics: self.metrics.clone(),
                    })?,
                };
                route.follow(&service.failover);
                route.update(|paths| self.planner.plan(&service, port.port, &self.place, paths));
                Some(route)
            })
            .collect();
        ServiceRoutes { service, routes }
    }

    /// The client's own place has changed, and with it every order.
    fn plan_again(&self, table: &mut Table) {
        for entry in table.services.values_mut() {
            if let Entry::Known(known) = entry {
                *known = Arc::new(self.routes(known.service.clone(), Some(known)));
            }
        }
    }
}

fn clusterset_ranges(mesh: &wire::Mesh) -> Result<Arc<[IpNet]>, String> {
    mesh.clusterset_ranges
        .iter()
        .map(|range| range.parse().map_err(|error| format!("clusterset_ranges: {range:?}: {error}")))
        .collect()
}

fn deny(trust: &TrustStore, denied: DenyList) {
    if trust.denied() != denied {
        trust.deny(denied);
    }
}

fn addresses(table: &Table) -> HashMap<IpAddr, Arc<ServiceRoutes>> {
    let known = table.services.values().filter_map(|entry| match entry {
        Entry::Known(service) => Some(service),
        Entry::Absent(_) => None,
    });
    known.flat_map(|service| service.service.addresses.iter().map(|address| (*address, Arc::clone(service)))).collect()
}

/// Whether a state from disk is enough to serve from.
fn is_whole(resources: &[Arc<wire::Resource>]) -> bool {
    let has = |wanted: &str| resources.iter().any(|resource| resource.name == wanted);
    has("mesh") && has("workload")
}

/// Seconds since the epoch, for gauges.
pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).ok().and_then(|time| i64::try_from(time.as_secs()).ok()).unwrap_or(0)
}
