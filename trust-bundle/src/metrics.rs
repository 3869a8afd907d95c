//! What the service counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::state::TrustState;

/// The service's metrics, all below `isthmus_trust_bundle_`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Stored values that were not believed.
    pub ignored: Counter,
    /// Open watches.
    pub watchers: Gauge,
    members: Gauge,
    epoch: Gauge,
    refused: Family<CallLabel, Counter>,
}

/// One of the calls of `trust.v1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    call: &'static str,
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("members", "Member clusters, those shut out included", self.members.clone());
        registry.register("epoch", "The trust state's epoch", self.epoch.clone());
        registry.register("watchers", "Open watches", self.watchers.clone());
        registry.register("refused", "Calls that were refused", self.refused.clone());
        registry.register("ignored_values", "Stored values that were not believed", self.ignored.clone());
    }

    /// Counts a refusal of `call`, one of the names in the contract.
    pub fn refused(&self, call: &'static str) {
        self.refused.get_or_create(&CallLabel { call }).inc();
    }

    /// Brings the gauges up to date.
    pub fn show(&self, state: &TrustState) {
        self.members.set(i64::try_from(state.members().len()).unwrap_or(i64::MAX));
        self.epoch.set(i64::try_from(state.epoch()).unwrap_or(i64::MAX));
    }
}
