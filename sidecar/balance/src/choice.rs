//! One endpoint out.
//!
//! A first attempt draws a priority by load, a group by capacity, then two members by weight and takes the one with less
//! load (M. Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001). Load is peak EWMA latency times
//! requests in flight, as Finagle and linkerd2-proxy have it, divided by weight.
//!
//! Retries and sticky requests look at all members: each gets an exponential waiting time of rate w, and the shortest
//! wins with probability proportional to w (P. Efraimidis and P. Spirakis, *Weighted random sampling with a reservoir*,
//! 2006). With the time taken from a hash instead of chance this is weighted rendezvous hashing, where a change of one
//! member moves only the requests that it gains or loses.

use std::{hash::Hash, time::Instant};

use rand::Rng;

use crate::{
    assess::Tier,
    balancer::Balancer,
    plan::GroupName,
    random::{mix, to_unit, unit},
    state::{GroupState, MemberState},
};

/// Costs that differ by less than this factor are a tie, won by the one drawn first: small steady differences of latency would
/// otherwise leave the second best without requests.
const TIE: f64 = 1.25;

/// How much dearer a member looks that failed within the last second.
const FAILED_LATELY: f64 = 8.0;

/// Least weight in a race, so that members without capacity can still win when nothing else is there.
const LEAST_WEIGHT: f64 = 1e-9;

/// What a pick depends on besides the balancer.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a, K> {
    /// Members that this request has tried already.
    pub exclude: &'a [K],
    /// Whether the gateways of the excluded members are to be avoided too, as after a connect failure.
    pub avoid_gateways: bool,
    /// Requests with one hash go to one member while it is available.
    pub affinity: Option<u64>,
}

impl<K> Default for PickContext<'_, K> {
    fn default() -> Self {
        Self { exclude: &[], avoid_gateways: false, affinity: None }
    }
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick<K> {
    /// The member.
    pub member: K,
    /// Its group.
    pub group: GroupName,
    /// Its group's priority in the plan.
    pub priority: u32,
    /// Why there.
    pub reason: Reason,
}

/// Why a request goes where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The most preferred priority takes it.
    Preferred,
    /// The priorities before cannot bear the whole load.
    Spill,
    /// The request has tried other members already.
    Retry,
    /// All members that are not ejected have been tried by this request.
    LastResort,
    /// No group anywhere is healthy, so all members are used.
    Panic,
}

/// How far a request that has tried some members may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reluctance {
    /// Only where nothing is shared with what was tried.
    Elsewhere,
    /// Anything usable that was not tried.
    Usable,
    /// Anything that was not tried.
    Any,
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// Chooses a member for an attempt. `None` only if the request has excluded every member there is.
    ///
    /// It does not count the attempt: see [`Balancer::started`].
    pub fn pick(
        &mut self,
        now: Instant,
        rng: &mut (impl Rng + ?Sized),
        context: &PickContext<'_, K>,
    ) -> Option<Pick<K>> {
        self.refresh(now);
        let (member, reason) = self.choose(now, rng, context)?;
        self.counters.picks += 1;
        match reason {
            Reason::Panic => self.counters.panic_picks += 1,
            Reason::LastResort => self.counters.last_resort_picks += 1,
            _ => {}
        }
        let member = &self.members[member];
        let group = &self.groups[member.group];
        Some(Pick { member: member.id.clone(), group: group.name.clone(), priority: group.priority, reason })
    }

    fn choose(
        &self,
        now: Instant,
        rng: &mut (impl Rng + ?Sized),
        context: &PickContext<'_, K>,
    ) -> Option<(usize, Reason)> {
        if context.exclude.is_empty() {
            let roll = context.affinity.map_or_else(|| unit(rng), |hash| to_unit(mix(hash)));
            let tier = draw(&self.tiers, roll, |tier| tier.cumulative)?;
            let member = match context.affinity {
                None => self.two_choices(&self.tiers[tier], now, rng),
                Some(_) => self.race(&self.tiers[tier], Reluctance::Usable, now, rng, context),
            };
            if let Some(member) = member {
                return Some((member, self.reason(tier, Reluctance::Usable, context)));
            }
        }
        [Reluctance::Elsewhere, Reluctance::Usable, Reluctance::Any].into_iter().find_map(|reluctance| {
            self.tiers.iter().enumerate().find_map(|(position, tier)| {
                let member = self.race(tier, reluctance, now, rng, context)?;
                Some((member, self.reason(position, reluctance, context)))
            })
        })
    }

    fn reason(&self, tier: usize, reluctance: Reluctance, context: &PickContext<'_, K>) -> Reason {
        match reluctance {
            _ if self.panic => Reason::Panic,
            Reluctance::Any => Reason::LastResort,
            _ if !context.exclude.is_empty() => Reason::Retry,
            _ if tier == 0 => Reason::Preferred,
            _ => Reason::Spill,
        }
    }

    /// A group by its share, then the less loaded of two of its members.
    fn two_choices(&self, tier: &Tier, now: Instant, rng: &mut (impl Rng + ?Sized)) -> Option<usize> {
        let groups = &self.order[tier.groups.clone()];
        let group = &self.groups[groups[draw(groups, unit(rng), |&group| self.groups[group].cumulative)?]];
        let members = &self.members[group.members.clone()];
        let first = draw(members, unit(rng), |member| member.cumulative)?;
        if group.usable_members < 2 {
            return Some(group.members.start + first);
        }
        let second = draw_other(members, first, unit(rng)).unwrap_or(first);
        Some(self.cheaper(group.members.start + first, group.members.start + second, now))
    }

    /// The less loaded of two members, or the one drawn first if there is little between them: it was drawn by weight.
    fn cheaper(&self, first: usize, second: usize, now: Instant) -> usize {
        if first == second || self.cost(&self.members[first], now) <= TIE * self.cost(&self.members[second], now) {
            first
        } else {
            second
        }
    }

    fn cost(&self, member: &MemberState<K>, now: Instant) -> f64 {
        let settings = &self.settings;
        let floor = settings.latency_floor.as_secs_f64();
        let (in_flight, latency) = self.endpoint_load(member, now);
        let latency = match latency {
            Some(latency) => latency.max(floor),
            // Unknown and idle: worth a try. Unknown and busy: no crowd before the first answer.
            None if in_flight == 0 => floor,
            None => settings.initial_latency.as_secs_f64().max(floor),
        };
        let lately = if member.doubt.is_some_and(|doubt| now < doubt.until) { FAILED_LATELY } else { 1.0 };
        let weight = if member.usable > 0.0 { member.usable / member.portion } else { member.weight.max(LEAST_WEIGHT) };
        latency * (f64::from(in_flight) + 1.0) * lately / weight
    }

    /// Requests in flight, and the latency: of all paths to one endpoint together, since it is the endpoint that is slow.
    fn endpoint_load(&self, member: &MemberState<K>, now: Instant) -> (u32, Option<f64>) {
        let decay = self.settings.latency_decay;
        if member.portion >= 1.0 {
            return (member.in_flight, member.latency.at(now, decay));
        }
        let siblings = self.members[self.groups[member.group].members.clone()].iter();
        siblings.filter(|sibling| sibling.available && sibling.behind == member.behind).fold(
            (0, None),
            |(in_flight, latency): (u32, Option<f64>), sibling| {
                let own = sibling.latency.at(now, decay);
                (
                    in_flight + sibling.in_flight,
                    latency.map_or(own, |latency| Some(own.map_or(latency, |own| own.max(latency)))),
                )
            },
        )
    }

    /// The winner of a race by weight over all eligible members of a priority; of the first two, the less loaded, unless
    /// affinity decides.
    fn race(
        &self,
        tier: &Tier,
        reluctance: Reluctance,
        now: Instant,
        rng: &mut (impl Rng + ?Sized),
        context: &PickContext<'_, K>,
    ) -> Option<usize> {
        let mut first: Option<(f64, usize)> = None;
        let mut second: Option<(f64, usize)> = None;
        for &group in &self.order[tier.groups.clone()] {
            let group = &self.groups[group];
            for index in group.members.clone() {
                let member = &self.members[index];
                if !self.eligible(member, reluctance, context) {
                    continue;
                }
                let uniform = match context.affinity {
                    Some(hash) => to_unit(mix(hash ^ member.seed)),
                    None => unit(rng),
                };
                // 1 − u is in (0, 1], so the logarithm is finite.
                let time = -(1.0 - uniform).ln() / weight_in_race(group, member, context);
                if first.is_none_or(|(best, _)| time < best) {
                    second = first;
                    first = Some((time, index));
                } else if second.is_none_or(|(best, _)| time < best) {
                    second = Some((time, index));
                }
            }
        }
        match (first, second) {
            (Some((_, one)), Some((_, other))) if context.affinity.is_none() => Some(self.cheaper(one, other, now)),
            (first, _) => first.map(|(_, index)| index),
        }
    }

    fn eligible(&self, member: &MemberState<K>, reluctance: Reluctance, context: &PickContext<'_, K>) -> bool {
        if context.exclude.contains(&member.id) {
            return false;
        }
        match reluctance {
            Reluctance::Any => true,
            Reluctance::Usable => member.usable > 0.0,
            Reluctance::Elsewhere => {
                member.usable > 0.0
                    && !context
                        .exclude
                        .iter()
                        .filter_map(|tried| self.index.get(tried))
                        .any(|&tried| shares_fate(member, &self.members[tried], context.avoid_gateways))
            }
        }
    }
}

/// Whether a member ends where one that was tried ended.
fn shares_fate<K>(member: &MemberState<K>, tried: &MemberState<K>, gateways_too: bool) -> bool {
    member.group == tried.group
        && (member.behind.is_some() && member.behind == tried.behind
            || gateways_too && member.gateway.is_some() && member.gateway == tried.gateway)
}

/// A sticky request sees no slow start: its member would change twice.
fn weight_in_race<K>(group: &GroupState, member: &MemberState<K>, context: &PickContext<'_, K>) -> f64 {
    let weight = if context.affinity.is_none() && group.usable > 0.0 {
        group.share * member.usable / group.usable
    } else {
        member.steady
    };
    weight.max(LEAST_WEIGHT)
}

/// The first item whose running sum exceeds a share of the total; one with a part of its own.
fn draw<T>(items: &[T], unit: f64, cumulative: impl Fn(&T) -> f64) -> Option<usize> {
    let total = items.last().map(&cumulative).filter(|&total| total > 0.0)?;
    let found = items.partition_point(|item| cumulative(item) <= unit * total);
    if found < items.len() {
        return Some(found);
    }
    // Rounding took the product up to the total: the last item that adds anything.
    (0..items.len()).rev().find(|&item| item == 0 || cumulative(&items[item]) > cumulative(&items[item - 1]))
}

/// A member other than the first, by weight: the first one's part is cut out of the sums.
fn draw_other<K>(members: &[MemberState<K>], first: usize, unit: f64) -> Option<usize> {
    let own = members[first].usable;
    let before = members[first].cumulative - own;
    let total = members.last()?.cumulative - own;
    let point = unit * total;
    let point = if point < before { point } else { point + own };
    let found = members.partition_point(|member| member.cumulative <= point);
    let usable = |index: &usize| *index != first && members[*index].usable > 0.0;
    // Rounding may end on the first itself or past the end: take the nearest other.
    (found..members.len()).find(usable).or_else(|| (0..found.min(members.len())).rev().find(usable))
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn a_draw_skips_items_without_a_part() {
        let sums = [0.0, 0.25, 0.25, 1.0, 1.0];
        assert_eq!(draw(&sums, 0.0, |&sum| sum), Some(1));
        assert_eq!(draw(&sums, 0.249, |&sum| sum), Some(1));
        assert_eq!(draw(&sums, 0.25, |&sum| sum), Some(3));
        assert_eq!(draw(&sums, 0.999, |&sum| sum), Some(3));
        assert_eq!(draw(&sums, 1.0, |&sum| sum), Some(3), "rounded up");
        assert_eq!(draw(&[0.0, 0.0], 0.5, |&sum| sum), None);
        assert_eq!(draw(&[], 0.5, |sum: &f64| *sum), None);
    }
}
