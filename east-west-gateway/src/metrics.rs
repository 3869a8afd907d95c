//! What the gateway counts. Every label's values are a closed set.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// The metrics of the data path; prefix `isthmus_east_west_gateway`. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) open: Gauge,
    pub(crate) closed: Family<Reason, Counter>,
    pub(crate) shed: Family<Limit, Counter>,
    pub(crate) accept_errors: Counter,
    pub(crate) connect_failures: Family<Kind, Counter>,
    pub(crate) bytes: Family<Direction, Counter>,
    pub(crate) hello_time: Histogram,
    pub(crate) connect_time: Histogram,
    pub(crate) first_byte_time: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Limit {
    pub(crate) limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Direction {
    pub(crate) direction: &'static str,
}

/// From 0.25 ms to 4 s.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            open: Gauge::default(),
            closed: Family::default(),
            shed: Family::default(),
            accept_errors: Counter::default(),
            connect_failures: Family::default(),
            bytes: Family::default(),
            hello_time: times(),
            connect_time: times(),
            first_byte_time: times(),
        }
    }
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Connections that are open", self.open.clone());
        registry.register("connections_closed", "Connections that have ended, by why", self.closed.clone());
        registry.register("connections_shed", "Connections reset at once, by the limit they met", self.shed.clone());
        registry.register("accept_errors", "Connections that could not be accepted", self.accept_errors.clone());
        registry.register(
            "connect_failures",
            "Attempts to reach an endpoint that failed",
            self.connect_failures.clone(),
        );
        registry.register_with_unit(
            "relayed",
            "Bytes passed on, counted when their connection ends",
            Unit::Bytes,
            self.bytes.clone(),
        );
        let seconds = [
            ("hello", "From accepting a connection to its complete hello", &self.hello_time),
            ("connect", "From the hello to a connected endpoint", &self.connect_time),
            ("first_byte", "From passing the hello on to the endpoint's first byte", &self.first_byte_time),
        ];
        for (name, help, histogram) in seconds {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
    }
}
