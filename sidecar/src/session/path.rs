//! One way to a service's endpoints, with the sessions that are open on it.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use federation::sni::Subset;
use federation::{ClusterName, GatewayAddress, Sni};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use spiffe_identity::SpiffeId;

use crate::session::pool::Sessions;
use crate::telemetry::WayMetrics;

/// A connection not up after this, or after twice the round-trip time, is raced by one to the next candidate.
const RACE_AFTER: Duration = Duration::from_millis(250);

/// A connection not up after this, or after four round-trip times, is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1);

/// From a slot to the one that a path is led to next: further than one client's slots reach.
const SLOT_STRIDE: u16 = 251;

/// A path is led to another slot after this at the earliest, and doubles it each time.
const FIRST_TURN: Duration = Duration::from_secs(2);

/// Up to 17 minutes.
const MAX_DOUBLINGS: u16 = 9;

/// Where a path's connections go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Via {
    /// The sidecar of an endpoint of the own cluster.
    Endpoint {
        /// As its sidecar names itself.
        id: Arc<str>,
        /// Where it takes mesh connections.
        address: SocketAddr,
    },
    /// A gateway of another cluster, which sends the slot to one of its endpoints.
    Gateway {
        /// Unique in its cluster.
        name: Arc<str>,
        /// Where.
        address: GatewayAddress,
        /// The port.
        port: u16,
        /// Which of the endpoints: see [`federation::slot`].
        slot: u16,
    },
    /// An endpoint of the own cluster without a sidecar: its application.
    Plain {
        /// As its sidecar would name itself.
        id: Arc<str>,
        /// Where the application listens.
        address: SocketAddr,
        /// The service declares HTTP/2.
        http2: bool,
    },
}

/// What makes two paths the same: sessions survive an update of the state exactly when this does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PathId {
    pub(crate) cluster: ClusterName,
    pub(crate) via: Via,
    /// The SNI; without a sidecar nobody reads it.
    pub(crate) server_name: String,
    /// The peer must show one of these; without a sidecar it shows none.
    pub(crate) identities: Arc<[SpiffeId]>,
}

impl PathId {
    /// The gateway's name, where there is one.
    pub(crate) fn gateway(&self) -> Option<&Arc<str>> {
        match &self.via {
            Via::Endpoint { .. } | Via::Plain { .. } => None,
            Via::Gateway { name, .. } => Some(name),
        }
    }
}

/// TLS towards one set of identities, for both kinds of session.
#[derive(Clone, Debug)]
pub(crate) struct PathTls {
    /// Offers `isthmus-h2`.
    pub(crate) http: Arc<ClientConfig>,
    /// Offers `isthmus-tcp`.
    pub(crate) tcp: Arc<ClientConfig>,
}

/// One way to a service's endpoints. Compared by place, since equal paths are kept over updates.
#[derive(Clone, Debug)]
pub(crate) struct Path(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: PathId,
    cluster_text: Arc<str>,
    /// The same in every process: affinity outlives a restart.
    hash: u64,
    server_name: ServerName<'static>,
    /// How often it was led to another slot.
    turns: AtomicU16,
    /// None without a sidecar.
    tls: Option<PathTls>,
    /// Microseconds; 0 while unknown.
    round_trip: AtomicU32,
    metrics: WayMetrics,
    sessions: Mutex<Sessions>,
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Path {}

impl Hash for Path {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl Path {
    /// A path without sessions. `None` if its server name is none.
    pub(crate) fn new(
        id: PathId,
        tls: Option<PathTls>,
        round_trip: Option<Duration>,
        metrics: WayMetrics,
    ) -> Option<Self> {
        let server_name = ServerName::try_from(id.server_name.clone()).ok()?;
        let path = Inner {
            cluster_text: id.cluster.as_str().into(),
            hash: BuildHasherDefault::<DefaultHasher>::default().hash_one(&id),
            server_name,
            turns: AtomicU16::new(0),
            tls,
            round_trip: AtomicU32::new(round_trip.map_or(0, microseconds)),
            metrics,
            sessions: Mutex::new(Sessions::default()),
            id,
        };
        Some(Self(Arc::new(path)))
    }

    pub(crate) fn id(&self) -> &PathId {
        &self.0.id
    }

    /// The cluster, for access events.
    pub(crate) fn cluster_text(&self) -> &Arc<str> {
        &self.0.cluster_text
    }

    /// The name to ask for: the path's own, or that of the slot that it was led to since.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        self.turned_name().unwrap_or_else(|| self.0.server_name.clone())
    }

    fn turned_name(&self) -> Option<ServerName<'static>> {
        let turns = self.0.turns.load(Ordering::Relaxed);
        if turns == 0 {
            return None;
        }
        let mut sni: Sni = self.0.id.server_name.parse().ok()?;
        if let Subset::Slot(_, slot) = &mut sni.subset {
            *slot = slot.wrapping_add(turns.wrapping_mul(SLOT_STRIDE));
        }
        sni.to_string().try_into().ok()
    }

    /// Leads to another slot from the next session on, if the last time is long enough ago. For a path whose endpoint has
    /// other ones.
    pub(crate) fn turn(&self, now: Instant) {
        let turns = self.0.turns.load(Ordering::Relaxed);
        let pause = FIRST_TURN * (1 << turns.min(MAX_DOUBLINGS));
        if matches!(self.0.id.via, Via::Gateway { .. }) && self.sessions().turn(now, pause) {
            self.0.turns.store(turns.wrapping_add(1).max(1), Ordering::Relaxed);
        }
    }

    /// The endpoint that it leads to, unless a gateway chooses.
    pub(crate) fn endpoint(&self) -> Option<&str> {
        match &self.0.id.via {
            Via::Endpoint { id, .. } | Via::Plain { id, .. } => Some(id),
            Via::Gateway { .. } => None,
        }
    }

    /// Whether an application without a sidecar is to be asked in HTTP/2.
    pub(crate) fn speaks_http2(&self) -> bool {
        matches!(self.0.id.via, Via::Plain { http2: true, .. })
    }

    /// TLS towards the sidecar there; `None`: there is none.
    pub(crate) fn tls(&self) -> Option<&PathTls> {
        self.0.tls.as_ref()
    }

    pub(crate) fn metrics(&self) -> &WayMetrics {
        &self.0.metrics
    }

    /// Held for a few comparisons, never across an await.
    pub(crate) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a measured connection time in.
    pub(crate) fn observe_round_trip(&self, sample: Duration) {
        let sample = u64::from(microseconds(sample));
        let before = u64::from(self.0.round_trip.load(Ordering::Relaxed));
        let after = if before == 0 { sample } else { (before * 3 + sample) / 4 };
        // A lost race with another sample loses a sample.
        self.0.round_trip.store(u32::try_from(after).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// The measured round-trip time, if any.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        let microseconds = self.0.round_trip.load(Ordering::Relaxed);
        (microseconds > 0).then(|| Duration::from_micros(u64::from(microseconds)))
    }

    /// After this time without a connection, another candidate is tried as well.
    pub(crate) fn race_after(&self) -> Duration {
        self.round_trip().map_or(RACE_AFTER, |time| RACE_AFTER.max(2 * time))
    }

    /// After this time without a connection, it is given up.
    pub(crate) fn give_up_after(&self) -> Duration {
        self.round_trip().map_or(GIVE_UP_AFTER, |time| GIVE_UP_AFTER.max(4 * time))
    }
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX).max(1)
}
