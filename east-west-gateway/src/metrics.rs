//! What the gateway counts. Every label's values are a closed set, and no counting takes a lock.

mod counters;
mod times;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::{admission::Shed, close_reason::CloseReason};
use counters::Counters;
use times::Times;

/// The metrics of the data path; prefix `isthmus_east_west_gateway`. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) open: Gauge,
    pub(crate) closed: Counters,
    pub(crate) shed: Counters,
    pub(crate) accept_errors: Counter,
    pub(crate) connect_failures: Counters,
    pub(crate) bytes: Counters,
    pub(crate) hello_time: Times,
    pub(crate) connect_time: Times,
    pub(crate) first_byte_time: Times,
}

/// The values of the label `direction`.
pub(crate) const TO_ENDPOINT: &str = "to_endpoint";
/// See [`TO_ENDPOINT`].
pub(crate) const TO_CLIENT: &str = "to_client";

impl Default for Metrics {
    fn default() -> Self {
        Self {
            open: Gauge::default(),
            closed: Counters::new("reason", CloseReason::LABELS),
            shed: Counters::new("limit", Shed::ALL.map(Shed::label)),
            accept_errors: Counter::default(),
            connect_failures: Counters::new("kind", FAILURES),
            bytes: Counters::new("direction", [TO_ENDPOINT, TO_CLIENT]),
            hello_time: Times::default(),
            connect_time: Times::default(),
            first_byte_time: Times::default(),
        }
    }
}

/// The values of the label `kind`: how an attempt to reach an endpoint failed.
pub(crate) const FAILURES: [&str; 5] = ["refused", "timed_out", "reset", "unreachable", "local"];

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
            "Bytes passed on; of each connection that is open, up to 64 KiB are not counted yet",
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
