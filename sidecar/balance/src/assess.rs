//! From what is known to what may be used: availability, health, spill and the weights that a pick draws from.
//!
//! This runs when something changed or a time came, not on every pick, and reuses its buffers.

use std::{
    hash::Hash,
    ops::Range,
    time::{Duration, Instant},
};

use crate::{
    balancer::Balancer,
    ejection::{Detector, ramp},
    plan::Reach,
    settings::Settings,
    spill,
    state::{GroupState, MemberState},
};

/// How often slow start and the windows of suspect groups are looked at again.
const STEP: Duration = Duration::from_millis(100);

/// The groups of one priority, in order of use.
#[derive(Debug, Clone)]
pub(crate) struct Tier {
    /// The plan's priority; none for the groups that are suspect and failing, after all others.
    pub(crate) priority: Option<u32>,
    /// Range of `Balancer::order`.
    pub(crate) groups: Range<usize>,
    pub(crate) health: f64,
    pub(crate) load: f64,
    /// Sum of the loads up to and with this tier.
    pub(crate) cumulative: f64,
}

/// When an assessment has to be made again though nothing happened.
struct Until(Option<Instant>);

impl Until {
    fn at(&mut self, at: Instant) {
        self.0 = Some(self.0.map_or(at, |until| until.min(at)));
    }

    /// Lets the target back in if its time is over, or notes when that will be.
    fn expire(&mut self, detector: &mut Detector, now: Instant) {
        detector.expire(now);
        if let Some(ejection) = detector.ejection() {
            self.at(ejection.until);
        }
    }

    fn ramp(&mut self, since: Option<Instant>, now: Instant, settings: &Settings) -> f64 {
        let share = ramp(since, now, settings);
        if share < 1.0 {
            self.at(now + STEP);
        }
        share
    }
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// Makes the assessment current.
    pub(crate) fn refresh(&mut self, now: Instant) {
        if !self.stale && self.assess_again.is_none_or(|at| now < at) {
            return;
        }
        let mut until = Until(None);
        for group in &mut self.groups {
            let members = &mut self.members[group.members.clone()];
            expire(group, members, now, &mut until);
            group.demoted = group.suspect && is_failing(&mut group.whole.detector, now, &self.settings);
            if group.suspect {
                until.at(now + STEP);
            }
            if !group.suspect {
                group.suspect_probe = None;
            } else if group.suspect_probe.is_none() {
                group.suspect_probe = Some(now);
            }
            assess_group(group, members, now, &self.settings, &mut until);
        }
        self.arrange();
        self.stale = false;
        self.assess_again = until.0;
    }

    /// Puts groups in order, works out the load of each priority, and the weights within.
    fn arrange(&mut self) {
        let groups = &self.groups;
        self.order.sort_unstable_by_key(|&group| (groups[group].demoted, groups[group].priority, group));
        self.tiers.clear();
        for position in 0..self.order.len() {
            let group = &self.groups[self.order[position]];
            let priority = (!group.demoted).then_some(group.priority);
            match self.tiers.last_mut() {
                Some(tier) if tier.priority == priority => tier.groups.end = position + 1,
                _ => self.tiers.push(Tier {
                    priority,
                    groups: position..position + 1,
                    health: 0.0,
                    load: 0.0,
                    cumulative: 0.0,
                }),
            }
        }
        for tier in &mut self.tiers {
            let of = |what: fn(&GroupState) -> f64| -> f64 {
                self.order[tier.groups.clone()].iter().map(|&group| what(&self.groups[group])).sum()
            };
            let total = of(|group| f64::from(group.capacity_total.max(group.capacity_ready)));
            tier.health = spill::health(self.settings.overprovisioning, of(|group| group.healthy), total);
        }
        let bearable = spill::bearable(self.tiers.iter().map(|tier| &tier.health));
        self.panic = bearable <= 0.0;
        if self.panic {
            self.arrange_panic();
        } else {
            let mut left = 1.0;
            for tier in &mut self.tiers {
                tier.load = spill::take(tier.health, bearable, left);
                left -= tier.load;
            }
        }
        self.accumulate();
    }

    /// Nothing is healthy anywhere: every member is used, by the capacity of its group.
    fn arrange_panic(&mut self) {
        for group in &mut self.groups {
            let members = &mut self.members[group.members.clone()];
            let capacity = group.fixed.unwrap_or(f64::from(group.capacity_ready.max(group.capacity_total)));
            group.share = if members.is_empty() { 0.0 } else { capacity.max(1.0) };
            let weights: f64 = members.iter().map(|member| member.weight).sum();
            for member in members {
                member.usable = member.weight;
                member.steady = group.share * member.weight / weights;
            }
        }
        let all: f64 = self.groups.iter().map(|group| group.share).sum();
        for tier in &mut self.tiers {
            let share: f64 = self.order[tier.groups.clone()].iter().map(|&group| self.groups[group].share).sum();
            tier.load = if all > 0.0 { share / all } else { 0.0 };
        }
    }

    /// The running sums that a pick searches.
    fn accumulate(&mut self) {
        let mut loads = 0.0;
        for tier in &mut self.tiers {
            loads += tier.load;
            tier.cumulative = loads;
            let mut shares = 0.0;
            for &group in &self.order[tier.groups.clone()] {
                shares += self.groups[group].share;
                self.groups[group].cumulative = shares;
            }
        }
        for group in &mut self.groups {
            let mut usable = 0.0;
            group.usable_members = 0;
            for member in &mut self.members[group.members.clone()] {
                usable += member.usable;
                member.cumulative = usable;
                group.usable_members += usize::from(member.usable > 0.0);
            }
            group.usable = usable;
        }
    }
}

/// Lets back in whatever has been out long enough.
fn expire<K>(group: &mut GroupState, members: &mut [MemberState<K>], now: Instant, until: &mut Until) {
    until.expire(&mut group.whole.detector, now);
    for (_, gateway) in &mut group.gateways {
        until.expire(&mut gateway.detector, now);
    }
    for endpoint in group.endpoints.values_mut() {
        until.expire(&mut endpoint.detector, now);
    }
    for member in members {
        until.expire(&mut member.detector, now);
    }
}

/// Whether a suspect group fails as well.
fn is_failing(whole: &mut Detector, now: Instant, settings: &Settings) -> bool {
    whole.is_out()
        || whole.on_trial(now)
        || whole.consecutive() >= settings.suspect_failures && whole.recently_failing(now, settings).is_some()
        || whole.below_success_rate(now, settings)
}

/// Paths that lead to one real endpoint share the weight of one: an endpoint that several slots happen to lead to would
/// otherwise have a multiple of the load.
fn share_endpoints<K>(reach: Reach, members: &mut [MemberState<K>]) {
    for index in 0..members.len() {
        let behind = members[index].behind.as_ref().filter(|_| reach == Reach::Gateways);
        let sharing = behind.map_or(1, |endpoint| {
            let same = |member: &&MemberState<K>| member.available && member.behind.as_ref() == Some(endpoint);
            members.iter().filter(same).count().max(1)
        });
        members[index].portion = 1.0 / sharing as f64;
    }
}

/// Availability and weights of the members, and what of the group's capacity is healthy.
fn assess_group<K>(
    group: &mut GroupState,
    members: &mut [MemberState<K>],
    now: Instant,
    settings: &Settings,
    until: &mut Until,
) {
    for member in members.iter_mut() {
        let gateway = member.gateway.map(|gateway| &group.gateways[gateway].1.detector);
        member.available = !member.detector.is_out()
            && !group.whole.detector.is_out()
            && gateway.is_none_or(|gateway| !gateway.is_out())
            && member.behind.as_ref().is_none_or(|endpoint| !group.endpoint_out(endpoint));
    }
    share_endpoints(group.reach, members);
    // All weight; what is available of it; that with slow start after ejections; that with all slow start.
    let (mut weights, mut available, mut recovered, mut usable) = (0.0, 0.0, 0.0, 0.0);
    for member in members.iter_mut() {
        let gateway = member.gateway.map(|gateway| &group.gateways[gateway].1.detector);
        weights += member.weight;
        member.usable = 0.0;
        let weight = member.weight * member.portion;
        if member.available {
            let returned = member.detector.returned().max(gateway.and_then(Detector::returned));
            let back = until.ramp(returned, now, settings);
            member.usable = weight * back.min(until.ramp(member.joined, now, settings));
            available += weight;
            recovered += weight * back;
            usable += member.usable;
        }
    }
    let ready = f64::from(group.capacity_ready);
    let (steady, healthy) = match group.reach {
        Reach::Endpoints if weights > 0.0 => (ready * available / weights, ready * recovered / weights),
        Reach::Gateways if available > 0.0 => {
            let out = group.endpoints.values().filter(|endpoint| endpoint.detector.is_out()).count() as f64;
            let left = (ready - out).max(ready.min(1.0));
            (left, left * until.ramp(group.whole.detector.returned(), now, settings))
        }
        _ => (0.0, 0.0),
    };
    group.healthy = healthy;
    group.share = match group.reach {
        Reach::Endpoints if weights > 0.0 => ready * usable / weights,
        Reach::Endpoints => 0.0,
        Reach::Gateways => healthy,
    };
    let fixed = |share: f64| group.fixed.filter(|_| share > 0.0).unwrap_or(share);
    let steady = fixed(steady);
    group.share = fixed(group.share);
    for member in members {
        member.steady =
            if member.available && available > 0.0 { steady * member.weight * member.portion / available } else { 0.0 };
    }
}
