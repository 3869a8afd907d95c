//! Failover order, capacity steps, slots and delegations.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use federation::capacity::{CapacityReporter, REPORT_INTERVAL};
use federation::delegation::{Delegation, HostPattern, NamespaceSet};
use federation::order::{Candidate, Dimension, Mode, Preference, Proximity, Target, order, order_by};
use federation::{ClusterName, Gateway, GatewayAddress, Locality, ZoneCapacity, slot};
use proptest::prelude::*;

fn zone(region: &str, zone: &str, total: u32, ready: u32) -> ZoneCapacity {
    ZoneCapacity { locality: Locality::new(region, zone), total, ready }
}

#[test]
fn nearer_groups_come_first() {
    let (east, west, north): (ClusterName, ClusterName, ClusterName) =
        ("east".parse().unwrap(), "west".parse().unwrap(), "north".parse().unwrap());
    let own = [zone("eu", "a", 2, 2), zone("eu", "b", 1, 1)];
    let near = [zone("eu", "c", 3, 3)];
    let far = [zone("us", "a", 4, 4)];
    let candidate = |cluster, local, zones, round_trip| Candidate {
        cluster,
        local,
        zones,
        suspect: false,
        round_trip: Some(Duration::from_millis(round_trip)),
    };
    let groups = order(
        &Locality::new("eu", "a"),
        &[candidate(&north, false, &far, 80), candidate(&west, false, &near, 5), candidate(&east, true, &own, 0)],
    );
    let shape: Vec<_> =
        groups.iter().map(|group| (group.priority, group.cluster.as_str(), group.why, group.ready)).collect();
    assert_eq!(
        shape,
        [
            (0, "east", Proximity::SameZone, 2),
            (1, "east", Proximity::SameCluster, 1),
            (2, "west", Proximity::SameRegion, 3),
            (3, "north", Proximity::Remote, 4),
        ]
    );
}

#[test]
fn remote_clusters_order_by_round_trip_and_share_when_alike_and_suspicion_moves_nobody() {
    let names: Vec<ClusterName> = ["a", "b", "c", "d"].iter().map(|name| name.parse().unwrap()).collect();
    let zones = [zone("us", "a", 1, 1)];
    let times = [Some(45), Some(42), None, Some(3)];
    let candidates: Vec<_> = names
        .iter()
        .zip(times)
        .map(|(cluster, time)| Candidate {
            cluster,
            local: false,
            zones: &zones,
            suspect: cluster.as_str() == "d",
            round_trip: time.map(Duration::from_millis),
        })
        .collect();
    let groups = order(&Locality::new("eu", "a"), &candidates);
    let shape: Vec<_> = groups.iter().map(|group| (group.priority, group.cluster.as_str(), group.suspect)).collect();
    assert_eq!(shape, [(0, "d", true), (1, "a", false), (1, "b", false), (2, "c", false)]);
}

/// Priority and cluster of each group for a client of `east` in eu/a: two zones at home, west near by in the client's own
/// zone, south in its region, north far away.
fn preferred(preference: &Preference) -> Vec<(u32, String)> {
    let names: Vec<ClusterName> = ["east", "west", "south", "north"].iter().map(|name| name.parse().unwrap()).collect();
    let zones = [
        vec![zone("eu", "a", 2, 2), zone("eu", "b", 6, 6)],
        vec![zone("eu", "a", 3, 3)],
        vec![zone("eu", "d", 3, 3)],
        vec![zone("us", "a", 4, 4)],
    ];
    let candidates: Vec<_> = names
        .iter()
        .zip(&zones)
        .map(|(cluster, zones)| Candidate {
            cluster,
            local: cluster.as_str() == "east",
            zones,
            suspect: false,
            round_trip: Some(Duration::from_millis(30)),
        })
        .collect();
    order_by(Some(&names[0]), &Locality::new("eu", "a"), &candidates, preference)
        .into_iter()
        .map(|group| {
            let place = group.localities.as_deref().map_or("", |localities| localities[0].zone.as_str());
            let share = group.share.map(|share| format!("={share}")).unwrap_or_default();
            (group.priority, format!("{}{}{place}{share}", group.cluster, if place.is_empty() { "" } else { "/" }))
        })
        .collect()
}

#[test]
fn a_policy_changes_the_order() {
    let cluster = |name: &str| -> ClusterName { name.parse().unwrap() };
    let target = |from: &[&str], mode, to: &[&str]| Target {
        from: from.iter().map(|name| cluster(name)).collect(),
        mode,
        to: to.iter().map(|name| cluster(name)).collect(),
    };
    let targets = |targets| Preference { targets, ..Preference::default() };
    let prefer = |prefer: &[Dimension]| Preference { prefer: prefer.to_vec(), ..Preference::default() };
    let share = |shares: &[(&str, u32)]| Preference {
        distribute: shares.iter().map(|(name, weight)| (cluster(name), *weight)).collect(),
        ..Preference::default()
    };
    type Case = (&'static str, Preference, &'static [(u32, &'static str)]);
    let cases: [Case; 11] = [
        ("none", Preference::default(), &[(0, "east/a"), (1, "east/b"), (2, "south"), (2, "west"), (3, "north")]),
        (
            "zone first",
            prefer(&[Dimension::Zone, Dimension::Region, Dimension::Cluster]),
            &[(0, "east/a"), (1, "west"), (2, "east/b"), (3, "south"), (4, "north")],
        ),
        (
            "region alone",
            prefer(&[Dimension::Region]),
            &[(0, "east/a"), (0, "east/b"), (0, "south"), (0, "west"), (1, "north")],
        ),
        (
            "cluster first",
            prefer(&[Dimension::Cluster, Dimension::Zone]),
            &[(0, "east/a"), (1, "east/b"), (2, "west"), (3, "south"), (4, "north")],
        ),
        ("local only", Preference { local_only: true, ..Preference::default() }, &[(0, "east/a"), (1, "east/b")]),
        ("no other", targets(vec![target(&[], Mode::None, &[])]), &[(0, "east/a"), (1, "east/b")]),
        (
            "only, in their order",
            targets(vec![target(&[], Mode::Only, &["north", "west"])]),
            &[(0, "east/a"), (1, "east/b"), (2, "north"), (3, "west")],
        ),
        (
            "all but",
            targets(vec![target(&["east"], Mode::AnyExcept, &["west"])]),
            &[(0, "east/a"), (1, "east/b"), (2, "south"), (3, "north")],
        ),
        (
            "the first entry for this cluster applies",
            targets(vec![
                target(&["west"], Mode::None, &[]),
                target(&["east", "north"], Mode::Only, &["south"]),
                target(&[], Mode::None, &[]),
            ]),
            &[(0, "east/a"), (1, "east/b"), (2, "south")],
        ),
        (
            "fixed shares",
            share(&[("east", 80), ("north", 20), ("west", 0)]),
            &[(0, "east/a=20000"), (0, "east/b=60000"), (0, "north=20000")],
        ),
        ("everything elsewhere", share(&[("north", 1)]), &[(0, "north=1000")]),
    ];
    for (what, preference, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|(priority, name)| (*priority, (*name).to_owned())).collect();
        assert_eq!(preferred(&preference), expected, "{what}");
    }
}

#[test]
fn unknown_zones_are_never_the_same() {
    let unknown = Locality::default();
    assert!(!unknown.same_zone(&unknown) && !unknown.same_region(&unknown));
    assert!(!Locality::new("eu", "a").same_zone(&Locality::new("us", "a")));
}

#[test]
fn capacity_is_told_in_steps_at_most_once_a_second_and_zero_at_once() {
    let mut reporter = CapacityReporter::new();
    let start = Instant::now();
    let told = |ready| vec![zone("eu", "a", 100, ready)];
    assert_eq!(reporter.observe(start, told(100)), Some(told(100)));
    let soon = start + Duration::from_millis(100);
    assert_eq!(reporter.observe(soon, told(95)), None, "less than a step");
    assert_eq!(reporter.next_due(), None);
    assert_eq!(reporter.observe(soon, told(80)), None, "a step, too soon");
    assert_eq!(reporter.next_due(), Some(start + REPORT_INTERVAL));
    assert_eq!(reporter.observe(soon, told(98)), None, "taken back");
    assert_eq!(reporter.next_due(), None);
    assert_eq!(reporter.observe(soon, told(80)), None);
    assert_eq!(reporter.poll(start + REPORT_INTERVAL), Some(told(80)));
    assert_eq!(reporter.observe(start + REPORT_INTERVAL, told(0)), Some(told(0)), "to zero at once");
    assert_eq!(reporter.observe(start + REPORT_INTERVAL, told(1)), Some(told(1)), "from zero at once");
}

#[test]
fn an_unnamed_reserved_address_is_never_delegated() {
    let delegation = |ranges: &[&str]| Delegation {
        namespaces: NamespaceSet::All,
        address_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        host_names: Vec::new(),
        joined: SystemTime::UNIX_EPOCH,
    };
    let allowed =
        |ranges: &[&str], address: &str| delegation(ranges).allows_address(address.parse::<IpAddr>().unwrap());
    for reserved in ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1", "224.0.0.1"] {
        assert!(!allowed(&[], reserved), "{reserved}");
        assert!(!allowed(&["0.0.0.0/0", "::/1"], reserved), "{reserved} within a wide range");
    }
    assert!(allowed(&["127.10.0.0/16"], "127.10.0.11"), "named on purpose");
    assert!(!allowed(&["127.10.0.0/16"], "127.20.0.11"), "a victim's range");
    assert!(allowed(&[], "10.0.0.1") && !allowed(&["192.0.2.0/24"], "10.0.0.1"));
}

#[test]
fn gateways_beyond_the_delegation_are_left_out_and_named() {
    let delegation = Delegation {
        namespaces: NamespaceSet::Some(BTreeSet::new()),
        address_ranges: vec!["192.0.2.0/24".parse().unwrap()],
        host_names: vec![HostPattern::new("*.east.example")],
        joined: SystemTime::UNIX_EPOCH,
    };
    let gateway = |address| Gateway {
        name: "g".to_owned(),
        address,
        port: 15443,
        locality: Locality::default(),
        draining: false,
    };
    let good = gateway(GatewayAddress::Ip("192.0.2.7".parse().unwrap()));
    let named = gateway(GatewayAddress::Host("gw.East.example".to_owned()));
    let bad = gateway(GatewayAddress::Ip("198.51.100.1".parse().unwrap()));
    let elsewhere = gateway(GatewayAddress::Host("gw.west.example".to_owned()));
    let disguised = gateway(GatewayAddress::Host("198.51.100.1".to_owned()));
    let (believed, refused) = delegation.clamp_gateways(vec![good.clone(), bad, named.clone(), elsewhere, disguised]);
    assert_eq!(believed, [good, named]);
    assert_eq!(refused.len(), 3);
}

proptest! {
    #[test]
    fn a_slot_moves_only_when_its_endpoint_goes(count in 2usize..20, gone in 0usize..20, number in any::<u16>()) {
        let ids: Vec<String> = (0..count).map(|number| format!("east/default/shop-{number}")).collect();
        let gone = gone % count;
        let before = slot::choose(number, ids.iter().map(|id| (id, 1))).unwrap();
        let after = slot::choose(number, ids.iter().enumerate().map(|(place, id)| (id, u32::from(place != gone)))).unwrap();
        prop_assert!(before == gone || before == after);
        prop_assert_ne!(after, gone);
    }
}

#[test]
fn slots_spread_by_weight() {
    let mut counts = [0u32; 3];
    for number in 0..6000 {
        counts[slot::choose(number, [("a", 1), ("b", 2), ("c", 3)]).unwrap()] += 1;
    }
    for (count, expected) in counts.iter().zip([1000u32, 2000, 3000]) {
        assert!(count.abs_diff(expected) < 200, "{counts:?}");
    }
    assert_eq!(slot::choose(1, [("a", 0)]), None);
}
