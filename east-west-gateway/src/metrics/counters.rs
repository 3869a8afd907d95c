//! A family of counters whose label values are all known from the start.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, counter::Counter},
};

/// One counter for each value of one label. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    label: &'static str,
    counters: Arc<[(&'static str, Counter)]>,
}

impl Counters {
    /// All at 0.
    pub(crate) fn new(label: &'static str, values: impl IntoIterator<Item = &'static str>) -> Self {
        Self { label, counters: values.into_iter().map(|value| (value, Counter::default())).collect() }
    }

    /// Counts for a value; one that is not among those given is not counted.
    pub(crate) fn add(&self, value: &'static str, count: u64) {
        let counter = self.counters.iter().find(|(known, _)| *known == value);
        debug_assert!(counter.is_some(), "{}={value:?} is unknown", self.label);
        if let Some((_, counter)) = counter {
            counter.inc_by(count);
        }
    }
}

impl EncodeMetric for Counters {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        for (value, counter) in self.counters.iter() {
            counter.encode(encoder.encode_family(&[(self.label, *value)])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        Counter::<u64>::TYPE
    }
}
