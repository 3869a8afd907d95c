//! What a sidecar counts. Label values come from closed sets, or from services and clusters that the control-plane named
//! and this workload uses, whose number is bounded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of latency buckets, in seconds: from a fast local call to a patient one.
const LATENCY: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A service, and the cluster that answered or `none`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Way {
    /// `<namespace>/<name>`.
    pub(crate) service: String,
    /// The cluster.
    pub(crate) cluster: String,
}

/// A way, and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    /// `<namespace>/<name>`, or `none`.
    pub(crate) service: String,
    /// The cluster, or `none`.
    pub(crate) cluster: String,
    /// `2xx` and so on, or why there was no answer.
    pub(crate) result: &'static str,
}

/// A service, and a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Because {
    /// `<namespace>/<name>`.
    pub(crate) service: String,
    /// From a closed set.
    pub(crate) reason: &'static str,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Result {
    /// From a closed set.
    pub(crate) result: &'static str,
}

/// Which way something went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Direction {
    /// `inbound` or `outbound`.
    pub(crate) direction: &'static str,
}

type Latency = Family<Way, Histogram, fn() -> Histogram>;

/// A sidecar's metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) outbound_requests: Family<Answered, Counter>,
    pub(crate) outbound_latency: Latency,
    pub(crate) outbound_connections: Family<Answered, Counter>,
    pub(crate) retries: Family<Because, Counter>,
    pub(crate) ejections: Family<Because, Counter>,
    pub(crate) panic_picks: Family<Because, Counter>,
    pub(crate) inbound_requests: Family<Answered, Counter>,
    pub(crate) inbound_latency: Latency,
    pub(crate) inbound_connections: Family<Answered, Counter>,
    pub(crate) open_connections: Family<Direction, Gauge>,
    pub(crate) sessions: Gauge,
    pub(crate) session_attempts: Family<Result, Counter>,
    pub(crate) svid_issues: Family<Result, Counter>,
    pub(crate) svid_expiry: Gauge,
    pub(crate) state_applied: Gauge,
    pub(crate) federation_applied: Gauge,
    pub(crate) trust_confirmed: Gauge,
    pub(crate) trust_too_old: Gauge,
    pub(crate) services: Gauge,
    pub(crate) state_errors: Counter,
    pub(crate) capture_errors: Counter,
    pub(crate) bytes: Family<Direction, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        fn latency() -> Histogram {
            Histogram::new(LATENCY)
        }
        Self {
            outbound_requests: Family::default(),
            outbound_latency: Family::new_with_constructor(latency),
            outbound_connections: Family::default(),
            retries: Family::default(),
            ejections: Family::default(),
            panic_picks: Family::default(),
            inbound_requests: Family::default(),
            inbound_latency: Family::new_with_constructor(latency),
            inbound_connections: Family::default(),
            open_connections: Family::default(),
            sessions: Gauge::default(),
            session_attempts: Family::default(),
            svid_issues: Family::default(),
            svid_expiry: Gauge::default(),
            state_applied: Gauge::default(),
            federation_applied: Gauge::default(),
            trust_confirmed: Gauge::default(),
            trust_too_old: Gauge::default(),
            services: Gauge::default(),
            state_errors: Counter::default(),
            capture_errors: Counter::default(),
            bytes: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds them all to a registry; the program's prefix is the registry's.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "outbound_requests",
            "Requests of the application by service, cluster and result",
            self.outbound_requests.clone(),
        );
        registry.register_with_unit(
            "outbound_latency",
            "From a request's arrival to its response's head",
            Unit::Seconds,
            self.outbound_latency.clone(),
        );
        registry.register(
            "outbound_connections",
            "Opaque connections of the application by how they ended",
            self.outbound_connections.clone(),
        );
        registry.register("retries", "Attempts after the first one, by what made them necessary", self.retries.clone());
        registry.register("ejections", "Ejections by what was ejected", self.ejections.clone());
        registry.register("panic_picks", "Requests sent with no healthy group anywhere", self.panic_picks.clone());
        registry.register(
            "inbound_requests",
            "Requests to the application by service, caller's cluster and result",
            self.inbound_requests.clone(),
        );
        registry.register_with_unit(
            "inbound_latency",
            "From a request's arrival to the application's response head",
            Unit::Seconds,
            self.inbound_latency.clone(),
        );
        registry.register(
            "inbound_connections",
            "Mesh connections by the verdict they got, or why they got none",
            self.inbound_connections.clone(),
        );
        registry.register("open_connections", "Connections that are open", self.open_connections.clone());
        registry.register("sessions", "Open HTTP/2 sessions to other sidecars", self.sessions.clone());
        registry.register(
            "session_attempts",
            "Connections to other sidecars by how they went",
            self.session_attempts.clone(),
        );
        registry.register("svid_issues", "SVIDs asked for", self.svid_issues.clone());
        registry.register_with_unit(
            "svid_expiry_timestamp",
            "When the SVID ends, Unix time",
            Unit::Seconds,
            self.svid_expiry.clone(),
        );
        registry.register_with_unit(
            "state_applied_timestamp",
            "When the control-plane was last heard, Unix time",
            Unit::Seconds,
            self.state_applied.clone(),
        );
        registry.register_with_unit(
            "federation_applied_timestamp",
            "When the control-plane last heard the federation, Unix time",
            Unit::Seconds,
            self.federation_applied.clone(),
        );
        registry.register_with_unit(
            "trust_confirmed_timestamp",
            "When the trust state was last confirmed, Unix time; 0 before the first time",
            Unit::Seconds,
            self.trust_confirmed.clone(),
        );
        registry.register(
            "trust_too_old",
            "1 while other trust domains are shut out because of maxTrustAge",
            self.trust_too_old.clone(),
        );
        registry.register("services", "Services that this workload uses", self.services.clone());
        registry.register(
            "state_errors",
            "Resources that were not understood; the last good ones are kept",
            self.state_errors.clone(),
        );
        registry.register(
            "capture_errors",
            "Times that the kernel could not be told which ports refuse plaintext, or which local services are captured",
            self.capture_errors.clone(),
        );
        registry.register_with_unit("relayed", "Bytes of opaque connections", Unit::Bytes, self.bytes.clone());
    }
}
