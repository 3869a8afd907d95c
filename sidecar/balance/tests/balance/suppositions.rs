//! "What if": the copy says what would happen, and then it does; the original is left alone.

use balance::{EjectionCause, EndpointId, Explanation, Outcome, Target, Unavailable};
use std::time::Duration;

use crate::{Bench, cluster, zone};

fn loads(explanation: &Explanation<u32>) -> Vec<i64> {
    explanation.priorities.iter().map(|priority| (priority.load * 100.0).round() as i64).collect()
}

fn bench() -> Bench {
    Bench::new(vec![zone(0, "east/a", &[1, 2]), zone(1, "east/b", &[3, 4]), cluster(2, "west", 4, &[10, 11, 20, 21])])
}

/// What the copy explains, and how much was found; the original explains the same before and after.
fn what_if(bench: &mut Bench, fails: impl Fn(Target<'_, u32>) -> bool) -> (Explanation<u32>, usize) {
    let before = bench.balancer.explain(bench.now);
    let mut found = 0;
    let mut copy = bench.balancer.supposing(bench.now, |target| {
        let fails = fails(target);
        found += usize::from(fails);
        fails
    });
    let explanation = copy.explain(bench.now);
    assert_eq!(bench.balancer.explain(bench.now), before);
    (explanation, found)
}

#[test]
fn a_member_that_is_supposed_to_fail_takes_its_share_of_the_capacity_with_it() {
    let mut bench = bench();
    assert_eq!(loads(&bench.balancer.explain(bench.now)), [100, 0, 0]);
    let (explanation, found) = what_if(&mut bench, |target| target == Target::Member(&1));
    assert_eq!((loads(&explanation), found), (vec![70, 30, 0], 1));
    let member = &explanation.priorities[0].groups[0].members[0];
    assert_eq!(member.unavailable, Some(Unavailable::Ejected));
    assert_eq!(member.ejected.unwrap().cause, EjectionCause::Supposed);
}

#[test]
fn what_was_supposed_is_what_happens() {
    let mut bench = bench();
    let (supposed, _) = what_if(&mut bench, |target| target == Target::Member(&2));
    bench.fail(2, 5);
    assert_eq!(loads(&bench.balancer.explain(bench.now)), loads(&supposed));
    assert!((bench.shares(3)[1] - 0.3).abs() < 0.02);
}

#[test]
fn whole_groups_are_supposed_to_fail_by_name_whatever_they_consist_of() {
    let mut bench = bench();
    let name = |wanted: &'static str| move |target: Target<'_, u32>| matches!(target, Target::Group(name) if name.as_str() == wanted);
    assert_eq!(loads(&what_if(&mut bench, name("east/a")).0), [0, 100, 0]);
    let east = |target: Target<'_, u32>| matches!(target, Target::Group(name) if name.as_str().starts_with("east/"));
    assert_eq!(loads(&what_if(&mut bench, east).0), [0, 0, 100]);
    let (west, found) = what_if(&mut bench, name("west"));
    assert_eq!((loads(&west), found), (vec![100, 0, 0], 1));
    assert!(west.priorities[2].groups[0].ejected.is_some());
    let (nothing, _) = what_if(&mut bench, |_| true);
    assert!(nothing.panic, "then everything is used");
}

#[test]
fn of_a_remote_cluster_one_gateway_costs_nothing_and_one_endpoint_its_capacity() {
    let mut bench = Bench::new(vec![cluster(0, "west", 2, &[10, 20]), zone(1, "east/b", &[3, 4])]);
    let id = EndpointId::new("west/shop/cart-1").unwrap();
    bench.balancer.started(&10);
    bench.balancer.finished(&10, Outcome::Success, Some(&id), Duration::from_millis(1), bench.now);
    let gateway = |target: Target<'_, u32>| matches!(target, Target::Gateway(name) if name.as_str() == "gateway-1");
    let (explanation, _) = what_if(&mut bench, gateway);
    assert_eq!(loads(&explanation), [100, 0]);
    assert_eq!(explanation.priorities[0].groups[0].members[0].unavailable, Some(Unavailable::GatewayEjected));
    let (explanation, found) = what_if(&mut bench, |target| target == Target::Endpoint(&id));
    assert_eq!((loads(&explanation), found), (vec![70, 30], 1));
}

#[test]
fn a_name_that_nothing_has_is_found_nowhere() {
    let mut bench = bench();
    let (explanation, found) = what_if(&mut bench, |target| target == Target::Member(&99));
    assert_eq!((loads(&explanation), found), (vec![100, 0, 0], 0));
}
