//! The zone's records, question by question.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::IpAddr, str::FromStr};

use federation::Protocol;
use federation_dns::{Finding, HeadlessEndpoint, Zone, ZoneContents, ZoneKind, ZonePort, ZoneProblem, ZoneService};
use hickory_proto::rr::{LowerName, RecordType};
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(name: &str, protocol: Protocol, port: u16) -> ZonePort {
    ZonePort { name: name.to_owned(), protocol, port }
}

fn service(namespace: &str, name: &str, kind: ZoneKind, ports: Vec<ZonePort>) -> ZoneService {
    ZoneService { namespace: namespace.parse().unwrap(), name: name.parse().unwrap(), kind, ports }
}

fn endpoint(cluster: &str, hostname: Option<&str>, addresses: &[&str], ready: bool) -> HeadlessEndpoint {
    HeadlessEndpoint {
        cluster: cluster.to_owned(),
        hostname: hostname.map(str::to_owned),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        ready,
    }
}

fn contents() -> ZoneContents {
    let dual = ZoneKind::ClusterSetIp { vips: vec![ip("241.0.0.1"), ip("fd00::1")] };
    let single = ZoneKind::ClusterSetIp { vips: vec![ip("241.0.0.2")] };
    let db = vec![
        endpoint("east", Some("db-0"), &["10.244.0.52"], true),
        endpoint("east", Some("db-1"), &["10.244.0.53"], false),
        endpoint("west.second", Some("db-0"), &["10.245.0.7", "fd00:2::7"], true),
        endpoint("west.second", None, &["10.245.0.8"], true),
    ];
    let asleep = vec![endpoint("east", Some("one"), &["10.244.0.60"], false)];
    ZoneContents {
        services: vec![
            service(
                "shop",
                "web",
                dual,
                vec![
                    port("http", Protocol::Tcp, 80),
                    port("dns", Protocol::Tcp, 53),
                    port("dns-udp", Protocol::Udp, 53),
                ],
            ),
            service("shop", "plain", single, vec![port("", Protocol::Tcp, 8080)]),
            service("shop", "db", ZoneKind::Headless { endpoints: db }, vec![port("pg", Protocol::Tcp, 5432)]),
            service("shop", "asleep", ZoneKind::Headless { endpoints: asleep }, vec![port("pg", Protocol::Tcp, 5432)]),
        ],
        namespaces: vec!["shop".parse().unwrap(), "empty".parse().unwrap()],
        name_servers: vec![ip("10.0.0.10")],
        serial: 7,
        synced: true,
    }
}

/// The finding and the sorted records, as `<ttl> <data>`.
fn ask(zone: &Zone, name: &str, record_type: RecordType) -> (Finding, Vec<String>) {
    let name = LowerName::from_str(name).unwrap();
    let answer = zone.answer(&name, record_type);
    assert_eq!(answer.soa.is_some(), matches!(answer.finding, Finding::NoData | Finding::NoSuchName), "{name}");
    let mut records: Vec<String> =
        answer.records.iter().map(|record| format!("{} {}", record.ttl, record.data)).collect();
    assert!(answer.records.iter().all(|record| LowerName::from(&record.name) == name));
    records.sort();
    (answer.finding, records)
}

#[test]
fn answers_follow_the_specification() {
    use Finding::{NoData, NoSuchName, OutsideZone, Records};
    use RecordType::{A, AAAA, CNAME, MX, NS, SOA, SRV, TXT};
    let zone = Zone::build(&contents());
    assert_eq!(zone.problems(), []);
    let web = "web.shop.svc.clusterset.local.";
    let db = "db.shop.svc.clusterset.local.";
    let east = format!("db-0.east.{db}");
    let west = format!("db-0.west.second.{db}");
    let dashed = format!("10-245-0-8.west.second.{db}");
    let srv = |weight: u16, port: u16, target: &str| format!("5 0 {weight} {port} {target}");
    let table: Vec<(String, RecordType, Finding, Vec<String>)> = vec![
        ("dns-version.clusterset.local.".into(), TXT, Records, vec!["28800 1.0.0".into()]),
        ("clusterset.local.".into(), NS, Records, vec!["5 ns.dns.clusterset.local.".into()]),
        (
            "clusterset.local.".into(),
            SOA,
            Records,
            vec!["5 ns.dns.clusterset.local. hostmaster.clusterset.local. 7 7200 1800 86400 5".into()],
        ),
        ("clusterset.local.".into(), A, NoData, vec![]),
        ("ns.dns.clusterset.local.".into(), A, Records, vec!["5 10.0.0.10".into()]),
        ("dns.clusterset.local.".into(), A, NoData, vec![]),
        // Services with addresses.
        (web.into(), A, Records, vec!["5 241.0.0.1".into()]),
        (web.into(), AAAA, Records, vec!["5 fd00::1".into()]),
        ("WEB.Shop.SVC.clusterset.LOCAL.".into(), A, Records, vec!["5 241.0.0.1".into()]),
        (format!("_http._tcp.{web}"), SRV, Records, vec![srv(100, 80, web)]),
        (format!("_dns-udp._udp.{web}"), SRV, Records, vec![srv(100, 53, web)]),
        (web.into(), SRV, Records, vec![srv(100, 53, web), srv(100, 80, web)]),
        (format!("_tcp.{web}"), SRV, NoData, vec![]),
        (format!("_http._udp.{web}"), SRV, NoSuchName, vec![]),
        (format!("_http._tcp.{web}"), A, NoData, vec![]),
        (web.into(), MX, NoData, vec![]),
        (web.into(), CNAME, NoData, vec![]),
        ("plain.shop.svc.clusterset.local.".into(), AAAA, NoData, vec![]),
        (
            "plain.shop.svc.clusterset.local.".into(),
            SRV,
            Records,
            vec![srv(100, 8080, "plain.shop.svc.clusterset.local.")],
        ),
        (format!("east.{web}"), A, NoSuchName, vec![]),
        // Headless services.
        (db.into(), A, Records, vec!["5 10.244.0.52".into(), "5 10.245.0.7".into(), "5 10.245.0.8".into()]),
        (db.into(), AAAA, Records, vec!["5 fd00:2::7".into()]),
        (east.clone(), A, Records, vec!["5 10.244.0.52".into()]),
        (east.clone(), AAAA, NoData, vec![]),
        (west.clone(), A, Records, vec!["5 10.245.0.7".into()]),
        (west.clone(), AAAA, Records, vec!["5 fd00:2::7".into()]),
        (dashed.clone(), A, Records, vec!["5 10.245.0.8".into()]),
        (format!("db-1.east.{db}"), A, NoSuchName, vec![]),
        (
            format!("_pg._tcp.{db}"),
            SRV,
            Records,
            vec![srv(33, 5432, &dashed), srv(33, 5432, &east), srv(33, 5432, &west)],
        ),
        (db.into(), SRV, Records, vec![srv(33, 5432, &dashed), srv(33, 5432, &east), srv(33, 5432, &west)]),
        (format!("east.{db}"), A, NoSuchName, vec![]),
        (format!("second.{db}"), A, NoSuchName, vec![]),
        (format!("west.second.{db}"), A, NoSuchName, vec![]),
        ("asleep.shop.svc.clusterset.local.".into(), A, NoSuchName, vec![]),
        ("_pg._tcp.asleep.shop.svc.clusterset.local.".into(), SRV, NoSuchName, vec![]),
        // What lies between.
        ("svc.clusterset.local.".into(), A, NoData, vec![]),
        ("shop.svc.clusterset.local.".into(), A, NoData, vec![]),
        ("empty.svc.clusterset.local.".into(), TXT, NoData, vec![]),
        ("missing.svc.clusterset.local.".into(), A, NoSuchName, vec![]),
        ("missing.shop.svc.clusterset.local.".into(), A, NoSuchName, vec![]),
        ("web.shop.clusterset.local.".into(), A, NoSuchName, vec![]),
        ("web.shop.svc.cluster.local.".into(), A, OutsideZone, vec![]),
        ("notclusterset.local.".into(), A, OutsideZone, vec![]),
        ("local.".into(), A, OutsideZone, vec![]),
        (".".into(), NS, OutsideZone, vec![]),
    ];
    for (name, record_type, finding, mut records) in table {
        records.sort();
        assert_eq!(ask(&zone, &name, record_type), (finding, records), "{name} {record_type}");
    }
}

#[test]
fn unknown_names_fail_until_the_first_sync_and_known_ones_do_not() {
    let zone = Zone::build(&ZoneContents { synced: false, ..contents() });
    assert_eq!(ask(&zone, "missing.shop.svc.clusterset.local.", RecordType::A).0, Finding::NotSynced);
    assert_eq!(ask(&zone, "web.shop.svc.clusterset.local.", RecordType::A).0, Finding::Records);
    assert_eq!(ask(&zone, "web.shop.svc.clusterset.local.", RecordType::MX).0, Finding::NoData);
    assert_eq!(ask(&zone, "web.shop.svc.cluster.local.", RecordType::A).0, Finding::OutsideZone);
    assert_eq!(ask(&Zone::default(), "web.shop.svc.clusterset.local.", RecordType::A).0, Finding::NotSynced);
}

#[test]
fn a_clusterset_ip_service_without_an_address_yet_exists() {
    let kind = ZoneKind::ClusterSetIp { vips: vec![] };
    let services = vec![service("shop", "web", kind, vec![])];
    let zone = Zone::build(&ZoneContents { services, synced: true, ..ZoneContents::default() });
    assert_eq!(ask(&zone, "web.shop.svc.clusterset.local.", RecordType::A).0, Finding::NoData);
    assert_eq!(ask(&zone, "shop.svc.clusterset.local.", RecordType::A).0, Finding::NoData, "its namespace as well");
}

#[test]
fn what_cannot_be_published_is_named_and_the_rest_is_published() {
    let long = "x".repeat(63);
    let endpoints = vec![
        endpoint("one.two.three", Some("a"), &["10.0.0.1"], true),
        endpoint("east", Some("not a label"), &["10.0.0.2"], true),
        endpoint(&format!("{long}.{}", &long[..60]), Some(&long), &["10.0.0.3"], true),
        endpoint("east", Some("Good"), &["10.0.0.4"], true),
    ];
    let ports = vec![port("a.b", Protocol::Tcp, 1), port(&long, Protocol::Tcp, 2), port("ok", Protocol::Tcp, 3)];
    let namespace = "n".repeat(63);
    let headless = |endpoints| ZoneKind::Headless { endpoints };
    let services = vec![
        service(&namespace, "db", headless(endpoints), ports),
        service(&namespace, "db", headless(vec![]), vec![]),
    ];
    let zone = Zone::build(&ZoneContents { services, synced: true, ..ZoneContents::default() });
    let kinds: Vec<&str> = zone
        .problems()
        .iter()
        .map(|problem| match problem {
            ZoneProblem::Cluster { .. } => "cluster",
            ZoneProblem::Hostname { .. } => "hostname",
            ZoneProblem::TooLong { .. } => "too long",
            ZoneProblem::Port { .. } => "port",
            ZoneProblem::Duplicate(_) => "duplicate",
        })
        .collect();
    assert_eq!(kinds, ["cluster", "hostname", "too long", "port", "too long", "duplicate"]);
    let host = format!("db.{namespace}.svc.clusterset.local.");
    assert_eq!(ask(&zone, &host, RecordType::A).1, ["5 10.0.0.4"]);
    assert_eq!(ask(&zone, &format!("good.east.{host}"), RecordType::A).1, ["5 10.0.0.4"]);
    assert_eq!(ask(&zone, &format!("_ok._tcp.{host}"), RecordType::SRV).0, Finding::Records);
}

fn label() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,5}"
}

proptest! {
    #[test]
    fn every_ready_endpoint_can_be_found_and_nothing_else(
        endpoints in prop::collection::vec((label(), prop::option::of(label()), any::<[u8; 4]>(), any::<bool>()), 0..20),
    ) {
        let endpoints: Vec<HeadlessEndpoint> = endpoints.into_iter().map(|(cluster, hostname, address, ready)| {
            HeadlessEndpoint { cluster, hostname, addresses: vec![IpAddr::from(address)], ready }
        }).collect();
        let kind = ZoneKind::Headless { endpoints: endpoints.clone() };
        let services = vec![service("shop", "db", kind, vec![port("pg", Protocol::Tcp, 5432)])];
        let zone = Zone::build(&ZoneContents { services, synced: true, ..ZoneContents::default() });
        prop_assert!(zone.problems().is_empty());
        let host = "db.shop.svc.clusterset.local.";
        let (_, all) = ask(&zone, host, RecordType::A);
        let mut expected: Vec<String> = endpoints.iter().filter(|endpoint| endpoint.ready)
            .map(|endpoint| format!("5 {}", endpoint.addresses[0])).collect();
        expected.sort();
        expected.dedup();
        prop_assert_eq!(&all, &expected);
        let (_, targets) = ask(&zone, &format!("_pg._tcp.{host}"), RecordType::SRV);
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready) {
            let address = endpoint.addresses[0].to_string();
            let label = endpoint.hostname.clone().unwrap_or_else(|| address.replace('.', "-"));
            let name = format!("{label}.{}.{host}", endpoint.cluster);
            let (_, found) = ask(&zone, &name, RecordType::A);
            let (address, target) = (format!("5 {address}"), format!(" 5432 {name}"));
            prop_assert!(found.contains(&address));
            prop_assert!(targets.iter().any(|record| record.ends_with(&target)));
        }
    }
}
