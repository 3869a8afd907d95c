//! What is known of members and groups between requests.

use std::{collections::HashMap, ops::Range, time::Instant};

use crate::{
    ejection::{Detector, EjectionCause},
    latency::PeakEwma,
    plan::{EndpointId, GatewayName, GroupName, Reach},
    settings::Settings,
};

/// Most real endpoints remembered behind the gateways of one group. Peers name them, so their number is bounded; the
/// one seen longest ago makes room.
pub const MAX_ENDPOINTS_PER_GROUP: usize = 1024;

/// Failures in a row of a gateway or group, as a multiple of the setting, that eject it though all had one source.
const SINGLE_SOURCE_FACTOR: u32 = 3;

/// One member of the plan: what it is, what was seen of it, and what the last assessment made of it.
#[derive(Debug, Clone)]
pub(crate) struct MemberState<K> {
    pub(crate) id: K,
    /// At least 1 unless another member of the group has a weight.
    pub(crate) weight: f64,
    /// A hash of the key, for affinity.
    pub(crate) seed: u64,
    /// Index of its group.
    pub(crate) group: usize,
    /// Index into its group's gateways.
    pub(crate) gateway: Option<usize>,

    /// Who answered here last, when an answer named itself.
    pub(crate) behind: Option<EndpointId>,
    pub(crate) detector: Detector,
    pub(crate) latency: PeakEwma,
    pub(crate) in_flight: u32,
    /// When it joined a group that was in use.
    pub(crate) joined: Option<Instant>,
    /// Set by a failure, cleared by a success.
    pub(crate) doubt: Option<Doubt>,

    /// Neither it nor what it depends on is ejected.
    pub(crate) available: bool,
    /// What of its weight it has, the rest being that of other paths to the same real endpoint.
    pub(crate) portion: f64,
    /// Weight with slow start; 0 when it may not be used.
    pub(crate) usable: f64,
    /// Sum of `usable` in the group up to and with this member.
    pub(crate) cumulative: f64,
    /// Weight within its whole priority, without slow start: moves as little as possible.
    pub(crate) steady: f64,
}

/// A member that failed but is not ejected (yet).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doubt {
    /// It looks dearer until then.
    pub(crate) until: Instant,
    /// When a probe should find out more, so that users' requests need not; none if a probe would not tell.
    pub(crate) next_probe: Option<Instant>,
}

/// One group of the plan.
#[derive(Debug, Clone)]
pub(crate) struct GroupState {
    pub(crate) name: GroupName,
    pub(crate) priority: u32,
    pub(crate) reach: Reach,
    pub(crate) capacity_total: u32,
    pub(crate) capacity_ready: u32,
    /// A fixed weight in place of the capacity.
    pub(crate) fixed: Option<f64>,
    pub(crate) suspect: bool,
    /// Its members' indices.
    pub(crate) members: Range<usize>,

    /// Watches the group as a whole.
    pub(crate) whole: Aggregate,
    pub(crate) gateways: Vec<(GatewayName, Aggregate)>,
    pub(crate) endpoints: HashMap<EndpointId, EndpointState>,
    /// When a suspect group is probed next.
    pub(crate) suspect_probe: Option<Instant>,
    /// Counts probes, so that they take turns over the members.
    pub(crate) probe_turn: usize,

    /// Suspect and failing: used last.
    pub(crate) demoted: bool,
    /// Capacity that can be used, in endpoints; slow start after an ejection included.
    pub(crate) healthy: f64,
    /// Weight within its priority now.
    pub(crate) share: f64,
    /// Sum of `share` in its priority up to and with this group.
    pub(crate) cumulative: f64,
    /// Sum of its members' `usable`.
    pub(crate) usable: f64,
    /// Members with `usable` above 0.
    pub(crate) usable_members: usize,
}

/// A real endpoint behind gateways.
#[derive(Debug, Clone)]
pub(crate) struct EndpointState {
    pub(crate) detector: Detector,
    pub(crate) seen: Instant,
}

/// A detector over several members. It must not mistake one failing endpoint for a failing gateway or cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aggregate {
    pub(crate) detector: Detector,
    /// Who failed first in the current run of failures.
    first: Option<Culprit>,
    /// Whether several endpoints failed in the current run.
    endpoints: bool,
    /// Whether several gateways failed in the current run.
    gateways: bool,
}

/// Who may have to answer for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Culprit {
    /// Stands for the real endpoint, or for the member when that is unknown.
    pub(crate) endpoint: u64,
    pub(crate) gateway: Option<usize>,
}

/// Whether an aggregate has more than one of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Others {
    pub(crate) endpoints: bool,
    pub(crate) gateways: bool,
}

impl Aggregate {
    pub(crate) fn succeeded(&mut self, now: Instant) {
        self.detector.succeeded(now);
        self.first = None;
        self.endpoints = false;
        self.gateways = false;
    }

    /// Counts a failure; the rule it breaks. A run of failures condemns the whole only if several culprits took part,
    /// where there are `others`; a low rate only if `most_failing` says so.
    pub(crate) fn failed(
        &mut self,
        culprit: Culprit,
        others: Others,
        now: Instant,
        settings: &Settings,
        most_failing: impl FnOnce() -> bool,
    ) -> Option<EjectionCause> {
        let first = *self.first.get_or_insert(culprit);
        self.endpoints |= first.endpoint != culprit.endpoint;
        self.gateways |= first.gateway != culprit.gateway;
        let cause = self.detector.failed(now, settings)?;
        let run = self.detector.consecutive();
        let long_run = run >= settings.consecutive_failures.saturating_mul(SINGLE_SOURCE_FACTOR);
        let several = (self.endpoints || !others.endpoints) && (self.gateways || !others.gateways);
        let whole = match cause {
            EjectionCause::ConsecutiveFailures => several || long_run,
            EjectionCause::SuccessRate => most_failing(),
            EjectionCause::FailedTrial | EjectionCause::Supposed => true,
        };
        whole.then_some(cause)
    }
}

impl GroupState {
    /// The state of a real endpoint, remembered from now on.
    pub(crate) fn endpoint(&mut self, id: &EndpointId, now: Instant) -> &mut EndpointState {
        if !self.endpoints.contains_key(id) && self.endpoints.len() >= MAX_ENDPOINTS_PER_GROUP {
            let oldest = self.endpoints.iter().min_by_key(|(_, endpoint)| endpoint.seen).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                self.endpoints.remove(&oldest);
            }
        }
        let endpoint = self
            .endpoints
            .entry(id.clone())
            .or_insert_with(|| EndpointState { detector: Detector::default(), seen: now });
        endpoint.seen = now;
        endpoint
    }

    /// Whether a real endpoint is ejected.
    pub(crate) fn endpoint_out(&self, id: &EndpointId) -> bool {
        self.endpoints.get(id).is_some_and(|endpoint| endpoint.detector.is_out())
    }
}
