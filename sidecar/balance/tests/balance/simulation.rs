//! A service under faults, over many seeds: what users see, how fast load moves away, and how fast it comes back.
//!
//! Each seed draws its own arrivals (50 a second), latencies and choices. The times are those a sidecar has to meet,
//! less what its sockets add: an attempt without a connection is raced after 250 ms, a silent probe takes a second.

mod world;

use std::time::Duration;

use world::{Condition, Fault, Report, Target, World};

/// Checks what holds in every scenario and the times of this one, for every seed.
fn simulate(
    seeds: std::ops::Range<u64>,
    world: fn(u64) -> World,
    fault: fn(u64) -> Fault,
    moved: Duration,
    check: fn(&Report) -> bool,
) {
    for seed in seeds {
        let fault = fault(seed);
        let report = world(seed).run(fault);
        assert_eq!(report.failed, 0, "seed {seed}, {fault:?}: a request failed on all its attempts: {report:?}");
        assert!(report.requests > 500, "seed {seed}: {report:?}");
        assert!(report.hit > 0, "seed {seed}, {fault:?}: the fault was never met, so nothing was tested");
        assert!(report.moved <= moved, "seed {seed}, {fault:?}: met the fault for too long: {report:?}");
        assert!(report.home <= Duration::from_secs(7), "seed {seed}, {fault:?}: back home too late: {report:?}");
        assert!(check(&report), "seed {seed}, {fault:?}: {report:?}");
    }
}

#[test]
fn a_killed_endpoint_is_left_at_once_but_for_a_few() {
    let fault = |seed| Fault { target: Target::Endpoint((seed % 3) as u32), condition: Condition::Refusing };
    // With one of three gone, load decides when it is next looked at; what counts is how often it is met.
    simulate(0..300, World::new, fault, Duration::from_secs(6), |report| report.hit <= 5);
}

#[test]
fn a_killed_zone_is_left_within_a_second() {
    let fault = |_| Fault { target: Target::Zone(0), condition: Condition::Refusing };
    simulate(1_000..1_200, World::new, fault, Duration::from_secs(1), |report| report.hit <= 15);
}

#[test]
fn a_blackholed_zone_is_left_within_a_second() {
    let fault = |_| Fault { target: Target::Zone(0), condition: Condition::Silent };
    simulate(2_000..2_200, World::new, fault, Duration::from_secs(1), |_| true);
}

#[test]
fn a_dead_gateway_moves_load_to_the_other_and_not_to_another_cluster() {
    let fault = |seed| Fault {
        target: Target::Gateway((seed % 2) as u32),
        condition: if seed % 3 == 0 { Condition::Silent } else { Condition::Refusing },
    };
    simulate(3_000..3_200, World::remote_only, fault, Duration::from_secs(2), |report| report.spilled == 0);
}

#[test]
fn a_blackholed_cluster_is_left_as_one_within_a_second() {
    let fault = |_| Fault { target: Target::Cluster, condition: Condition::Silent };
    simulate(4_000..4_200, World::remote_only, fault, Duration::from_secs(1), |report| report.spilled > 0);
}

#[test]
fn one_broken_endpoint_behind_gateways_does_not_cost_the_cluster() {
    // It answers probes, so now and then a request tries it again: never more than a few in seven seconds.
    let fault = |seed| Fault { target: Target::RemoteEndpoint((seed % 4) as u32), condition: Condition::Broken };
    simulate(5_000..5_200, World::remote_only, fault, Duration::from_secs(7), |report| {
        report.hit <= 12 && report.spilled * 20 < report.requests
    });
}
