//! Endpoints, gateways and a sidecar's way of using the balancer, in simulated time.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use balance::{Balancer, EndpointId, Outcome, PickContext, Plan, Settings};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{cluster, zone};

/// Local zones and their endpoints; the keys are zone · 100 + endpoint.
const ZONES: [u32; 2] = [3, 2];
/// Keys of the remote cluster's paths: from 1000, by gateway and slot.
const REMOTE: u32 = 1000;
const GATEWAYS: u32 = 2;
const SLOTS: u32 = 4;
const REMOTE_ENDPOINTS: u32 = 6;
/// A second remote cluster that never fails.
const REFUGE: u32 = 2000;

/// Requests come at this mean distance.
const ARRIVALS: Duration = Duration::from_millis(20);
/// An attempt without a connection is raced by another after this.
const RACE: Duration = Duration::from_millis(250);
/// A silent probe is given up after this.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
const FAULT: Duration = Duration::from_secs(3);
const HEAL: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(18);

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) target: Target,
    pub(super) condition: Condition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Endpoint(u32),
    Zone(u32),
    Gateway(u32),
    Cluster,
    /// The one behind a slot.
    RemoteEndpoint(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Healthy,
    /// Connections are refused.
    Refusing,
    /// Packets are dropped.
    Silent,
    /// Every response is a 503.
    Broken,
}

/// What users and operators would see.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) requests: u32,
    /// Requests that no attempt answered.
    pub(super) failed: u32,
    /// First attempts that met the fault.
    pub(super) hit: u32,
    /// First attempts outside the home priority while the fault lasted.
    pub(super) spilled: u32,
    /// From the fault to the last first attempt that met it.
    pub(super) moved: Duration,
    /// From the healing until the target had its full share of load again.
    pub(super) home: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    /// An attempt ends: the member, what it tried before, how and who answered.
    Attempt {
        started: Duration,
        member: u32,
        tried: Vec<u32>,
        answered: Option<(u32, bool)>,
    },
    Probe {
        member: u32,
        ok: bool,
    },
}

pub(super) struct World {
    balancer: Balancer<u32>,
    rng: Xoshiro256PlusPlus,
    start: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    fault: Option<Fault>,
    report: Report,
    probing: Vec<u32>,
    /// When the load at home was looked at last.
    watched: Duration,
}

impl World {
    /// Two local zones, then a remote cluster.
    pub(super) fn new(seed: u64) -> Self {
        let locals = (0..).zip(ZONES).map(|(index, endpoints)| {
            let members: Vec<u32> = (0..endpoints).map(|endpoint| index * 100 + endpoint).collect();
            zone(index, &format!("home/zone-{index}"), &members)
        });
        let mut groups: Vec<_> = locals.collect();
        groups.push(Self::remote(2));
        Self::with(groups, seed)
    }

    /// No local endpoint: a remote cluster, then another.
    pub(super) fn remote_only(seed: u64) -> Self {
        let refuge = cluster(1, "refuge", 4, &[REFUGE, REFUGE + 10]);
        Self::with(vec![Self::remote(0), refuge], seed)
    }

    fn remote(priority: u32) -> balance::Group<u32> {
        let paths: Vec<u32> = (0..GATEWAYS * 10).filter(|path| path % 10 < SLOTS).map(|path| REMOTE + path).collect();
        cluster(priority, "remote", REMOTE_ENDPOINTS, &paths)
    }

    fn with(groups: Vec<balance::Group<u32>>, seed: u64) -> Self {
        let start = Instant::now();
        let mut balancer = Balancer::new(Settings::default(), seed);
        balancer.update(Plan { groups }, start);
        Self {
            balancer,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            start,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            fault: None,
            report: Report::default(),
            probing: Vec::new(),
            watched: Duration::ZERO,
        }
    }

    /// Runs it all; the fault comes after some seconds and goes again.
    pub(super) fn run(mut self, fault: Fault) -> Report {
        self.fault = Some(fault);
        self.at(Duration::ZERO, Event::Arrival);
        let healthy = self.home_load();
        self.report.home = Duration::MAX;
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            if at > END {
                break;
            }
            self.now = at;
            self.probe();
            match event {
                Event::Arrival => self.arrive(),
                Event::Attempt { started, member, tried, answered } => self.end(started, member, tried, answered),
                Event::Probe { member, ok } => {
                    self.probing.retain(|&probing| probing != member);
                    self.balancer.probed(&member, ok, self.start + self.now);
                }
            }
            self.watch_home(healthy);
        }
        self.report
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn arrive(&mut self) {
        let gap = ARRIVALS.mul_f64(-(1.0 - self.rng.random::<f64>()).ln());
        self.at(self.now + gap, Event::Arrival);
        self.report.requests += 1;
        self.attempt(Vec::new());
    }

    /// One attempt of a request that has tried some members already.
    fn attempt(&mut self, tried: Vec<u32>) {
        let now = self.start + self.now;
        let context = PickContext { exclude: &tried, avoid_gateways: true, affinity: None };
        let Some(pick) = self.balancer.pick(now, &mut self.rng, &context) else {
            self.report.failed += 1;
            return;
        };
        self.balancer.started(&pick.member);
        let (condition, endpoint) = self.condition(pick.member);
        if tried.is_empty() && self.during_fault() {
            self.report.spilled += u32::from(pick.priority > 0);
            if condition != Condition::Healthy {
                self.report.hit += 1;
                self.report.moved = self.now - FAULT;
            }
        }
        let latency = Duration::from_micros(2_000 + self.rng.random_range(0..2_000))
            + if self.rng.random_ratio(1, 50) { Duration::from_millis(20) } else { Duration::ZERO };
        let (after, answered) = match condition {
            Condition::Healthy => (latency, Some((endpoint, true))),
            Condition::Broken => (latency, Some((endpoint, false))),
            Condition::Refusing => (Duration::from_micros(300), None),
            Condition::Silent => (RACE, None),
        };
        self.at(self.now + after, Event::Attempt { started: self.now, member: pick.member, tried, answered });
    }

    /// An attempt ends; without a good answer, the request goes on elsewhere.
    fn end(&mut self, started: Duration, member: u32, mut tried: Vec<u32>, answered: Option<(u32, bool)>) {
        let outcome = match answered {
            Some((_, true)) => Outcome::Success,
            Some((_, false)) => Outcome::GatewayError,
            None => Outcome::ConnectFailure,
        };
        let endpoint = answered.map(|(endpoint, _)| EndpointId::new(&endpoint.to_string()).unwrap());
        self.balancer.finished(&member, outcome, endpoint.as_ref(), self.now - started, self.start + self.now);
        if outcome != Outcome::Success {
            tried.push(member);
            self.attempt(tried);
        }
    }

    /// Sends what probes are due, as a sidecar's timer would.
    fn probe(&mut self) {
        let now = self.start + self.now;
        if self.balancer.next_probe().is_none_or(|at| now < at) {
            return;
        }
        for member in self.balancer.probes_due(now) {
            if self.probing.contains(&member) {
                continue;
            }
            self.probing.push(member);
            let (after, ok) = match self.condition(member).0 {
                Condition::Healthy | Condition::Broken => (Duration::from_millis(3), true),
                Condition::Refusing => (Duration::from_micros(300), false),
                Condition::Silent => (PROBE_DEADLINE, false),
            };
            self.at(self.now + after, Event::Probe { member, ok });
        }
    }

    fn during_fault(&self) -> bool {
        self.now >= FAULT && self.now < HEAL
    }

    /// How a member is now, and the endpoint it leads to.
    fn condition(&self, member: u32) -> (Condition, u32) {
        let remote = (REMOTE..REFUGE).contains(&member);
        // Slots find their endpoint by hash, the same through every gateway.
        let endpoint = if remote { behind(member % 10) } else { member };
        let Some(fault) = self.fault.filter(|_| self.during_fault()) else { return (Condition::Healthy, endpoint) };
        let met = match fault.target {
            Target::Endpoint(index) => member == index,
            Target::Zone(zone) => !remote && member < REMOTE && member / 100 == zone,
            Target::Gateway(gateway) => remote && (member - REMOTE) / 10 == gateway,
            Target::Cluster => remote,
            Target::RemoteEndpoint(slot) => remote && endpoint == behind(slot),
        };
        (if met { fault.condition } else { Condition::Healthy }, endpoint)
    }

    /// How much of the home priority's load its least served member has, as if all had that.
    fn home_load(&mut self) -> f64 {
        let explanation = self.balancer.explain(self.start + self.now);
        let home = explanation.priorities.iter().find(|priority| priority.priority == Some(0));
        let groups = home.map(|priority| &priority.groups[..]).unwrap_or_default();
        groups
            .iter()
            .flat_map(|group| group.members.iter().map(|member| member.load * group.members.len() as f64))
            .fold(f64::INFINITY, f64::min)
    }

    /// Notes when load is as it was before the fault, and stays so.
    fn watch_home(&mut self, healthy: f64) {
        if self.now < HEAL || self.now < self.watched + Duration::from_millis(100) {
            return;
        }
        self.watched = self.now;
        let back = (self.home_load() - healthy).abs() < 1e-6;
        match (back, self.report.home == Duration::MAX) {
            (true, true) => self.report.home = self.now - HEAL,
            (false, false) => self.report.home = Duration::MAX,
            _ => {}
        }
    }
}

/// The remote endpoint that a slot leads to.
const fn behind(slot: u32) -> u32 {
    REMOTE + slot * 7 % REMOTE_ENDPOINTS
}
