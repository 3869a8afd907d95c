//! What the server counts.

use std::sync::atomic::AtomicI64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{respond::Kind, zone::Zone};

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Transport {
    /// One packet.
    Udp,
    /// A connection.
    Tcp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    transport: Transport,
    response: Kind,
}

impl Transport {
    /// In the order of their numbers.
    const ALL: [Self; 2] = [Self::Udp, Self::Tcp];
}

/// The server's metrics. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    queries: Family<Labels, Counter>,
    /// The family's counters by transport and response: a query takes no lock.
    counters: [[Counter; Kind::ALL.len()]; Transport::ALL.len()],
    ignored: Counter,
    refused_connections: Counter,
    names: Gauge<i64, AtomicI64>,
    problems: Gauge<i64, AtomicI64>,
    synced: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let queries = Family::<Labels, Counter>::default();
        let counter = |transport, response| queries.get_or_create(&Labels { transport, response }).clone();
        let counters = Transport::ALL.map(|transport| Kind::ALL.map(|response| counter(transport, response)));
        Self {
            counters,
            queries,
            ignored: Counter::default(),
            refused_connections: Counter::default(),
            names: Gauge::default(),
            problems: Gauge::default(),
            synced: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("dns_queries", "Queries answered, by transport and response", self.queries.clone());
        registry.register("dns_ignored", "Packets that were no query, left unanswered", self.ignored.clone());
        registry.register(
            "dns_refused_connections",
            "TCP connections closed at once because there were too many",
            self.refused_connections.clone(),
        );
        registry.register("dns_zone_names", "Names in the clusterset zone", self.names.clone());
        registry.register("dns_zone_problems", "Parts of services left out of the zone", self.problems.clone());
        registry.register("dns_zone_synced", "1 once the first full state was applied", self.synced.clone());
    }

    /// To be told of every new zone.
    pub fn zone_replaced(&self, zone: &Zone) {
        self.names.set(i64::try_from(zone.names()).unwrap_or(i64::MAX));
        self.problems.set(i64::try_from(zone.problems().len()).unwrap_or(i64::MAX));
        self.synced.set(i64::from(zone.synced()));
    }

    /// Queries answered in one way so far.
    pub fn answered(&self, transport: Transport, response: Kind) -> u64 {
        self.counters[transport as usize][response as usize].get()
    }

    pub(crate) fn count(&self, transport: Transport, response: Option<Kind>) {
        match response {
            Some(response) => {
                self.counters[transport as usize][response as usize].inc();
            }
            None => {
                self.ignored.inc();
            }
        }
    }

    pub(crate) fn refused_connection(&self) {
        self.refused_connections.inc();
    }
}
