//! The balancer as its callers see it: scenarios, properties, and whole services simulated under faults.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod properties;
mod scenarios;
mod simulation;
mod suppositions;

use std::time::{Duration, Instant};

use balance::{Balancer, Group, Member, Outcome, Pick, PickContext, Plan, Reach, Settings};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

/// A group of endpoints: its priority, their keys, all of them ready.
fn zone(priority: u32, name: &str, members: &[u32]) -> Group<u32> {
    let capacity = u32::try_from(members.len()).unwrap();
    Group {
        priority,
        name: name.into(),
        reach: Reach::Endpoints,
        capacity_total: capacity,
        capacity_ready: capacity,
        share: None,
        suspect: false,
        members: members.iter().map(|&member| Member::endpoint(member)).collect(),
    }
}

/// A remote cluster: its paths' keys, each tenth through a gateway of its own (10–19 through `gateway-1`).
fn cluster(priority: u32, name: &str, capacity: u32, paths: &[u32]) -> Group<u32> {
    let path = |&path: &u32| Member::path(path, format!("gateway-{}", path / 10).into());
    Group {
        priority,
        name: name.into(),
        reach: Reach::Gateways,
        capacity_total: capacity,
        capacity_ready: capacity,
        share: None,
        suspect: false,
        members: paths.iter().map(path).collect(),
    }
}

/// A balancer, its clock and its chance.
struct Bench {
    balancer: Balancer<u32>,
    now: Instant,
    rng: Xoshiro256PlusPlus,
}

impl Bench {
    fn new(groups: Vec<Group<u32>>) -> Self {
        let now = Instant::now();
        let mut balancer = Balancer::new(Settings::default(), 42);
        balancer.update(Plan { groups }, now);
        Self { balancer, now, rng: Xoshiro256PlusPlus::seed_from_u64(42) }
    }

    fn pick(&mut self, exclude: &[u32]) -> Option<Pick<u32>> {
        self.balancer.pick(self.now, &mut self.rng, &PickContext { exclude, ..PickContext::default() })
    }

    /// The share of picks in each priority, over many requests that all succeed at once.
    fn shares(&mut self, priorities: usize) -> Vec<f64> {
        const PICKS: u32 = 20_000;
        let mut counts = vec![0_u32; priorities];
        for _ in 0..PICKS {
            counts[self.pick(&[]).unwrap().priority as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / f64::from(PICKS)).collect()
    }

    fn report(&mut self, member: u32, outcome: Outcome) {
        self.balancer.started(&member);
        self.balancer.finished(&member, outcome, None, Duration::from_millis(2), self.now);
    }

    fn fail(&mut self, member: u32, times: u32) {
        (0..times).for_each(|_| self.report(member, Outcome::ConnectFailure));
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }
}
