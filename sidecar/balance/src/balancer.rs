//! The balancer: what it is told.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
    time::{Duration, Instant},
};

use crate::{
    assess::Tier,
    outcome::{Outcome, Verdict},
    plan::{EndpointId, GatewayName, Group, GroupName, Plan, Reach},
    random::Jitter,
    settings::Settings,
    state::{Aggregate, Culprit, Doubt, GroupState, MemberState, Others},
};

/// How long a member that failed once looks dearer than its peers.
const DOUBT: Duration = Duration::from_secs(1);

/// Decides where the requests of one service go. See the crate's documentation for its place.
///
/// `K` names a member: an endpoint's address, or a session's path. Cloning it should be cheap.
#[derive(Debug, Clone)]
pub struct Balancer<K> {
    pub(crate) settings: Settings,
    pub(crate) jitter: Jitter,
    pub(crate) counters: Counters,
    pub(crate) groups: Vec<GroupState>,
    /// Those of one group stand together.
    pub(crate) members: Vec<MemberState<K>>,
    pub(crate) index: HashMap<K, usize>,

    /// Indices of groups in order of use.
    pub(crate) order: Vec<usize>,
    pub(crate) tiers: Vec<Tier>,
    /// No group anywhere is healthy.
    pub(crate) panic: bool,
    /// Something happened since the last assessment.
    pub(crate) stale: bool,
    /// When the assessment becomes stale by itself.
    pub(crate) assess_again: Option<Instant>,
}

/// What happened since the balancer was made: the caller's metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Picks that named a member.
    pub picks: u64,
    /// Of these, in panic mode.
    pub panic_picks: u64,
    /// Of these, an ejected member because the request had tried all others.
    pub last_resort_picks: u64,
    /// Ejections of single members.
    pub member_ejections: u64,
    /// Ejections of gateways with all their paths.
    pub gateway_ejections: u64,
    /// Ejections of real endpoints behind gateways.
    pub endpoint_ejections: u64,
    /// Ejections of whole groups.
    pub group_ejections: u64,
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// A balancer without a plan. The seed should differ from proxy to proxy: it spreads their ejections' lengths.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            jitter: Jitter::new(seed),
            counters: Counters::default(),
            groups: Vec::new(),
            members: Vec::new(),
            index: HashMap::new(),
            order: Vec::new(),
            tiers: Vec::new(),
            panic: false,
            stale: false,
            assess_again: None,
        }
    }

    /// Replaces the settings; statistics stay.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
        self.stale = true;
    }

    /// Replaces the plan. Members, gateways, endpoints and groups that stay keep their statistics and ejections; those
    /// that left are forgotten. A member that is new in a group that was in use starts slowly.
    pub fn update(&mut self, plan: Plan<K>, now: Instant) {
        let mut known: HashMap<K, MemberState<K>> =
            std::mem::take(&mut self.members).into_iter().map(|member| (member.id.clone(), member)).collect();
        let mut groups: HashMap<GroupName, GroupState> =
            std::mem::take(&mut self.groups).into_iter().map(|group| (group.name.clone(), group)).collect();
        self.index.clear();
        for group in plan.groups {
            let before = groups.remove(&group.name);
            if self.groups.iter().any(|other| other.name == group.name) {
                continue;
            }
            self.adopt(group, before, &mut known, now);
        }
        self.order = (0..self.groups.len()).collect();
        self.stale = true;
        self.refresh(now);
    }

    /// Adds a group of the plan, with what was known of it and its members.
    fn adopt(
        &mut self,
        plan: Group<K>,
        before: Option<GroupState>,
        known: &mut HashMap<K, MemberState<K>>,
        now: Instant,
    ) {
        let in_use = before.as_ref().is_some_and(|before| !before.members.is_empty());
        let index = self.groups.len();
        let first = self.members.len();
        let mut group = group_state(&plan, before);
        let mut left: HashMap<_, _> = std::mem::take(&mut group.gateways).into_iter().collect();
        let unweighted = plan.members.iter().all(|member| member.weight == 0);
        for member in plan.members {
            if self.index.contains_key(&member.id) {
                continue;
            }
            let gateway = member.gateway.map(|name| {
                group.gateways.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                    let aggregate = left.remove(&name).unwrap_or_default();
                    group.gateways.push((name, aggregate));
                    group.gateways.len() - 1
                })
            });
            let state = known.remove(&member.id).unwrap_or_else(|| member_state(&member.id, in_use.then_some(now)));
            self.index.insert(member.id, self.members.len());
            let weight = if unweighted { 1.0 } else { f64::from(member.weight) };
            self.members.push(MemberState { weight, group: index, gateway, ..state });
        }
        group.members = first..self.members.len();
        let behind: Vec<_> =
            self.members[group.members.clone()].iter().filter_map(|member| member.behind.clone()).collect();
        group.endpoints.retain(|id, endpoint| endpoint.detector.is_out() || behind.contains(id));
        self.groups.push(group);
    }

    /// An attempt at a member begins.
    pub fn started(&mut self, member: &K) {
        if let Some(&member) = self.index.get(member) {
            let in_flight = &mut self.members[member].in_flight;
            *in_flight = in_flight.saturating_add(1);
        }
    }

    /// An attempt at a member ended.
    ///
    /// `endpoint` is who answered behind the gateway, if anybody named itself; `latency` runs from the attempt's start to
    /// its first response byte, or to its end. A member that has left the plan is ignored.
    pub fn finished(
        &mut self,
        member: &K,
        outcome: Outcome,
        endpoint: Option<&EndpointId>,
        latency: Duration,
        now: Instant,
    ) {
        let Some(&index) = self.index.get(member) else { return };
        let member = &mut self.members[index];
        member.in_flight = member.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Success => member.latency.observe(latency, now, self.settings.latency_decay),
            Outcome::Abandoned => {}
            _ => member.latency.observe_peak(latency, now, self.settings.latency_decay),
        }
        if let Some(endpoint) = endpoint
            && self.groups[member.group].reach == Reach::Gateways
            && member.behind.as_ref() != Some(endpoint)
        {
            member.behind = Some(endpoint.clone());
            self.stale = true;
        }
        self.record(index, outcome.verdict(), endpoint, now);
    }

    /// Whether a path could as well lead somewhere else: another one leads to the same real endpoint, and not every endpoint
    /// of the group has one.
    pub fn is_redundant(&self, member: &K) -> bool {
        let Some(&index) = self.index.get(member) else { return false };
        let Some(behind) = &self.members[index].behind else { return false };
        let group = &self.groups[self.members[index].group];
        let members = &self.members[group.members.clone()];
        let before = &self.members[group.members.start..index];
        let first = |member: &MemberState<K>| member.behind.as_ref() == Some(behind);
        let distinct: HashSet<&EndpointId> = members.iter().filter_map(|member| member.behind.as_ref()).collect();
        before.iter().any(first) && distinct.len() < usize::try_from(group.capacity_ready).unwrap_or(usize::MAX)
    }

    /// What has happened so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether no group anywhere is healthy, so that all members are used.
    pub fn panicking(&mut self, now: Instant) -> bool {
        self.refresh(now);
        self.panic
    }

    /// Lets everything that an attempt went through learn how it ended: narrow scopes first.
    pub(crate) fn record(&mut self, index: usize, verdict: Verdict, endpoint: Option<&EndpointId>, now: Instant) {
        match verdict {
            Verdict::None => {}
            Verdict::Healthy => self.record_success(index, endpoint, now),
            Verdict::TransportFailure | Verdict::ResponseFailure => self.record_failure(index, verdict, endpoint, now),
        }
    }

    fn record_success(&mut self, index: usize, endpoint: Option<&EndpointId>, now: Instant) {
        let member = &mut self.members[index];
        let group = &mut self.groups[member.group];
        member.detector.succeeded(now);
        member.doubt = None;
        if let Some(endpoint) = endpoint
            && group.reach == Reach::Gateways
        {
            group.endpoint(endpoint, now).detector.succeeded(now);
        }
        if let Some(gateway) = member.gateway {
            group.gateways[gateway].1.succeeded(now);
        }
        group.whole.succeeded(now);
        // A suspect group that answers again need not wait for the next look at it.
        self.stale |= group.demoted;
    }

    fn record_failure(&mut self, index: usize, verdict: Verdict, endpoint: Option<&EndpointId>, now: Instant) {
        let settings = &self.settings;
        let member = &mut self.members[index];
        let group = &mut self.groups[member.group];
        let probe = member.doubt.and_then(|doubt| doubt.next_probe).unwrap_or(now);
        let by_transport = verdict == Verdict::TransportFailure;
        member.doubt = Some(Doubt { until: now + DOUBT, next_probe: by_transport.then_some(probe) });
        if let Some(cause) = member.detector.failed(now, settings) {
            member.detector.eject(cause, verdict, now, settings, self.jitter.next());
            self.counters.member_ejections += 1;
            self.stale = true;
        }
        if let Some(endpoint) = endpoint
            && group.reach == Reach::Gateways
        {
            let detector = &mut group.endpoint(endpoint, now).detector;
            if let Some(cause) = detector.failed(now, settings) {
                detector.eject(cause, verdict, now, settings, self.jitter.next());
                self.counters.endpoint_ejections += 1;
                self.stale = true;
            }
        }
        let endpoint = endpoint.or(member.behind.as_ref()).map_or(member.seed, hash);
        let culprit = Culprit { endpoint, gateway: member.gateway };
        let members = &mut self.members[group.members.clone()];
        let endpoints = group.capacity_ready > 1 && members.len() > 1;
        if let Some(gateway) = culprit.gateway {
            let aggregate = &mut group.gateways[gateway].1;
            let others = Others { endpoints, gateways: false };
            if verdict == Verdict::ResponseFailure {
                aggregate.succeeded(now);
            } else if let Some(cause) = aggregate.failed(culprit, others, now, settings, || {
                most_failing(members, |member| member.gateway == Some(gateway), now, settings)
            }) {
                aggregate.detector.eject(cause, verdict, now, settings, self.jitter.next());
                self.counters.gateway_ejections += 1;
                self.stale = true;
            }
        }
        let others = Others { endpoints, gateways: group.gateways.len() > 1 };
        let gateways = &mut group.gateways;
        let cause = group.whole.failed(culprit, others, now, settings, || {
            most_failing(members, |_| true, now, settings) && most_gateways_failing(gateways, now, settings)
        });
        if let Some(cause) = cause
            && group.reach == Reach::Gateways
        {
            group.whole.detector.eject(cause, verdict, now, settings, self.jitter.next());
            self.counters.group_ejections += 1;
            self.stale = true;
        }
        self.stale |= group.suspect;
    }
}

/// Whether more than half of the members in a scope that were used in the last 10 s mostly failed. Those ejected by
/// themselves are not counted: what they did is explained.
fn most_failing<K>(
    members: &mut [MemberState<K>],
    scope: impl Fn(&MemberState<K>) -> bool,
    now: Instant,
    settings: &Settings,
) -> bool {
    let (mut used, mut failing) = (0, 0);
    for member in members.iter_mut().filter(|member| scope(member) && !member.detector.is_out()) {
        if let Some(fails) = member.detector.recently_failing(now, settings) {
            used += 1;
            failing += usize::from(fails);
        }
    }
    used == 0 || failing * 2 > used
}

/// Whether more than half of the gateways that were used in the last 10 s mostly failed, or there is but one.
fn most_gateways_failing(gateways: &mut [(GatewayName, Aggregate)], now: Instant, settings: &Settings) -> bool {
    let used: Vec<bool> =
        gateways.iter_mut().filter_map(|(_, gateway)| gateway.detector.recently_failing(now, settings)).collect();
    gateways.len() < 2 || used.iter().filter(|&&fails| fails).count() * 2 > used.len()
}

fn group_state<K>(plan: &Group<K>, before: Option<GroupState>) -> GroupState {
    let (whole, gateways, endpoints) = match before.filter(|before| before.reach == plan.reach) {
        Some(before) => (before.whole, before.gateways, before.endpoints),
        None => (Aggregate::default(), Vec::new(), HashMap::new()),
    };
    GroupState {
        name: plan.name.clone(),
        priority: plan.priority,
        reach: plan.reach,
        capacity_total: plan.capacity_total,
        capacity_ready: plan.capacity_ready,
        fixed: plan.share.map(f64::from),
        suspect: plan.suspect,
        members: 0..0,
        whole,
        gateways,
        endpoints,
        suspect_probe: None,
        probe_turn: 0,
        demoted: false,
        healthy: 0.0,
        share: 0.0,
        cumulative: 0.0,
        usable: 0.0,
        usable_members: 0,
    }
}

fn member_state<K: Clone + Hash>(id: &K, joined: Option<Instant>) -> MemberState<K> {
    MemberState {
        seed: hash(id),
        id: id.clone(),
        weight: 1.0,
        group: 0,
        gateway: None,
        behind: None,
        detector: crate::ejection::Detector::default(),
        latency: crate::latency::PeakEwma::default(),
        in_flight: 0,
        joined,
        doubt: None,
        available: true,
        portion: 1.0,
        usable: 0.0,
        cumulative: 0.0,
        steady: 0.0,
    }
}

/// A hash that is the same in every process of one build, so that affinity outlives a restart.
fn hash(value: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}
