//! Where connections may go: exported services, their ports and endpoints.
//!
//! The table is persistent: a change makes a new one that shares all but the changed path with the one before, so that one name of
//! 100,000 costs some 20 nodes. Readers keep the one they looked at, without a lock or an allocation: a connection sees one state
//! from its name to its endpoint.

mod choice;
mod endpoint;
mod server_name;
mod service_load;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use federation::{ClusterName, ServiceHost, sni::Sni};
use federation_api::discovery::v1 as wire;
use rpds::HashTrieMapSync;

use crate::close_reason::Refusal;

pub use choice::Candidates;
pub use endpoint::{Endpoint, Engaged};
pub use service_load::Seat;

pub(crate) use endpoint::Place;
pub(crate) use server_name::ServerName;
pub(crate) use service_load::ServiceLoad;

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

/// An exported service, or an endpoint of a headless one, and where its connections may go.
#[derive(Debug)]
pub struct ServiceRoute {
    /// The service, or the endpoint.
    pub host: ServiceHost,
    /// The exported ports.
    pub ports: Vec<u16>,
    /// All its endpoints with a sidecar in this cluster, ready or not.
    pub endpoints: Vec<Arc<Endpoint>>,
    load: Arc<ServiceLoad>,
}

impl ServiceRoute {
    /// Reads a resource that takes the place of the one in the table. A new endpoint of a headless service counts its connections
    /// with the service's.
    fn replace(route: &wire::Route, table: &Table) -> Result<Self, RouteError> {
        let host: ServiceHost = route.host.parse()?;
        let of = |host: &ServiceHost| table.get(host.to_string().as_str()).map(Arc::as_ref);
        Self::read(route, of(&host).or_else(|| of(&host.service().host())))
    }

    /// Reads a resource; endpoints that were there before keep their count of connections and what is known of them.
    fn read(route: &wire::Route, before: Option<&Self>) -> Result<Self, RouteError> {
        let host = route.host.parse()?;
        let ports = route.ports.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0).ok_or(*port));
        let ports = ports.collect::<Result<_, _>>().map_err(RouteError::Port)?;
        let load = before.map(|before| Arc::clone(&before.load)).unwrap_or_default();
        let before: HashMap<_, _> = before
            .iter()
            .flat_map(|before| &before.endpoints)
            .map(|endpoint| (endpoint.id.as_str(), endpoint))
            .collect();
        let endpoints =
            route.endpoints.iter().map(|endpoint| Endpoint::read(endpoint, before.get(endpoint.id.as_str())));
        Ok(Self { host, ports, endpoints: endpoints.collect::<Result<_, _>>()?, load })
    }

    /// Counts a connection to the service for as long as the result lives; `None` when it has as many as are allowed.
    #[must_use]
    pub fn seat(&self, allowed: usize) -> Option<Seat> {
        self.load.seat(allowed)
    }

    /// How many connections of this gateway the service has now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.load.connections()
    }
}

/// By host, in lower case and without a trailing dot.
type Table = HashTrieMapSync<Box<str>, Arc<ServiceRoute>>;

/// Where a server name leads.
#[derive(Clone, Debug)]
pub struct Found {
    /// The service.
    pub route: Arc<ServiceRoute>,
    /// The slot that the name gives, if any.
    pub slot: Option<u16>,
}

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
                RouteChange::Set(route) => match ServiceRoute::replace(route, &table) {
                    Ok(route) => table.insert_mut(route.host.to_string().into_boxed_str(), Arc::new(route)),
                    Err(error) => refused.push((route.host.clone(), error)),
                },
                RouteChange::Remove(host) => drop(table.remove_mut(host.to_string().as_str())),
            }
        }
        self.table.store(Arc::new(table));
        refused
    }

    /// Where a server name, in lower case, leads: to a service that is exported by this cluster, or nowhere.
    ///
    /// # Errors
    /// Which part of the name leads nowhere.
    pub fn find(&self, server_name: &str) -> Result<Found, Refusal> {
        let found = ServerName::parse(server_name).map_or(Err(Refusal::UnknownName), |name| self.look_up(&name));
        match found {
            // What is not known may be no name at all. The rare case pays for telling the two apart.
            Err(_) if server_name.parse::<Sni>().map_or(true, |sni| sni.host.is_local()) => Err(Refusal::UnknownName),
            found => found,
        }
    }

    fn look_up(&self, name: &ServerName<'_>) -> Result<Found, Refusal> {
        if name.cluster.is_some_and(|cluster| cluster != self.cluster.as_str()) {
            return Err(Refusal::OtherCluster);
        }
        let route = self.table.load().get(name.host).cloned().ok_or(Refusal::NotExported)?;
        if route.ports.contains(&name.port) {
            Ok(Found { route, slot: name.slot })
        } else {
            Err(Refusal::PortNotExported)
        }
    }

    /// All routes, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ServiceRoute>> {
        self.table.load().values().cloned().collect()
    }

    /// How many services are exported.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.load().size()
    }

    /// Whether nothing is exported.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.load().is_empty()
    }
}
