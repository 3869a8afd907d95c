//! Where other clusters are reached: the table of the egress side.
//!
//! ```text
//!   discovery: Remote resources ──► announced ─┐
//!   resolver: names, by their TTL ► answers ───┴─► table: cluster ─► gateways' addresses
//! ```
//!
//! Names are resolved beforehand, so that no connection waits for a name server. A connection sees one state of the table.

mod resolving;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use federation::name::CLUSTER_SUFFIX;
use federation::{ClusterName, Gateway, GatewayAddress};
use federation_api::discovery::v1 as wire;
use tokio::sync::Notify;

use crate::{
    close_reason::Refusal,
    routes::{Endpoint, Place, Seat, ServerName, ServiceLoad},
};

/// Why a `Remote` resource is not one. The last good one stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// No cluster can have this name.
    #[error("cluster: {0}")]
    Cluster(#[from] federation::name::NameError),
    /// It is this gateway's own cluster.
    #[error("cluster: {0} is the own one")]
    OwnCluster(ClusterName),
    /// One of the gateways.
    #[error("gateways: {0}")]
    Gateway(String),
}

/// Another cluster's gateways, as far as their addresses are known.
#[derive(Debug)]
pub struct RemoteCluster {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its gateways' addresses; ids are `<cluster>/<gateway>`. Those that drain are not ready, unless all do.
    pub gateways: Vec<Arc<Endpoint>>,
    load: Arc<ServiceLoad>,
}

impl RemoteCluster {
    /// Counts a connection to the cluster for as long as the result lives; `None` when it has as many as are allowed.
    #[must_use]
    pub fn seat(&self, allowed: usize) -> Option<Seat> {
        self.load.seat(allowed)
    }

    /// How many connections of this gateway go to the cluster now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.load.connections()
    }
}

/// By the cluster's name.
type Table = BTreeMap<String, Arc<RemoteCluster>>;

/// The table of the egress side.
#[derive(Debug)]
pub struct Remotes {
    own: ClusterName,
    table: ArcSwap<Table>,
    /// What the table is made of. Held while a new one is made; lookups never wait for it.
    known: Mutex<Known>,
    /// There are other names to resolve.
    names_changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    announced: BTreeMap<ClusterName, Vec<Gateway>>,
    resolved: HashMap<String, Vec<IpAddr>>,
    /// The own cluster's egress listeners: whoever announced them as its gateways would make a circle.
    own_egress: BTreeSet<SocketAddr>,
}

/// One change of what is announced.
#[derive(Debug)]
pub enum RemoteChange<'a> {
    /// The cluster has these gateways.
    Set(&'a wire::Remote),
    /// The cluster, by name, is not reachable any more.
    Remove(&'a str),
}

impl Remotes {
    /// An empty table of a gateway of this cluster.
    #[must_use]
    pub fn new(own: ClusterName) -> Self {
        Self { own, table: ArcSwap::default(), known: Mutex::default(), names_changed: Notify::new() }
    }

    /// Applies changes together; what was refused is returned, and leaves the cluster as it was.
    pub fn apply<'a>(&self, changes: impl IntoIterator<Item = RemoteChange<'a>>) -> Vec<(String, RemoteError)> {
        let mut known = self.known();
        let mut refused = Vec::new();
        for change in changes {
            match change {
                RemoteChange::Set(remote) => match self.read(remote) {
                    Ok((cluster, gateways)) => drop(known.announced.insert(cluster, gateways)),
                    Err(error) => refused.push((remote.cluster.clone(), error)),
                },
                RemoteChange::Remove(name) => known.announced.retain(|cluster, _| cluster.as_str() != name),
            }
        }
        let names = known.names();
        known.resolved.retain(|name, _| names.contains(name));
        self.publish(&known);
        self.names_changed.notify_one();
        refused
    }

    /// Says where the own cluster's egress listeners are, which are nobody else's gateways.
    pub fn set_own_egress(&self, own: impl IntoIterator<Item = SocketAddr>) {
        let mut known = self.known();
        let own = own.into_iter().map(|address| canonical(address.ip(), address.port())).collect();
        if known.own_egress != own {
            known.own_egress = own;
            self.publish(&known);
        }
    }

    /// Where a server name, in lower case, leads from inside: to the gateways of the other cluster that it names.
    ///
    /// # Errors
    /// Which part of the name leads nowhere.
    pub fn find(&self, server_name: &str) -> Result<Arc<RemoteCluster>, Refusal> {
        let name = ServerName::parse(server_name).ok_or(Refusal::UnknownName)?;
        if name.host.ends_with(CLUSTER_SUFFIX) {
            // A cluster's own names mean nothing to another one.
            return Err(Refusal::UnknownName);
        }
        let cluster = name.cluster.ok_or(Refusal::NoCluster)?;
        if cluster == self.own.as_str() {
            return Err(Refusal::OwnCluster);
        }
        // Whether the rest of the name is one is for the other cluster's gateway to say.
        self.table.load().get(cluster).cloned().ok_or(Refusal::UnknownCluster)
    }

    /// All clusters, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<RemoteCluster>> {
        self.table.load().values().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, remote: &wire::Remote) -> Result<(ClusterName, Vec<Gateway>), RemoteError> {
        let cluster: ClusterName = remote.cluster.parse()?;
        if cluster == self.own {
            return Err(RemoteError::OwnCluster(cluster));
        }
        let gateways = remote.gateways.iter().cloned().map(Gateway::try_from);
        let gateways = gateways.collect::<Result<_, _>>().map_err(|error| RemoteError::Gateway(error.to_string()))?;
        Ok((cluster, gateways))
    }

    fn resolved(&self, host: &str, addresses: Vec<IpAddr>) {
        let mut known = self.known();
        if known.names().contains(host) && known.resolved.get(host) != Some(&addresses) {
            known.resolved.insert(host.to_owned(), addresses);
            self.publish(&known);
        }
    }

    fn names(&self) -> BTreeSet<String> {
        self.known().names()
    }

    fn publish(&self, known: &Known) {
        let before = self.table.load();
        let cluster = |(name, gateways): (&ClusterName, &Vec<Gateway>)| {
            let before = before.get(name.as_str()).map(Arc::as_ref);
            (name.to_string(), Arc::new(known.cluster(name, gateways, before)))
        };
        self.table.store(Arc::new(known.announced.iter().map(cluster).collect()));
    }
}

impl Known {
    fn names(&self) -> BTreeSet<String> {
        let gateways = self.announced.values().flatten();
        let names = gateways.filter_map(|gateway| match &gateway.address {
            GatewayAddress::Host(host) => Some(host.clone()),
            GatewayAddress::Ip(_) => None,
        });
        names.collect()
    }

    fn cluster(&self, name: &ClusterName, gateways: &[Gateway], before: Option<&RemoteCluster>) -> RemoteCluster {
        let all_drain = gateways.iter().all(|gateway| gateway.draining);
        let endpoint = |gateway: &Gateway, ip: IpAddr| {
            let address = SocketAddr::new(ip, gateway.port);
            let id = format!("{name}/{}", gateway.name);
            let known = before.and_then(|before| {
                before.gateways.iter().find(|endpoint| endpoint.id == id && endpoint.address == address)
            });
            // Better a draining gateway than none.
            let ready = !gateway.draining || all_drain;
            Endpoint::at(Place { id, address, locality: gateway.locality.clone(), ready, weight: 1 }, known)
        };
        let mut endpoints = Vec::new();
        for gateway in gateways {
            let addresses = match &gateway.address {
                GatewayAddress::Ip(ip) => std::slice::from_ref(ip),
                GatewayAddress::Host(host) => self.resolved.get(host).map(Vec::as_slice).unwrap_or_default(),
            };
            let others = addresses.iter().filter(|ip| !self.own_egress.contains(&canonical(**ip, gateway.port)));
            endpoints.extend(others.map(|ip| endpoint(gateway, *ip)));
        }
        let load = before.map(|before| Arc::clone(&before.load)).unwrap_or_default();
        RemoteCluster { cluster: name.clone(), gateways: endpoints, load }
    }
}

/// An address as it compares: `::ffff:192.0.2.1` leads where `192.0.2.1` does, and a scope is not part of what is announced.
fn canonical(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}
