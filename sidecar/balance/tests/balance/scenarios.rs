//! One behaviour each.

use std::{collections::HashMap, time::Duration};

use balance::{
    EjectionCause, EndpointId, MAX_ENDPOINTS_PER_GROUP, Outcome, PickContext, Plan, Reason, Settings, Unavailable,
};

use rand::{RngExt, SeedableRng};

use crate::{Bench, cluster, zone};

fn close(shares: &[f64], expected: &[f64]) -> bool {
    shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() < 0.02)
}

#[test]
fn picks_spill_as_the_worked_examples_say() {
    // Ready endpoints of four in each priority, and the shares.
    let table: &[(&[u32], &[f64])] = &[
        (&[2, 4], &[0.7, 0.3]),
        (&[1, 1, 4], &[0.35, 0.35, 0.3]),
        (&[1, 1], &[0.5, 0.5]),
        (&[4, 4], &[1.0, 0.0]),
        (&[0, 4], &[0.0, 1.0]),
    ];
    for (ready, expected) in table {
        let group = |(priority, &ready): (usize, &u32)| {
            let priority = u32::try_from(priority).unwrap();
            let members: Vec<u32> = (0..ready).map(|member| priority * 10 + member).collect();
            let mut group = zone(priority, &format!("zone-{priority}"), &members);
            group.capacity_total = 4;
            group
        };
        let mut bench = Bench::new(ready.iter().enumerate().map(group).collect());
        let explained: Vec<f64> =
            bench.balancer.explain(bench.now).priorities.iter().map(|priority| priority.load).collect();
        assert!(
            explained.iter().zip(*expected).all(|(load, expected)| (load - expected).abs() < 1e-9),
            "{explained:?}"
        );
        let shares = bench.shares(ready.len());
        assert!(close(&shares, expected), "{ready:?}: {shares:?}");
    }
}

#[test]
fn ejected_endpoints_spill_like_unready_ones() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2, 3, 4]), zone(1, "next", &[11, 12, 13, 14])]);
    bench.fail(1, 5);
    bench.fail(2, 5);
    let shares = bench.shares(2);
    assert!(close(&shares, &[0.7, 0.3]), "{shares:?}");
}

#[test]
fn a_zones_share_follows_its_ready_capacity_and_a_clusters_not_its_gateways() {
    let mut bench = Bench::new(vec![
        cluster(0, "west", 30, &[10, 11, 20, 21]),
        cluster(0, "north", 60, &[30]),
        zone(0, "flat", &(40..50).collect::<Vec<_>>()),
    ]);
    let mut counts: HashMap<String, u32> = HashMap::new();
    for _ in 0..20_000 {
        *counts.entry(bench.pick(&[]).unwrap().group.to_string()).or_default() += 1;
    }
    let shares = ["west", "north", "flat"].map(|name| f64::from(counts[name]) / 20_000.0);
    assert!(close(&shares, &[0.3, 0.6, 0.1]), "{shares:?}");
}

#[test]
fn the_less_loaded_of_two_is_taken() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2])]);
    (0..3).for_each(|_| bench.balancer.started(&1));
    for _ in 0..100 {
        assert_eq!(bench.pick(&[]).unwrap().member, 2);
    }
}

#[test]
fn a_slow_member_gets_less_and_is_tried_again_later() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2])]);
    for (member, millis) in [(1, 200), (2, 5)] {
        bench.balancer.finished(&member, Outcome::Success, None, Duration::from_millis(millis), bench.now);
    }
    assert!((0..100).all(|_| bench.pick(&[]).unwrap().member == 2));
    bench.wait(Duration::from_secs(120));
    assert!((0..100).any(|_| bench.pick(&[]).unwrap().member == 1));
}

#[test]
fn weights_shift_requests_within_a_group() {
    let mut group = zone(0, "home", &[1, 2, 3]);
    group.members[0].weight = 4;
    group.members[2].weight = 0;
    let mut bench = Bench::new(vec![group]);
    let first = (0..5_000).filter(|_| bench.pick(&[]).unwrap().member == 1).count();
    assert!((3_500..=5_000).contains(&first), "{first} of 5000 for a weight of 4 to 1");
    assert!((0..5_000).all(|_| bench.pick(&[]).unwrap().member != 3));
    assert_eq!(bench.pick(&[1, 2]).unwrap().member, 3, "rather than nothing");
}

#[test]
fn the_last_healthy_member_can_be_ejected_and_panic_mode_says_so() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1]), zone(1, "next", &[11, 12, 13])]);
    bench.fail(1, 5);
    assert_eq!(bench.pick(&[]).unwrap().priority, 1);
    assert!(!bench.balancer.panicking(bench.now));
    [11, 12, 13].into_iter().for_each(|member| bench.fail(member, 5));
    assert!(bench.balancer.panicking(bench.now));
    let shares = bench.shares(2);
    assert!(close(&shares, &[0.25, 0.75]), "by capacity: {shares:?}");
    assert_eq!(bench.pick(&[]).unwrap().reason, Reason::Panic);
    assert_eq!(bench.balancer.counters().panic_picks, 20_001);
}

#[test]
fn members_without_any_ready_capacity_are_used_in_panic_only() {
    let mut unready = zone(0, "home", &[1, 2]);
    unready.capacity_ready = 0;
    let mut bench = Bench::new(vec![unready.clone(), zone(1, "next", &[11])]);
    assert_eq!(bench.pick(&[]).unwrap().member, 11);
    bench.balancer.update(Plan { groups: vec![unready] }, bench.now);
    assert_eq!(bench.pick(&[]).unwrap().reason, Reason::Panic);
}

#[test]
fn an_empty_plan_has_nothing_to_offer() {
    assert_eq!(Bench::new(vec![]).pick(&[]), None);
    assert_eq!(Bench::new(vec![zone(0, "home", &[])]).pick(&[]), None);
}

#[test]
fn a_retry_goes_to_another_endpoint_then_to_the_next_priority_then_to_what_is_ejected() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2, 3]), zone(1, "next", &[11])]);
    bench.fail(3, 5);
    let (mut tried, mut reasons) = (Vec::new(), Vec::new());
    while let Some(pick) = bench.pick(&tried) {
        tried.push(pick.member);
        reasons.push(pick.reason);
    }
    tried[..2].sort_unstable();
    assert_eq!(tried, [1, 2, 11, 3]);
    assert_eq!(reasons, [Reason::Preferred, Reason::Retry, Reason::Retry, Reason::LastResort]);
}

#[test]
fn a_retry_after_a_connect_failure_takes_another_gateway_before_another_path() {
    let mut bench = Bench::new(vec![cluster(0, "west", 8, &[10, 11, 12, 20, 21, 22]), cluster(1, "north", 8, &[30])]);
    let context = |exclude| PickContext { exclude, avoid_gateways: true, affinity: None };
    for _ in 0..200 {
        let second = bench.balancer.pick(bench.now, &mut bench.rng, &context(&[11])).unwrap();
        assert!(second.member >= 20 && second.member < 30, "{second:?}");
        let third = bench.balancer.pick(bench.now, &mut bench.rng, &context(&[11, 21])).unwrap();
        assert_eq!(third.member, 30);
    }
}

#[test]
fn a_retry_avoids_other_paths_to_the_endpoint_that_failed() {
    let mut bench = Bench::new(vec![cluster(0, "west", 2, &[10, 11, 12])]);
    let (one, other) = (EndpointId::new("pod-1").unwrap(), EndpointId::new("pod-2").unwrap());
    for (path, endpoint) in [(10, &one), (11, &one), (12, &other)] {
        bench.balancer.finished(&path, Outcome::Success, Some(endpoint), Duration::from_millis(1), bench.now);
    }
    assert!((0..100).all(|_| bench.pick(&[10]).unwrap().member == 12));
}

#[test]
fn one_refused_connection_makes_a_member_less_likely_for_a_second() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2])]);
    bench.fail(1, 1);
    assert!((0..100).all(|_| bench.pick(&[]).unwrap().member == 2));
    bench.wait(Duration::from_secs(2));
    bench.report(2, Outcome::Success);
    assert!((0..100).any(|_| bench.pick(&[]).unwrap().member == 1));
}

#[test]
fn a_quickly_failing_member_attracts_no_requests() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2])]);
    for _ in 0..3 {
        bench.balancer.finished(&2, Outcome::Success, None, Duration::from_millis(50), bench.now);
        bench.balancer.finished(&1, Outcome::Success, None, Duration::from_millis(50), bench.now);
        bench.balancer.finished(&1, Outcome::OtherResponse, None, Duration::from_micros(100), bench.now);
    }
    let first = (0..1_000).filter(|_| bench.pick(&[]).unwrap().member == 1).count();
    assert!((400..600).contains(&first), "{first}");
}

#[test]
fn sticky_requests_stay_and_move_only_when_they_must() {
    let members: Vec<u32> = (0..10).collect();
    let mut bench = Bench::new(vec![zone(0, "home", &members), zone(1, "next", &[11])]);
    let place = |bench: &mut Bench| -> Vec<u32> {
        (0..500)
            .map(|client| {
                let context = PickContext { affinity: Some(client), ..PickContext::default() };
                bench.balancer.pick(bench.now, &mut bench.rng, &context).unwrap().member
            })
            .collect()
    };
    let before = place(&mut bench);
    assert_eq!(place(&mut bench), before);
    assert!(members.iter().all(|member| before.iter().filter(|&picked| picked == member).count() > 20));
    bench.fail(3, 5);
    let during = place(&mut bench);
    let moved = before.iter().zip(&during).filter(|(before, during)| before != during).count();
    assert!(before.iter().zip(&during).all(|(before, during)| before == during || *before == 3));
    assert!(moved > 20 && during.iter().all(|&member| member != 3));
    bench.balancer.probed(&3, true, bench.now);
    assert_eq!(place(&mut bench), before, "back at once, without a detour");
}

#[test]
fn a_success_rate_below_the_threshold_ejects() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2])]);
    for round in 0..20 {
        bench.report(1, if round % 3 == 2 { Outcome::GatewayError } else { Outcome::Success });
    }
    let explanation = bench.balancer.explain(bench.now);
    let member = &explanation.priorities[0].groups[0].members[0];
    assert_eq!(member.unavailable, Some(Unavailable::Ejected));
    assert_eq!(member.ejected.map(|ejection| ejection.cause), Some(EjectionCause::SuccessRate));
}

#[test]
fn a_dead_gateway_takes_all_its_paths_with_it_but_not_the_cluster() {
    let mut bench =
        Bench::new(vec![cluster(0, "west", 6, &[10, 11, 12, 13, 14, 20, 21, 22]), cluster(1, "n", 6, &[30])]);
    for path in [10, 11, 12, 13, 14] {
        bench.report(path, Outcome::ConnectFailure);
        bench.report(20 + path % 3, Outcome::Success);
    }
    let explanation = bench.balancer.explain(bench.now);
    let west = &explanation.priorities[0].groups[0];
    assert!(west.gateways[0].ejected.is_some() && west.gateways[1].ejected.is_none() && west.ejected.is_none());
    assert!(west.members[..5].iter().all(|member| member.unavailable == Some(Unavailable::GatewayEjected)));
    assert!((explanation.priorities[0].load - 1.0).abs() < 1e-9, "a lost gateway costs no capacity");
    assert!((0..200).all(|_| (20..30).contains(&bench.pick(&[]).unwrap().member)));
}

#[test]
fn a_dead_cluster_is_ejected_as_one_over_all_its_gateways() {
    let mut bench = Bench::new(vec![cluster(0, "west", 6, &[10, 11, 12, 20, 21, 22]), cluster(1, "north", 6, &[30])]);
    for path in [10, 20, 11, 21, 12] {
        assert_eq!(bench.pick(&[]).unwrap().priority, 0);
        bench.fail(path, 1);
    }
    assert!((0..200).all(|_| bench.pick(&[]).unwrap().member == 30));
    assert_eq!(bench.balancer.counters().group_ejections, 1);
}

#[test]
fn one_bad_endpoint_ejects_neither_its_gateways_nor_its_cluster() {
    let mut bench = Bench::new(vec![cluster(0, "west", 3, &[10, 11, 12, 20, 21, 22]), cluster(1, "north", 6, &[30])]);
    let endpoints = ["pod-0", "pod-1", "pod-2"].map(|id| EndpointId::new(id).unwrap());
    for _ in 0..30 {
        for path in [10, 11, 12, 20, 21, 22] {
            let endpoint = &endpoints[(path % 10) as usize];
            let outcome = if path % 10 == 0 { Outcome::GatewayError } else { Outcome::Success };
            bench.balancer.finished(&path, outcome, Some(endpoint), Duration::from_millis(2), bench.now);
        }
    }
    let explanation = bench.balancer.explain(bench.now);
    let west = &explanation.priorities[0].groups[0];
    assert!(west.ejected.is_none() && west.gateways.iter().all(|gateway| gateway.ejected.is_none()));
    assert!(west.endpoints[0].ejected.is_some(), "{west:?}");
    assert!((west.healthy - 2.0).abs() < 1e-9, "capacity behind gateways shrinks with its endpoints");
    assert!(
        (0..200).all(|_| ![10, 20].contains(&bench.pick(&[]).unwrap().member)),
        "both slots that lead to it are avoided"
    );
}

#[test]
fn suspicion_alone_moves_no_traffic_but_with_failures_the_cluster_comes_last() {
    let plan = |suspect| {
        let mut west = cluster(2, "west", 6, &[10, 11, 20, 21]);
        west.suspect = suspect;
        vec![west, cluster(3, "north", 6, &[30])]
    };
    let mut bench = Bench::new(plan(false));
    bench.balancer.update(Plan { groups: plan(true) }, bench.now);
    assert!((0..200).all(|_| bench.pick(&[]).unwrap().priority == 2), "the lease alone");
    bench.fail(10, 1);
    assert_eq!(bench.pick(&[]).unwrap().priority, 2, "one failure proves nothing");
    bench.fail(20, 1);
    assert!((0..200).all(|_| bench.pick(&[]).unwrap().priority == 3));
    let last = bench.balancer.explain(bench.now).priorities.pop().unwrap();
    assert!(last.priority.is_none() && last.groups[0].demoted && last.groups[0].ejected.is_none());
    bench.balancer.probed(&11, true, bench.now);
    assert_eq!(bench.pick(&[]).unwrap().priority, 2, "it answers, so it is back");
}

#[test]
fn failing_probes_of_a_suspect_cluster_are_enough() {
    let mut west = cluster(2, "west", 6, &[10, 11, 20, 21]);
    west.suspect = true;
    let mut bench = Bench::new(vec![west, cluster(3, "north", 6, &[30])]);
    for _ in 0..30 {
        bench.wait(Duration::from_millis(200));
        for member in bench.balancer.probes_due(bench.now) {
            bench.balancer.probed(&member, false, bench.now);
        }
    }
    assert_eq!(bench.pick(&[]).unwrap().priority, 3);
}

#[test]
fn an_ejection_ends_early_by_a_probe_and_the_member_starts_slowly() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2, 3, 4])]);
    bench.fail(1, 5);
    bench.wait(Duration::from_millis(600));
    assert_eq!(bench.balancer.next_probe().map(|at| at <= bench.now), Some(true));
    assert_eq!(bench.balancer.probes_due(bench.now), [1]);
    assert_eq!(bench.balancer.probes_due(bench.now), [], "once per interval");
    bench.balancer.probed(&1, true, bench.now);
    let share = |bench: &mut Bench| {
        let explanation = bench.balancer.explain(bench.now);
        explanation.priorities[0].groups[0].members[0].load
    };
    assert!(share(&mut bench) < 0.05);
    bench.wait(Duration::from_secs(4));
    assert!((share(&mut bench) - 0.25).abs() < 1e-9);
}

#[test]
fn a_failure_is_looked_into_by_probes_before_users_meet_it_again() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2, 3])]);
    bench.fail(1, 1);
    for _ in 0..40 {
        bench.wait(Duration::from_millis(100));
        assert_ne!(bench.pick(&[]).unwrap().member, 1);
        for member in bench.balancer.probes_due(bench.now) {
            assert_eq!(member, 1);
            bench.balancer.probed(&member, false, bench.now);
        }
    }
    assert_eq!(bench.balancer.counters().member_ejections, 1);
}

#[test]
fn a_dead_cluster_costs_one_probe_at_a_time() {
    let paths: Vec<u32> = (10..18).chain(20..28).collect();
    let mut bench = Bench::new(vec![cluster(0, "west", 6, &paths), cluster(1, "north", 6, &[30])]);
    paths.iter().for_each(|&path| bench.fail(path, 5));
    let mut probes = 0;
    for _ in 0..600 {
        bench.wait(Duration::from_millis(100));
        for member in bench.balancer.probes_due(bench.now) {
            probes += 1;
            bench.balancer.probed(&member, false, bench.now);
        }
        let next = bench.balancer.next_probe().unwrap();
        assert!(next > bench.now, "what is due has been named");
        assert!(next <= bench.now + Duration::from_secs(5));
        assert_eq!(bench.pick(&[]).unwrap().member, 30);
    }
    assert!((20..60).contains(&probes), "{probes} in a minute");
}

#[test]
fn new_members_of_a_group_in_use_start_slowly_and_others_keep_their_statistics() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2, 3])]);
    bench.fail(1, 5);
    bench.balancer.started(&2);
    bench.balancer.update(Plan { groups: vec![zone(0, "home", &[4, 2, 1])] }, bench.now);
    let explanation = bench.balancer.explain(bench.now);
    let [new, busy, ejected] = &explanation.priorities[0].groups[0].members[..] else { panic!("three members") };
    assert!((new.slow_start - 0.1).abs() < 1e-9 && new.load < 0.1);
    assert_eq!(busy.in_flight, 1);
    assert!(ejected.ejected.is_some());
    assert!((explanation.priorities[0].health - 14.0 / 15.0).abs() < 1e-9, "a new member counts as healthy at once");
}

#[test]
fn members_that_left_are_forgotten_and_their_late_outcomes_ignored() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2])]);
    bench.balancer.started(&1);
    bench.balancer.update(Plan { groups: vec![zone(0, "home", &[2])] }, bench.now);
    bench.report(1, Outcome::ConnectFailure);
    bench.balancer.probed(&1, false, bench.now);
    let explanation = bench.balancer.explain(bench.now);
    assert_eq!(explanation.priorities[0].groups[0].members.len(), 1);
}

#[test]
fn endpoints_that_peers_name_are_bounded() {
    let mut bench = Bench::new(vec![cluster(0, "west", 6, &[10])]);
    for number in 0..3_000 {
        let endpoint = EndpointId::new(&format!("pod-{number}")).unwrap();
        bench.balancer.finished(&10, Outcome::Success, Some(&endpoint), Duration::from_millis(1), bench.now);
    }
    let endpoints = |bench: &mut Bench| bench.balancer.explain(bench.now).priorities[0].groups[0].endpoints.len();
    assert_eq!(endpoints(&mut bench), MAX_ENDPOINTS_PER_GROUP);
    bench.balancer.update(Plan { groups: vec![cluster(0, "west", 6, &[10])] }, bench.now);
    assert_eq!(endpoints(&mut bench), 1, "only the one still in use");
}

#[test]
fn new_settings_apply_at_once() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1, 2]), zone(1, "next", &[11, 12])]);
    bench.fail(1, 5);
    assert!(close(&bench.shares(2), &[0.7, 0.3]));
    bench.balancer.configure(Settings { overprovisioning: 1.0, ..Settings::default() });
    assert!(close(&bench.shares(2), &[0.5, 0.5]));
}

#[test]
fn a_what_if_on_a_copy_leaves_the_balancer_alone() {
    let mut bench = Bench::new(vec![zone(0, "home", &[1]), zone(1, "next", &[11])]);
    let mut copy = bench.balancer.clone();
    (0..5).for_each(|_| copy.finished(&1, Outcome::ConnectFailure, None, Duration::ZERO, bench.now));
    assert!((copy.explain(bench.now).priorities[1].load - 1.0).abs() < 1e-9);
    assert!((bench.balancer.explain(bench.now).priorities[0].load - 1.0).abs() < 1e-9);
}

#[test]
fn fixed_shares_hold_whatever_the_capacity_and_move_only_when_nothing_is_left() {
    let share = |mut group: balance::Group<u32>, share| {
        group.share = Some(share);
        group
    };
    let mut bench =
        Bench::new(vec![share(zone(0, "home", &[1, 2, 3, 4]), 25), share(cluster(0, "west", 100, &[10, 11]), 75)]);
    let at_home = |bench: &mut Bench| {
        let picks = (0..20_000).filter(|_| bench.pick(&[]).unwrap().group.as_str() == "home").count();
        picks as f64 / 20_000.0
    };
    assert!(close(&[at_home(&mut bench)], &[0.25]));
    bench.fail(1, 5);
    assert!(close(&[at_home(&mut bench)], &[0.25]), "three of four carry the share");
    (2..=4).for_each(|member| bench.fail(member, 5));
    assert!(close(&[at_home(&mut bench)], &[0.0]));
}

#[test]
fn paths_that_lead_to_one_endpoint_share_its_load() {
    let mut bench = Bench::new(vec![cluster(0, "west", 3, &[10, 11, 12, 13])]);
    let behind = [(10, "a"), (11, "a"), (12, "a"), (13, "b")];
    for (path, endpoint) in behind {
        bench.balancer.started(&path);
        let endpoint = EndpointId::new(endpoint).unwrap();
        bench.balancer.finished(&path, Outcome::Success, Some(&endpoint), Duration::from_millis(2), bench.now);
    }
    let mut counts = HashMap::new();
    for _ in 0..20_000 {
        *counts.entry(bench.pick(&[]).unwrap().member).or_insert(0) += 1;
    }
    let share = |path: u32| f64::from(counts[&path]) / 20_000.0;
    assert!(close(&[share(10) + share(11) + share(12), share(13)], &[0.5, 0.5]), "{counts:?}");
    let redundant: Vec<u32> = (10..14).filter(|path| bench.balancer.is_redundant(path)).collect();
    assert_eq!(redundant, [11, 12], "one stays, and there is a third endpoint to be found");
}

/// Sends requests, four under way at a time, and counts which endpoint answered.
fn send(bench: &mut Bench, leads: &HashMap<u32, u32>, requests: usize) -> [u32; 10] {
    let (mut counts, mut under_way) = ([0; 10], std::collections::VecDeque::new());
    for _ in 0..requests {
        let path = bench.pick(&[]).unwrap().member;
        bench.balancer.started(&path);
        under_way.push_back(path);
        if under_way.len() == 4 {
            let path = under_way.pop_front().unwrap();
            let latency = Duration::from_micros(bench.rng.random_range(1_400..2_600));
            let endpoint = EndpointId::new(&format!("endpoint-{}", leads[&path])).unwrap();
            bench.wait(latency / 4);
            bench.balancer.finished(&path, Outcome::Success, Some(&endpoint), latency, bench.now);
            counts[leads[&path] as usize] += 1;
        }
    }
    for path in under_way {
        bench.balancer.finished(&path, Outcome::Abandoned, None, Duration::ZERO, bench.now);
    }
    counts
}

#[test]
fn load_is_even_over_ten_endpoints_behind_slots_that_lead_anywhere() {
    for seed in 0..20 {
        let paths: Vec<u32> = (10..30).collect();
        let mut bench = Bench::new(vec![cluster(0, "west", 10, &paths)]);
        bench.rng = rand::rngs::Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut leads: HashMap<u32, u32> = paths.iter().map(|&path| (path, bench.rng.random_range(0..10))).collect();
        // What shares its endpoint while others have none is led elsewhere, now and then.
        for _ in 0..60 {
            send(&mut bench, &leads, 200);
            for &path in &paths {
                if bench.balancer.is_redundant(&path) && bench.rng.random_bool(0.5) {
                    leads.insert(path, bench.rng.random_range(0..10));
                }
            }
        }
        let counts = send(&mut bench, &leads, 20_000);
        assert!(counts.iter().all(|count| (1_700..=2_300).contains(count)), "seed {seed}: {counts:?}");
    }
}
