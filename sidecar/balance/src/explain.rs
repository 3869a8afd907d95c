//! Why requests go where they go, for people and for `explain`.
//!
//! Plain structures: whoever shows them chooses the format. For a "what if", see [`Balancer::supposing`].

use std::{
    hash::Hash,
    time::{Duration, Instant},
};

use crate::{
    assess::Tier,
    balancer::{Balancer, Counters},
    ejection::{Detector, EjectionCause, ramp},
    plan::{EndpointId, GatewayName, GroupName, Reach},
    state::{GroupState, MemberState},
};

/// The state of a balancer at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation<K> {
    /// No group anywhere is healthy: all members are used, by capacity.
    pub panic: bool,
    /// The factor f of the spill formula.
    pub overprovisioning: f64,
    /// In order of use.
    pub priorities: Vec<PriorityExplanation<K>>,
    /// What happened so far.
    pub counters: Counters,
}

/// One priority.
#[derive(Debug, Clone, PartialEq)]
pub struct PriorityExplanation<K> {
    /// The plan's number; none for the groups that are suspect and failing, which come last.
    pub priority: Option<u32>,
    /// h = min(1, f · healthy / total).
    pub health: f64,
    /// Share of all requests.
    pub load: f64,
    /// Its groups.
    pub groups: Vec<GroupExplanation<K>>,
}

/// One group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupExplanation<K> {
    /// Its name in the plan.
    pub name: GroupName,
    /// Its priority in the plan, whatever became of it.
    pub priority: u32,
    /// Whether members are endpoints or paths.
    pub reach: Reach,
    /// Endpoints that exist.
    pub capacity_total: u32,
    /// Endpoints that are ready.
    pub capacity_ready: u32,
    /// Endpoints that are ready and not ejected, with slow start after an ejection.
    pub healthy: f64,
    /// Share of all requests.
    pub load: f64,
    /// Its cluster's lease is gone.
    pub suspect: bool,
    /// It is suspect and failing, so it is used last.
    pub demoted: bool,
    /// The whole group is ejected.
    pub ejected: Option<EjectionExplanation>,
    /// The gateways its paths go through.
    pub gateways: Vec<GatewayExplanation>,
    /// The real endpoints behind them that are ejected or stand behind a path.
    pub endpoints: Vec<EndpointExplanation>,
    /// Its members.
    pub members: Vec<MemberExplanation<K>>,
}

/// One gateway of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayExplanation {
    /// Its name in the plan.
    pub name: GatewayName,
    /// All paths through it are ejected.
    pub ejected: Option<EjectionExplanation>,
}

/// One real endpoint behind gateways.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointExplanation {
    /// What it calls itself.
    pub id: EndpointId,
    /// All paths that lead to it are out.
    pub ejected: Option<EjectionExplanation>,
}

/// One member.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberExplanation<K> {
    /// Its key in the plan.
    pub id: K,
    /// The gateway it goes through.
    pub gateway: Option<GatewayName>,
    /// Who answered there last.
    pub endpoint: Option<EndpointId>,
    /// Its weight within the group.
    pub weight: f64,
    /// Share of all requests before latency and requests in flight shift it.
    pub load: f64,
    /// Why it is not available, widest reason first.
    pub unavailable: Option<Unavailable>,
    /// Its own ejection.
    pub ejected: Option<EjectionExplanation>,
    /// Share of its weight that slow start grants, 1 when it is over.
    pub slow_start: f64,
    /// Requests in flight.
    pub in_flight: u32,
    /// Peak EWMA of its latency, once it answered.
    pub latency: Option<Duration>,
    /// Failures since the last success.
    pub consecutive_failures: u32,
}

/// What keeps a member out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unavailable {
    /// Its whole group is ejected.
    GroupEjected,
    /// Its gateway is ejected.
    GatewayEjected,
    /// The endpoint behind it is ejected.
    EndpointEjected,
    /// It is ejected itself.
    Ejected,
}

/// An ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EjectionExplanation {
    /// The rule that was broken.
    pub cause: EjectionCause,
    /// How long it will last if no probe ends or prolongs it.
    pub remaining: Duration,
    /// Ejections so far that were not forgiven, this one included.
    pub times: u32,
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// What would decide a pick at this moment.
    pub fn explain(&mut self, now: Instant) -> Explanation<K> {
        self.refresh(now);
        Explanation {
            panic: self.panic,
            overprovisioning: self.settings.overprovisioning,
            priorities: self.tiers.iter().map(|tier| self.explain_tier(tier, now)).collect(),
            counters: self.counters,
        }
    }

    fn explain_tier(&self, tier: &Tier, now: Instant) -> PriorityExplanation<K> {
        let order = &self.order[tier.groups.clone()];
        let shares: f64 = order.iter().map(|&group| self.groups[group].share).sum();
        let groups = order.iter().map(|&group| {
            let group = &self.groups[group];
            let load = if shares > 0.0 { tier.load * group.share / shares } else { 0.0 };
            self.explain_group(group, load, now)
        });
        PriorityExplanation { priority: tier.priority, health: tier.health, load: tier.load, groups: groups.collect() }
    }

    fn explain_group(&self, group: &GroupState, load: f64, now: Instant) -> GroupExplanation<K> {
        let gateways = group.gateways.iter().map(|(name, gateway)| GatewayExplanation {
            name: name.clone(),
            ejected: explain_ejection(&gateway.detector, now),
        });
        let mut endpoints: Vec<_> = group
            .endpoints
            .iter()
            .map(|(id, endpoint)| EndpointExplanation {
                id: id.clone(),
                ejected: explain_ejection(&endpoint.detector, now),
            })
            .collect();
        endpoints.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        let members = self.members[group.members.clone()].iter().map(|member| {
            let share = if group.usable > 0.0 { member.usable / group.usable } else { 0.0 };
            self.explain_member(group, member, load * share, now)
        });
        GroupExplanation {
            name: group.name.clone(),
            priority: group.priority,
            reach: group.reach,
            capacity_total: group.capacity_total,
            capacity_ready: group.capacity_ready,
            healthy: group.healthy,
            load,
            suspect: group.suspect,
            demoted: group.demoted,
            ejected: explain_ejection(&group.whole.detector, now),
            gateways: gateways.collect(),
            endpoints,
            members: members.collect(),
        }
    }

    fn explain_member(
        &self,
        group: &GroupState,
        member: &MemberState<K>,
        load: f64,
        now: Instant,
    ) -> MemberExplanation<K> {
        let gateway = member.gateway.map(|gateway| &group.gateways[gateway]);
        let reasons = [
            (group.whole.detector.is_out(), Unavailable::GroupEjected),
            (gateway.is_some_and(|(_, gateway)| gateway.detector.is_out()), Unavailable::GatewayEjected),
            (member.behind.as_ref().is_some_and(|endpoint| group.endpoint_out(endpoint)), Unavailable::EndpointEjected),
            (member.detector.is_out(), Unavailable::Ejected),
        ];
        MemberExplanation {
            id: member.id.clone(),
            gateway: gateway.map(|(name, _)| name.clone()),
            endpoint: member.behind.clone(),
            weight: member.weight,
            load,
            unavailable: reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason)),
            ejected: explain_ejection(&member.detector, now),
            slow_start: ramp(member.detector.returned().max(member.joined), now, &self.settings),
            in_flight: member.in_flight,
            latency: member.latency.at(now, self.settings.latency_decay).map(Duration::from_secs_f64),
            consecutive_failures: member.detector.consecutive(),
        }
    }
}

fn explain_ejection(detector: &Detector, now: Instant) -> Option<EjectionExplanation> {
    detector.ejection().map(|ejection| EjectionExplanation {
        cause: ejection.cause,
        remaining: ejection.until.saturating_duration_since(now),
        times: detector.times(),
    })
}
