//! The store's health, as metrics.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::fault::Fault;
use crate::Revision;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Failure {
    request: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone)]
pub(super) struct Metrics {
    heard: Gauge<f64, AtomicU64>,
    revision: Gauge,
    watches: Counter,
    failures: Family<Failure, Counter>,
    seconds: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            heard: Gauge::default(),
            revision: Gauge::default(),
            watches: Counter::default(),
            failures: Family::default(),
            // 0.5 ms to 8 s, the deadline of a request.
            seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "store_watch_heard_timestamp_seconds",
            "When the store's watch was last heard, Unix time: the time since is its silence",
            self.heard.clone(),
        );
        registry.register("store_revision", "The last revision that the store's watch reported", self.revision.clone());
        registry.register("store_watches", "Watches opened at a member, the first one included", self.watches.clone());
        registry.register("store_failures", "Attempts at a request that failed, by kind", self.failures.clone());
        registry.register_with_unit(
            "store_request_duration",
            "Attempts at a request that were answered",
            Unit::Seconds,
            self.seconds.clone(),
        );
    }

    pub(super) fn answered(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn failed(&self, request: &'static str, fault: &Fault) {
        self.failures.get_or_create(&Failure { request, kind: fault.kind() }).inc();
    }

    pub(super) fn watch_opened(&self) {
        self.watches.inc();
    }

    pub(super) fn watch_heard(&self) {
        self.heard.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }

    pub(super) fn watch_reached(&self, revision: Revision) {
        self.revision.set(super::keys::number(revision));
    }
}
