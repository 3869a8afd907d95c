//! What the replica counts.

use std::time::Duration;

use federation_api::federation::v1::PublishResult;
use federation_api::federation::v1::refusal::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// A member: as many as the federation has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Member {
    pub(crate) cluster: String,
}

/// The replica's metrics; a clone is another handle to the same ones.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) sessions: Gauge,
    pub(crate) records: Gauge,
    pub(crate) record_bytes: Gauge,
    pub(crate) withdrawals: Gauge,
    pub(crate) revision: Gauge,
    pub(crate) connected: Gauge,
    pub(crate) members: Gauge,
    pub(crate) lagging: Gauge,
    pub(crate) answers_waiting: Gauge,
    pub(crate) lag_seconds: Family<Member, Gauge<f64, std::sync::atomic::AtomicU64>>,
    pub(crate) lag_revisions: Family<Member, Gauge>,
    pub(crate) exports: Family<Member, Gauge>,
    opened: Family<Kind, Counter>,
    ended: Family<Kind, Counter>,
    published: Family<Kind, Counter>,
    publish_seconds: Histogram,
    told: Counter,
    told_bytes: Counter,
    collected: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            sessions: Gauge::default(),
            records: Gauge::default(),
            record_bytes: Gauge::default(),
            withdrawals: Gauge::default(),
            revision: Gauge::default(),
            connected: Gauge::default(),
            members: Gauge::default(),
            lagging: Gauge::default(),
            answers_waiting: Gauge::default(),
            lag_seconds: Family::default(),
            lag_revisions: Family::default(),
            exports: Family::default(),
            opened: Family::default(),
            ended: Family::default(),
            published: Family::default(),
            // 1 ms to 16 s.
            publish_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            told: Counter::default(),
            told_bytes: Counter::default(),
            collected: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("sessions", "Open sessions", self.sessions.clone());
        registry.register("records", "Records kept, withdrawn ones included", self.records.clone());
        registry.register("record_bytes", "Bytes of the records kept", self.record_bytes.clone());
        registry.register("withdrawals", "Withdrawals kept until they may be collected", self.withdrawals.clone());
        registry.register("revision", "The store's revision as this replica has seen it", self.revision.clone());
        registry.register("clusters_connected", "Clusters whose leased key is there", self.connected.clone());
        registry.register("members", "Members that are believed", self.members.clone());
        registry.register(
            "sessions_lagging",
            "Sessions that owe an acknowledgement for longer than three heartbeats",
            self.lagging.clone(),
        );
        registry.register("answers_waiting", "Answers that wait for slow receivers", self.answers_waiting.clone());
        registry.register(
            "cluster_lag_seconds",
            "For how long a cluster's slowest session here has owed an acknowledgement",
            self.lag_seconds.clone(),
        );
        registry.register(
            "cluster_lag_revisions",
            "Revisions that a cluster's slowest session here has not been told of",
            self.lag_revisions.clone(),
        );
        registry.register("cluster_exports", "Live exports and slices of a cluster", self.exports.clone());
        registry.register("sessions_opened", "Sessions opened, by how they began", self.opened.clone());
        registry.register("sessions_ended", "Sessions ended, by why", self.ended.clone());
        registry.register("published_records", "Records offered, by what became of them", self.published.clone());
        registry.register(
            "publish_seconds",
            "From a publish message to its durable answer",
            self.publish_seconds.clone(),
        );
        registry.register("told_records", "Records sent to receivers", self.told.clone());
        registry.register("told_bytes", "Bytes of records sent to receivers", self.told_bytes.clone());
        registry.register("collected_records", "Records deleted since nobody needs them", self.collected.clone());
    }

    pub(crate) fn opened(&self, resumed: bool) {
        let kind = if resumed { "resumed" } else { "snapshot" };
        self.opened.get_or_create(&Kind { kind }).inc();
        self.sessions.inc();
    }

    pub(crate) fn ended(&self, kind: &'static str) {
        self.ended.get_or_create(&Kind { kind }).inc();
        self.sessions.dec();
    }

    pub(crate) fn published(&self, results: &[PublishResult], elapsed: Duration) {
        for result in results {
            let kind = result.refusal.as_ref().map_or("stored", |refusal| reason(refusal.reason()));
            self.published.get_or_create(&Kind { kind }).inc();
        }
        self.publish_seconds.observe(elapsed.as_secs_f64());
    }

    /// How many records were told so far.
    pub(crate) fn told_records(&self) -> u64 {
        self.told.get()
    }

    pub(crate) fn told(&self, records: usize, bytes: usize) {
        self.told.inc_by(u64::try_from(records).unwrap_or(u64::MAX));
        self.told_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    pub(crate) fn collected(&self, records: usize) {
        self.collected.inc_by(u64::try_from(records).unwrap_or(u64::MAX));
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "refused",
        Reason::NotYours => "not_yours",
        Reason::Stale => "stale",
        Reason::Equivocation => "equivocation",
        Reason::NotDelegated => "not_delegated",
        Reason::Quota => "quota",
        Reason::Malformed => "malformed",
        Reason::NotPublisher => "not_publisher",
        Reason::NoSpace => "no_space",
    }
}
