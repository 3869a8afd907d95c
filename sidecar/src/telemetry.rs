//! One event per request and per connection, logged and counted when it ends, however it ends.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::{Answered, Metrics, Way};

/// The classes of a status, as label values.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The counters of one way, found once: a request must not look labels up.
#[derive(Clone)]
pub(crate) struct WayMetrics {
    latency: Histogram,
    classes: [Counter; CLASSES.len()],
}

impl WayMetrics {
    /// Of requests that this sidecar's application makes.
    pub(crate) fn outbound(metrics: &Metrics, service: &str, cluster: &str) -> Self {
        let way = Way { service: service.to_owned(), cluster: cluster.to_owned() };
        Self {
            latency: metrics.outbound_latency.get_or_create_owned(&way),
            classes: CLASSES.map(|result| {
                let answered = Answered { service: service.to_owned(), cluster: cluster.to_owned(), result };
                metrics.outbound_requests.get_or_create_owned(&answered)
            }),
        }
    }

    /// Of requests that this sidecar's application answers.
    pub(crate) fn inbound(metrics: &Metrics, service: &str, caller: &str) -> Self {
        let way = Way { service: service.to_owned(), cluster: caller.to_owned() };
        Self {
            latency: metrics.inbound_latency.get_or_create_owned(&way),
            classes: CLASSES.map(|result| {
                let answered = Answered { service: service.to_owned(), cluster: caller.to_owned(), result };
                metrics.inbound_requests.get_or_create_owned(&answered)
            }),
        }
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, status: StatusCode, started: Instant) {
        self.latency.observe(started.elapsed().as_secs_f64());
        if let Some(counter) = self.classes.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            counter.inc();
        }
    }
}

impl fmt::Debug for WayMetrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("WayMetrics")
    }
}

/// What is not known.
static NONE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("-"));

/// The access event of one request or connection; logged when dropped.
#[derive(Debug)]
pub(crate) struct Access {
    /// `outbound` or `inbound`.
    pub(crate) direction: &'static str,
    /// `http` or `tcp`.
    pub(crate) protocol: &'static str,
    /// `<namespace>/<name>`, or what was asked for.
    pub(crate) service: Arc<str>,
    /// The cluster that answered, or of the caller.
    pub(crate) cluster: Arc<str>,
    /// Who answered.
    pub(crate) endpoint: Arc<str>,
    /// Through whom.
    pub(crate) gateway: Option<Arc<str>>,
    /// The other end's SPIFFE ID.
    pub(crate) peer: Arc<str>,
    /// The response's status.
    pub(crate) status: Option<StatusCode>,
    /// How it ended; "unfinished" when the caller went away.
    pub(crate) end: &'static str,
    /// How many sessions were tried.
    pub(crate) attempts: usize,
    /// Bytes both ways, for opaque connections.
    pub(crate) bytes: (u64, u64),
    started: Instant,
}

impl Access {
    /// Something begins.
    pub(crate) fn new(direction: &'static str, protocol: &'static str, service: Arc<str>) -> Self {
        let none = &*NONE;
        Self {
            direction,
            protocol,
            service,
            cluster: Arc::clone(none),
            endpoint: Arc::clone(none),
            gateway: None,
            peer: Arc::clone(none),
            status: None,
            end: "unfinished",
            attempts: 0,
            bytes: (0, 0),
            started: Instant::now(),
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        tracing::info!(
            target: "access",
            direction = self.direction,
            protocol = self.protocol,
            service = &*self.service,
            cluster = &*self.cluster,
            endpoint = &*self.endpoint,
            gateway = self.gateway.as_deref().unwrap_or("-"),
            peer.id = &*self.peer,
            status = self.status.map_or(0, |status| status.as_u16()),
            end = self.end,
            attempts = self.attempts,
            bytes.sent = self.bytes.0,
            bytes.received = self.bytes.1,
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        );
    }
}
