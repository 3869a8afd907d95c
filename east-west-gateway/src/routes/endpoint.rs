//! One endpoint's mesh port, and what this gateway knows of it by itself.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use federation::Locality;
use federation_api::discovery::v1 as wire;

use super::RouteError;

/// For how long an endpoint that could not be reached is tried only after all others.
const AVOIDED_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// Where a service's connections may go.
#[derive(Debug)]
pub struct Endpoint {
    /// `<cluster>/<namespace>/<pod name>`.
    pub id: String,
    /// Its sidecar's mesh port.
    pub address: SocketAddr,
    /// Where it runs.
    pub locality: Locality,
    /// Whether the cluster counts it as ready.
    pub ready: bool,
    /// Its share among equals; at least 1.
    pub weight: u32,
    observed: Arc<Observed>,
}

/// What is said of an endpoint.
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    pub(crate) locality: Locality,
    pub(crate) ready: bool,
    /// 0 stands for 1.
    pub(crate) weight: u32,
}

/// Shared by all versions of one endpoint.
#[derive(Debug)]
struct Observed {
    since: Instant,
    connections: AtomicUsize,
    /// Milliseconds after `since` until which the endpoint is avoided.
    avoided_until: AtomicU64,
}

impl Endpoint {
    pub(super) fn read(endpoint: &wire::Endpoint, before: Option<&&Arc<Self>>) -> Result<Arc<Self>, RouteError> {
        let id = || endpoint.id.clone();
        let ip: IpAddr = endpoint
            .address
            .parse()
            .map_err(|_| RouteError::Address { id: id(), address: endpoint.address.clone() })?;
        let port = u16::try_from(endpoint.mesh_port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| RouteError::MeshPort { id: id(), port: endpoint.mesh_port })?;
        let locality = endpoint.locality.clone().unwrap_or_default();
        let place = Place {
            id: endpoint.id.clone(),
            address: SocketAddr::new(ip, port),
            locality: Locality::new(locality.region, locality.zone),
            ready: endpoint.ready,
            weight: endpoint.weight,
        };
        Ok(Self::at(place, before.copied()))
    }

    /// An endpoint that keeps what is known of it, unless it has moved: the same id at another address is another process.
    pub(crate) fn at(place: Place, before: Option<&Arc<Self>>) -> Arc<Self> {
        let Place { id, address, locality, ready, weight } = place;
        let observed = before.filter(|before| before.address == address).map(|before| Arc::clone(&before.observed));
        Arc::new(Self { id, address, locality, ready, weight: weight.max(1), observed: observed.unwrap_or_default() })
    }

    /// How many connections of this gateway it has now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.observed.connections.load(Relaxed)
    }

    /// Whether it could not be reached a moment ago.
    #[must_use]
    pub fn avoided(&self, now: Instant) -> bool {
        self.observed.milliseconds(now) < self.observed.avoided_until.load(Relaxed)
    }

    pub(crate) fn failed(&self, now: Instant) {
        self.observed.avoided_until.store(self.observed.milliseconds(now + AVOIDED_AFTER_FAILURE), Relaxed);
    }

    pub(crate) fn reached(&self) {
        self.observed.avoided_until.store(0, Relaxed);
    }

    /// Counts a connection for as long as the result lives.
    #[must_use]
    pub fn engage(self: &Arc<Self>) -> Engaged {
        self.observed.connections.fetch_add(1, Relaxed);
        Engaged { endpoint: Arc::clone(self) }
    }
}

impl Default for Observed {
    fn default() -> Self {
        Self { since: Instant::now(), connections: AtomicUsize::new(0), avoided_until: AtomicU64::new(0) }
    }
}

impl Observed {
    fn milliseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX)
    }
}

/// A connection to an endpoint, counted until dropped.
#[derive(Debug)]
pub struct Engaged {
    endpoint: Arc<Endpoint>,
}

impl Engaged {
    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        self.endpoint.observed.connections.fetch_sub(1, Relaxed);
    }
}
