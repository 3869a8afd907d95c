//! A histogram of durations without a lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// The first bucket's bound; each one after it is twice as wide, the last one unbounded.
const FIRST: Duration = Duration::from_micros(250);
/// From 0.25 ms to 4 s, and beyond.
const BUCKETS: usize = 16;

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

impl Times {
    /// Counts a duration.
    pub(crate) fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS - 1).find(|bucket| duration <= FIRST * (1 << bucket)).unwrap_or(BUCKETS - 1);
        self.0.buckets[bucket].fetch_add(1, Relaxed);
        self.0.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }
}

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        let mut buckets = [(f64::INFINITY, 0); BUCKETS];
        for (place, bucket) in self.0.buckets.iter().enumerate() {
            let bound = if place == BUCKETS - 1 { f64::INFINITY } else { (FIRST * (1 << place)).as_secs_f64() };
            buckets[place] = (bound, bucket.load(Relaxed));
        }
        let sum = Duration::from_nanos(self.0.nanoseconds.load(Relaxed)).as_secs_f64();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
