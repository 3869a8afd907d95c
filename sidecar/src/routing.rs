//! From a name to a route.
//!
//! ```text
//!  discovery ─► State (one owner) ─► Table (a snapshot) ◄── Router: a request's host or address ─► Route ─► paths
//!                                       ▲                      │ not there: subscribe, wait for the answer
//!                                       └──────────────────────┘
//! ```

pub(crate) mod plan;
pub(crate) mod route;
pub(crate) mod state;
pub(crate) mod upkeep;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use federation::MeshHost;
use federation_api::client::discovery::{Discovery, MAX_HOSTS};
use ipnet::IpNet;
use tokio::sync::watch;

use crate::outbound::{Destination, Name, Refusal};
use crate::routing::route::Route;
use crate::service::Service;

/// What is known of services, at one moment.
#[derive(Clone, Default)]
pub(crate) struct Table {
    /// By host, as text.
    pub(crate) services: HashMap<Box<str>, Entry>,
    /// By clusterset IP, or cluster IP of a local service.
    pub(crate) addresses: HashMap<IpAddr, Arc<ServiceRoutes>>,
    /// Where services have their addresses; `None` until the control-plane has said it.
    pub(crate) ranges: Option<Arc<[IpNet]>>,
    /// Cluster IPs of the cluster's own services whose namespaces have opted in.
    pub(crate) local: Arc<HashSet<IpAddr>>,
}

/// What is known of one host.
#[derive(Clone)]
pub(crate) enum Entry {
    /// A service.
    Known(Arc<ServiceRoutes>),
    /// No cluster exports it, or its namespace has not opted in, as was said then.
    Absent(Instant),
}

/// A service with the routes to its ports.
pub(crate) struct ServiceRoutes {
    pub(crate) service: Service,
    pub(crate) routes: Vec<Arc<Route>>,
}

/// Finds routes. Clones share everything.
#[derive(Clone)]
pub(crate) struct Router {
    shared: Arc<Shared>,
}

struct Shared {
    table: ArcSwap<Table>,
    /// Grows with the table, and once with the discovery handle.
    revision: watch::Sender<u64>,
    /// There once this sidecar has an identity.
    discovery: OnceLock<Discovery>,
    lookup_deadline: Duration,
}

impl Router {
    pub(crate) fn new(lookup_deadline: Duration) -> Self {
        let shared = Shared {
            table: ArcSwap::default(),
            revision: watch::Sender::new(0),
            discovery: OnceLock::new(),
            lookup_deadline,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Asks this one from now on about what is not known.
    pub(crate) fn ask(&self, discovery: Discovery) {
        // A second one is never given.
        let _ = self.shared.discovery.set(discovery);
        self.shared.revision.send_modify(|revision| *revision += 1);
    }

    /// Who is asked.
    pub(crate) fn discovery(&self) -> Option<&Discovery> {
        self.shared.discovery.get()
    }

    /// What is known.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// Replaces what is known.
    fn publish(&self, table: Table) {
        self.shared.table.store(Arc::new(table));
        self.shared.revision.send_modify(|revision| *revision += 1);
    }

    /// Whether an address may be a service's: nobody needs to be asked about others.
    pub(crate) fn may_be_vip(&self, address: IpAddr) -> bool {
        self.shared.table.load().local.contains(&address) || self.is_of_clusterset(address)
    }

    /// Whether an address is one of the clusterset, as far as is known.
    pub(crate) fn is_of_clusterset(&self, address: IpAddr) -> bool {
        let table = self.shared.table.load();
        table.ranges.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(&address)))
    }

    /// Tells of every change of what is known from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// What is known of a host once it is known, for whoever answers names; `None` when it stays unknown for the lookup's
    /// deadline.
    pub(crate) async fn entry(&self, host: &MeshHost) -> Option<Entry> {
        let answer = async {
            let mut revision = self.shared.revision.subscribe();
            loop {
                revision.borrow_and_update();
                if let Some(entry) = self.shared.table.load().entry(host) {
                    return Some(entry.clone());
                }
                self.subscribe(&Name::Host(host.clone())).ok()?;
                // The sender lives in `self`.
                let _ = revision.changed().await;
            }
        };
        tokio::time::timeout(self.shared.lookup_deadline, answer).await.ok().flatten()
    }

    /// The route to a destination. One that nobody has asked for yet is subscribed, and its answer awaited.
    pub(crate) async fn route(&self, destination: &Destination) -> Result<Arc<Route>, Refusal> {
        if let Some(known) = self.known(destination) {
            return known;
        }
        Box::pin(self.look_up(destination)).await
    }

    /// The route to a service that is known by exactly this host: what most requests find, without parsing it.
    pub(crate) fn find(&self, host: &str, port: u16) -> Option<Arc<Route>> {
        match self.shared.table.load().services.get(host)? {
            Entry::Known(service) => service.routes.iter().find(|route| route.port == port).cloned(),
            Entry::Absent(_) => None,
        }
    }

    async fn look_up(&self, destination: &Destination) -> Result<Arc<Route>, Refusal> {
        if let Name::Address(address) = destination.name
            && !self.may_be_vip(address)
        {
            return Err(Refusal::NotInClusterset(address.to_string()));
        }
        let deadline = self.shared.lookup_deadline;
        let answer = async {
            let mut revision = self.shared.revision.subscribe();
            loop {
                revision.borrow_and_update();
                if let Some(known) = self.known(destination) {
                    return known;
                }
                self.subscribe(&destination.name)?;
                // The sender lives in `self`.
                let _ = revision.changed().await;
            }
        };
        tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(Refusal::LookupTimedOut { service: destination.name.to_string(), deadline }))
    }

    fn subscribe(&self, name: &Name) -> Result<(), Refusal> {
        let Some(discovery) = self.shared.discovery.get() else { return Ok(()) };
        let (host, address) = match name {
            Name::Host(host) => (Some(host.clone()), None),
            Name::Address(address) => (None, Some(*address)),
        };
        discovery.subscribe(host, address).map_err(|_| Refusal::TooManyServices(MAX_HOSTS))
    }

    /// What is known of the destination; `None` when nothing is.
    fn known(&self, destination: &Destination) -> Option<Result<Arc<Route>, Refusal>> {
        let table = self.shared.table.load();
        let service = match &destination.name {
            Name::Address(address) => table.addresses.get(address)?,
            Name::Host(host) => match table.entry(host)? {
                Entry::Known(service) => service,
                Entry::Absent(_) if host.is_local() => return Some(Err(Refusal::NotOptedIn(host.to_string()))),
                Entry::Absent(_) => return Some(Err(Refusal::UnknownService(host.to_string()))),
            },
        };
        let port = destination.port;
        let route = service.routes.iter().find(|route| route.port == port).cloned();
        Some(route.ok_or_else(|| Refusal::UnknownPort { service: destination.name.to_string(), port }))
    }
}

impl Table {
    fn entry(&self, host: &MeshHost) -> Option<&Entry> {
        self.services.get(host.to_string().as_str())
    }

    /// All routes.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.services
            .values()
            .filter_map(|entry| match entry {
                Entry::Known(service) => Some(&service.routes),
                Entry::Absent(_) => None,
            })
            .flatten()
    }
}
