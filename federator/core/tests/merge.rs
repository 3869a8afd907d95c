//! The merge rules of KEP-1645 as tables and properties.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use federation::export::IpFamily;
use federation::merge::{ConflictReason, Merged, merge};
use federation::{ClusterName, Export, Port, Protocol, ServiceId, ServiceType};
use proptest::prelude::*;

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn port(name: &str, port: u16) -> Port {
    Port { name: name.to_owned(), port, protocol: Protocol::Tcp, app_protocol: String::new() }
}

fn export(created: u64, ports: Vec<Port>) -> Export {
    Export {
        service: ServiceId::parse_parts("default", "shop").unwrap(),
        service_type: ServiceType::ClusterSetIP,
        ports,
        client_ip_affinity: None,
        ip_families: vec![IpFamily::IPv4],
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created: SystemTime::UNIX_EPOCH + Duration::from_secs(created),
        service_accounts: vec!["shop".to_owned()],
        zones: Vec::new(),
    }
}

fn merged(exports: &[(&str, Export)]) -> Merged {
    let named: Vec<_> = exports.iter().map(|(name, export)| (cluster(name), export)).collect();
    merge(named.iter().map(|(name, export)| (name, *export))).unwrap()
}

#[test]
fn nothing_merges_to_nothing() {
    assert_eq!(merge([]), None);
}

#[test]
fn equal_exports_do_not_conflict() {
    let all = merged(&[("east", export(1, vec![port("http", 80)])), ("west", export(2, vec![port("http", 80)]))]);
    assert!(all.conflicts.is_empty() && all.details.is_empty());
    assert_eq!(all.import.clusters.len(), 2);
    assert_eq!(all.import.ports[0].clusters.len(), 2);
}

#[test]
fn the_oldest_export_decides_and_each_difference_has_its_reason() {
    type Change = fn(&mut Export);
    let table: [(Change, ConflictReason); 8] = [
        (|export| export.service_type = ServiceType::Headless, ConflictReason::TypeConflict),
        (|export| export.client_ip_affinity = Some(Duration::from_secs(9)), ConflictReason::SessionAffinityConflict),
        (|export| export.labels = BTreeMap::from([("a".into(), "b".into())]), ConflictReason::LabelsConflict),
        (|export| export.annotations = BTreeMap::from([("a".into(), "b".into())]), ConflictReason::AnnotationsConflict),
        (|export| export.internal_traffic_policy = "Local".into(), ConflictReason::InternalTrafficPolicyConflict),
        (|export| export.traffic_distribution = "PreferClose".into(), ConflictReason::TrafficDistributionConflict),
        (|export| export.ip_families = vec![IpFamily::IPv6], ConflictReason::IPFamilyConflict),
        (|export| export.ports = vec![port("http", 81)], ConflictReason::PortConflict),
    ];
    for (change, reason) in table {
        let older = export(1, vec![port("http", 80)]);
        let mut younger = export(2, vec![port("http", 80)]);
        change(&mut younger);
        let all = merged(&[("a", younger), ("b", older.clone())]);
        assert_eq!(all.conflicts.iter().copied().collect::<Vec<_>>(), [reason]);
        assert!(all.details[0].contains("cluster a") && all.details[0].contains("cluster b"), "{:?}", all.details);
        assert_eq!(all.import.service_type, older.service_type);
        assert_eq!(all.import.labels, older.labels);
        assert_eq!(all.import.ports[0].port, older.ports[0]);
    }
}

#[test]
fn affinity_timeouts_conflict_only_where_both_have_affinity() {
    let with = |created, seconds| Export {
        client_ip_affinity: Some(Duration::from_secs(seconds)),
        ..export(created, vec![port("http", 80)])
    };
    let all = merged(&[("a", with(1, 10)), ("b", with(2, 20))]);
    assert!(all.conflicts.contains(&ConflictReason::SessionAffinityConfigConflict));
    assert_eq!(all.import.client_ip_affinity, Some(Duration::from_secs(10)));
}

#[test]
fn ties_go_to_the_cluster_that_sorts_first() {
    let all = merged(&[("b", export(1, vec![port("http", 81)])), ("a", export(1, vec![port("http", 80)]))]);
    assert_eq!(all.import.ports[0].port.port, 80);
}

#[test]
fn ports_are_the_union_and_a_clashing_port_goes_to_those_that_expose_it() {
    let all = merged(&[
        ("a", export(1, vec![port("http", 80)])),
        ("b", export(2, vec![port("http", 80), port("admin", 90)])),
        ("c", export(3, vec![port("http", 8080)])),
        ("d", export(4, vec![port("web", 80)])),
    ]);
    let ports: Vec<_> = all
        .import
        .ports
        .iter()
        .map(|entry| (entry.port.name.as_str(), entry.port.port, entry.clusters.len()))
        .collect();
    assert_eq!(ports, [("http", 80, 2), ("admin", 90, 1)]);
    assert!(all.conflicts.contains(&ConflictReason::PortConflict));
}

#[test]
fn a_cluster_whose_type_lost_is_no_backend() {
    let headless = Export { service_type: ServiceType::Headless, ..export(2, vec![port("http", 80)]) };
    let all = merged(&[("a", export(1, vec![port("http", 80)])), ("b", headless)]);
    assert_eq!(all.import.clusters.iter().map(ClusterName::as_str).collect::<Vec<_>>(), ["a"]);
}

proptest! {
    #[test]
    fn the_order_of_arrival_does_not_matter_and_no_port_is_there_twice(
        exports in proptest::collection::vec((0u64..3, proptest::collection::vec((0usize..3, 1u16..4), 1..4)), 1..5),
        rotate in 0usize..5,
    ) {
        let names = ["a", "b", "c", "d", "e"];
        let mut all: Vec<_> = exports.iter().zip(names).map(|((created, ports), name)| {
            (name, export(*created, ports.iter().map(|(name, number)| port(["x", "y", "z"][*name], *number)).collect()))
        }).collect();
        let first = merged(&all);
        let turn = rotate % all.len();
        all.rotate_left(turn);
        let mut second = merged(&all);
        second.details.sort();
        let mut sorted = first.clone();
        sorted.details.sort();
        prop_assert_eq!(&sorted, &second);
        for (place, one) in first.import.ports.iter().enumerate() {
            for other in &first.import.ports[..place] {
                prop_assert_ne!(&one.port.name, &other.port.name);
                prop_assert_ne!((one.port.protocol, one.port.port), (other.port.protocol, other.port.port));
            }
        }
    }
}
