//! What holds for every plan and every history.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use balance::{
    Balancer, EndpointId, Explanation, Group, MAX_ENDPOINTS_PER_GROUP, Member, Outcome, PickContext, Plan, Reach,
    Settings, spill,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

/// Something that can happen to a balancer.
#[derive(Debug, Clone)]
enum Step {
    Pick { exclude: Vec<u32>, avoid_gateways: bool, affinity: Option<u64> },
    Finish { member: u32, outcome: Outcome, endpoint: Option<u8>, millis: u64 },
    Probe { ok: bool },
    Wait { millis: u64 },
    Update { plan: Plan<u32> },
}

fn group(index: u32) -> impl Strategy<Value = Group<u32>> {
    (0_u32..4, any::<bool>(), 0_u32..8, 0_u32..8, any::<bool>(), prop::collection::vec(0_u32..4, 0..5)).prop_map(
        move |(priority, gateways, ready, unready, suspect, weights)| Group {
            priority,
            name: format!("group-{index}").into(),
            reach: if gateways { Reach::Gateways } else { Reach::Endpoints },
            capacity_total: ready + unready,
            capacity_ready: ready,
            share: None,
            suspect,
            members: (index * 10..)
                .zip(weights)
                .map(|(id, weight)| {
                    let gateway = gateways.then(|| format!("gateway-{}", id % 2).into());
                    Member { id, weight, gateway }
                })
                .collect(),
        },
    )
}

fn plan() -> impl Strategy<Value = Plan<u32>> {
    (group(0), group(1), group(2), group(3)).prop_map(|(a, b, c, d)| Plan { groups: vec![a, b, c, d] })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(Outcome::Success),
        1 => Just(Outcome::OtherResponse),
        3 => Just(Outcome::ConnectFailure),
        1 => Just(Outcome::TlsFailure),
        1 => Just(Outcome::ResetBeforeResponse),
        2 => Just(Outcome::GatewayError),
        1 => Just(Outcome::Abandoned),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (prop::collection::vec(0_u32..40, 0..6), any::<bool>(), prop::option::of(any::<u64>()))
            .prop_map(|(exclude, avoid_gateways, affinity)| Step::Pick { exclude, avoid_gateways, affinity }),
        // Runs of one outcome, so that ejections happen.
        6 => (0_u32..40, outcome(), prop::option::of(0_u8..4), 0_u64..2_000)
            .prop_map(|(member, outcome, endpoint, millis)| Step::Finish { member, outcome, endpoint, millis }),
        1 => any::<bool>().prop_map(|ok| Step::Probe { ok }),
        2 => (0_u64..20_000).prop_map(|millis| Step::Wait { millis }),
        1 => plan().prop_map(|plan| Step::Update { plan }),
    ]
}

/// Loads add up, and follow the formula from what the explanation itself says is healthy.
fn check_loads(explanation: &Explanation<u32>) {
    let priorities = &explanation.priorities;
    let members = || priorities.iter().flat_map(|priority| &priority.groups).flat_map(|group| &group.members);
    if members().next().is_none() {
        return;
    }
    let healths: Vec<f64> = priorities
        .iter()
        .map(|priority| {
            let total: u32 = priority.groups.iter().map(|group| group.capacity_total.max(group.capacity_ready)).sum();
            let healthy: f64 = priority.groups.iter().map(|group| group.healthy).sum();
            spill::health(explanation.overprovisioning, healthy, f64::from(total))
        })
        .collect();
    assert_eq!(explanation.panic, healths.iter().sum::<f64>() <= 0.0);
    if !explanation.panic {
        for (priority, expected) in priorities.iter().zip(spill::loads(&healths)) {
            assert!((priority.load - expected).abs() < 1e-9, "{explanation:#?}");
        }
        assert!(members().all(|member| member.unavailable.is_none() || member.load == 0.0), "{explanation:#?}");
    }
    for sum in [
        priorities.iter().map(|priority| priority.load).sum::<f64>(),
        priorities.iter().flat_map(|priority| &priority.groups).map(|group| group.load).sum(),
        members().map(|member| member.load).sum(),
    ] {
        assert!((sum - 1.0).abs() < 1e-9, "{sum}: {explanation:#?}");
    }
}

fn check_bounds(explanation: &Explanation<u32>, plan: &Plan<u32>) {
    let groups: Vec<_> = explanation.priorities.iter().flat_map(|priority| &priority.groups).collect();
    assert_eq!(groups.len(), plan.groups.len());
    for group in groups {
        let planned = plan.groups.iter().find(|planned| planned.name == group.name).unwrap();
        assert_eq!(group.members.len(), planned.members.len());
        assert!(group.gateways.len() <= 2 && group.endpoints.len() <= MAX_ENDPOINTS_PER_GROUP);
        assert!(!group.demoted || planned.suspect, "only the suspect are used last");
        assert!(group.ejected.is_none() || planned.reach == Reach::Gateways);
        let longest = Settings::default().max_ejection;
        assert!(group.members.iter().filter_map(|member| member.ejected).all(|ejection| ejection.remaining <= longest));
    }
}

fn run(first: Plan<u32>, steps: Vec<Step>, seed: u64) {
    let mut now = Instant::now();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut balancer = Balancer::new(Settings::default(), seed);
    balancer.update(first.clone(), now);
    let mut plan = first;
    for step in steps {
        match step {
            Step::Pick { exclude, avoid_gateways, affinity } => {
                let context = PickContext { exclude: &exclude, avoid_gateways, affinity };
                let pick = balancer.pick(now, &mut rng, &context);
                let left = plan.groups.iter().flat_map(|group| &group.members).any(|m| !exclude.contains(&m.id));
                assert_eq!(pick.is_some(), left, "exactly when a member is left");
                assert!(pick.is_none_or(|pick| !exclude.contains(&pick.member)));
            }
            Step::Finish { member, outcome, endpoint, millis } => {
                let endpoint = endpoint.map(|endpoint| EndpointId::new(&format!("pod-{endpoint}")).unwrap());
                for _ in 0..5 {
                    balancer.started(&member);
                    balancer.finished(&member, outcome, endpoint.as_ref(), Duration::from_millis(millis), now);
                }
            }
            Step::Probe { ok } => {
                let due = balancer.probes_due(now);
                assert!(balancer.next_probe().is_none_or(|next| next > now), "a timer at next_probe never spins");
                due.iter().for_each(|member| balancer.probed(member, ok, now));
            }
            Step::Wait { millis } => now += Duration::from_millis(millis),
            Step::Update { plan: new } => {
                balancer.update(new.clone(), now);
                plan = new;
            }
        }
        let explanation = balancer.explain(now);
        check_loads(&explanation);
        check_bounds(&explanation, &plan);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn invariants_hold_after_any_history(plan in plan(), steps in prop::collection::vec(step(), 0..60), seed: u64) {
        run(plan, steps, seed);
    }

    #[test]
    fn no_healthy_member_starves(capacities in prop::collection::vec((1_u32..6, 1_u32..6), 1..5), seed: u64) {
        let mut now = Instant::now();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let groups: Vec<_> = (0..).zip(&capacities).map(|(index, &(members, capacity))| Group {
            priority: 0,
            name: format!("group-{index}").into(),
            reach: Reach::Gateways,
            capacity_total: capacity,
            capacity_ready: capacity,
            share: None,
        suspect: false,
            members: (0..members).map(|member| Member::endpoint(index * 10 + member)).collect(),
        }).collect();
        let mut balancer = Balancer::new(Settings::default(), seed);
        balancer.update(Plan { groups }, now);
        let mut counts: HashMap<u32, u32> = HashMap::new();
        const PICKS: u32 = 4_000;
        for round in 0..PICKS {
            now += Duration::from_millis(5);
            let pick = balancer.pick(now, &mut rng, &PickContext::default()).unwrap();
            balancer.started(&pick.member);
            // Latencies of 2 to 4 ms, with a tail: a member that met it twice has to wait, but gets its turn.
            let micros = 2_000 + u64::from(round) * 7_919 % 2_000 + if round % 97 == 0 { 20_000 } else { 0 };
            balancer.finished(&pick.member, Outcome::Success, None, Duration::from_micros(micros), now);
            *counts.entry(pick.member).or_default() += 1;
        }
        let capacity: u32 = capacities.iter().map(|(_, capacity)| capacity).sum();
        for (index, &(members, ready)) in (0..).zip(&capacities) {
            for member in 0..members {
                let fair = f64::from(PICKS) * f64::from(ready) / f64::from(capacity) / f64::from(members);
                let got = f64::from(counts.get(&(index * 10 + member)).copied().unwrap_or_default());
                prop_assert!(got > fair * 0.1, "{got} of {fair} for {member} of group {index}: {capacities:?}");
            }
        }
    }

    #[test]
    fn everything_recovers_once_faults_are_over(plan in plan(), steps in prop::collection::vec(step(), 0..40), probing: bool) {
        let mut now = Instant::now();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut balancer = Balancer::new(Settings::default(), 1);
        balancer.update(plan.clone(), now);
        for step in steps {
            match step {
                Step::Finish { member, outcome, .. } => for _ in 0..5 {
                    balancer.finished(&member, outcome, None, Duration::from_millis(10), now);
                },
                Step::Wait { millis } => now += Duration::from_millis(millis),
                _ => {}
            }
        }
        // With probes, in the time of a probe, the least time out for failing responses and slow start; without, when
        // the longest ejection is over.
        let deadline = now + Duration::from_secs(if probing { 10 } else { 64 });
        while now < deadline {
            now += Duration::from_millis(100);
            if probing {
                for member in balancer.probes_due(now) {
                    balancer.probed(&member, true, now);
                }
            }
            if let Some(pick) = balancer.pick(now, &mut rng, &PickContext::default()) {
                balancer.finished(&pick.member, Outcome::Success, None, Duration::from_millis(10), now);
            }
        }
        let recovered = balancer.explain(now);
        let mut fresh = Balancer::new(Settings::default(), 1);
        fresh.update(plan, now);
        let loads = |explanation: &Explanation<u32>| -> HashMap<u32, f64> {
            let groups = explanation.priorities.iter().flat_map(|priority| &priority.groups);
            groups.filter(|group| !group.demoted).flat_map(|group| &group.members).map(|member| (member.id, member.load)).collect()
        };
        let (recovered, fresh) = (loads(&recovered), loads(&fresh.explain(now)));
        for (member, load) in &fresh {
            let again = recovered.get(member).copied().unwrap_or(-1.0);
            prop_assert!((again - load).abs() < 1e-9, "{member}: {again} instead of {load}");
        }
    }
}
