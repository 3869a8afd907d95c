//! Where connections may go: exported services, their ports and endpoints.
//!
//! Writers replace the table as a whole, readers keep the one they looked at: a connection sees one state from its name
//! to its endpoint.

mod choice;
mod endpoint;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use federation::{
    ClusterName, ServiceHost,
    sni::{Sni, Subset},
};
use federation_api::discovery::v1 as wire;

use crate::close_reason::Refusal;

pub use choice::Candidates;
pub use endpoint::{Endpoint, Engaged};

/// Why a `Route` resource is not one. The last good one stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The host is no clusterset service.
    #[error("host: {0}")]
    Host(#[from] federation::name::NameError),
    /// A port that is none.
    #[error("ports: {0} is not a port")]
    Port(u32),
    /// An endpoint's address is no IP address.
    #[error("endpoints: {id:?}: {address:?} is not an IP address")]
    Address {
        /// The endpoint.
        id: String,
        /// The address as sent.
        address: String,
    },
    /// An endpoint's mesh port is none.
    #[error("endpoints: {id:?}: {port} is not a port")]
    MeshPort {
        /// The endpoint.
        id: String,
        /// The port as sent.
        port: u32,
    },
}

/// An exported service and where its connections may go.
#[derive(Debug)]
pub struct ServiceRoute {
    /// The service.
    pub host: ServiceHost,
    /// The exported ports.
    pub ports: Vec<u16>,
    /// All its endpoints with a sidecar in this cluster, ready or not.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl ServiceRoute {
    /// Reads a resource; endpoints that were there before keep their count of connections and what is known of them.
    fn read(route: &wire::Route, before: Option<&Self>) -> Result<Self, RouteError> {
        let host = route.host.parse()?;
        let ports = route.ports.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0).ok_or(*port));
        let ports = ports.collect::<Result<_, _>>().map_err(RouteError::Port)?;
        let before: HashMap<_, _> = before
            .iter()
            .flat_map(|before| &before.endpoints)
            .map(|endpoint| (endpoint.id.as_str(), endpoint))
            .collect();
        let endpoints =
            route.endpoints.iter().map(|endpoint| Endpoint::read(endpoint, before.get(endpoint.id.as_str())));
        Ok(Self { host, ports, endpoints: endpoints.collect::<Result<_, _>>()? })
    }
}

type Table = HashMap<ServiceHost, Arc<ServiceRoute>>;

/// The routing table.
#[derive(Debug)]
pub struct Routes {
    cluster: ClusterName,
    table: ArcSwap<Table>,
    /// Held while a new table is made of the old one; lookups never wait for it.
    writing: Mutex<()>,
}

/// One change of the table.
#[derive(Debug)]
pub enum RouteChange<'a> {
    /// The service is exported, and goes here.
    Set(&'a wire::Route),
    /// The service is exported no more.
    Remove(&'a ServiceHost),
}

impl Routes {
    /// An empty table of this cluster's gateway.
    #[must_use]
    pub fn new(cluster: ClusterName) -> Self {
        Self { cluster, table: ArcSwap::default(), writing: Mutex::new(()) }
    }

    /// The cluster whose services these are.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Applies changes together; what was refused is returned, and leaves the route as it was.
    pub fn apply<'a>(&self, changes: impl IntoIterator<Item = RouteChange<'a>>) -> Vec<(String, RouteError)> {
        // Nothing panics between the two: a poisoned lock guards a whole table.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        let mut refused = Vec::new();
        for change in changes {
            match change {
                RouteChange::Set(route) => {
                    let before = route.host.parse().ok().and_then(|host: ServiceHost| table.get(&host));
                    match ServiceRoute::read(route, before.map(Arc::as_ref)) {
                        Ok(route) => drop(table.insert(route.host.clone(), Arc::new(route))),
                        Err(error) => refused.push((route.host.clone(), error)),
                    }
                }
                RouteChange::Remove(host) => drop(table.remove(host)),
            }
        }
        self.table.store(Arc::new(table));
        refused
    }

    /// The service that a server name asks for, if it is exported by this cluster.
    ///
    /// # Errors
    /// Which part of the name leads nowhere.
    pub fn find(&self, name: &Sni) -> Result<Arc<ServiceRoute>, Refusal> {
        match &name.subset {
            Subset::Any => {}
            Subset::Cluster(cluster) | Subset::Slot(cluster, _) if *cluster == self.cluster => {}
            Subset::Cluster(_) | Subset::Slot(..) => return Err(Refusal::OtherCluster),
        }
        let route = self.table.load().get(&name.host).cloned().ok_or(Refusal::NotExported)?;
        if route.ports.contains(&name.port) { Ok(route) } else { Err(Refusal::PortNotExported) }
    }

    /// All routes, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ServiceRoute>> {
        self.table.load().values().cloned().collect()
    }

    /// How many services are exported.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.load().len()
    }

    /// Whether nothing is exported.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.load().is_empty()
    }
}
