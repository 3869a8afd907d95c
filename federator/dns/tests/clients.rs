//! The case table of the specification, asked by the clients that people use: `dig` and `kdig`, over UDP and TCP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use arc_swap::ArcSwap;
use federation::Protocol;
use federation_dns::{HeadlessEndpoint, Metrics, Zone, ZoneContents, ZoneKind, ZonePort, ZoneService, serve};
use tokio::{
    net::{TcpListener, UdpSocket},
    process::Command,
};

const WEB: &str = "web.shop.svc.clusterset.local.";
const DB: &str = "db.shop.svc.clusterset.local.";

fn zone(synced: bool) -> Zone {
    let service = |name: &str, kind, ports: &[(&str, Protocol, u16)]| ZoneService {
        namespace: "shop".parse().unwrap(),
        name: name.parse().unwrap(),
        kind,
        ports: ports
            .iter()
            .map(|(name, protocol, port)| ZonePort { name: (*name).to_owned(), protocol: *protocol, port: *port })
            .collect(),
    };
    let endpoint = |cluster: &str, hostname: Option<&str>, addresses: &[&str], ready| HeadlessEndpoint {
        cluster: cluster.to_owned(),
        hostname: hostname.map(str::to_owned),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ready,
    };
    let vips = vec!["241.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let endpoints = vec![
        endpoint("east", Some("db-0"), &["10.244.0.52"], true),
        endpoint("east", Some("db-1"), &["10.244.0.53"], false),
        endpoint("west.second", None, &["10.245.0.8"], true),
    ];
    Zone::build(&ZoneContents {
        services: vec![
            service("web", ZoneKind::ClusterSetIp { vips }, &[("http", Protocol::Tcp, 80), ("", Protocol::Udp, 80)]),
            service("db", ZoneKind::Headless { endpoints }, &[("pg", Protocol::Tcp, 5432)]),
            service(
                "asleep",
                ZoneKind::Headless { endpoints: vec![endpoint("east", None, &["10.244.0.60"], false)] },
                &[],
            ),
        ],
        namespaces: vec!["empty".parse().unwrap()],
        serial: 7,
        synced,
        ..ZoneContents::default()
    })
}

/// Name, type, status, answers as `TTL TYPE DATA`.
type Case = (String, &'static str, &'static str, Vec<String>);

fn cases() -> Vec<Case> {
    let one = |name: &str, of, status, answers: &[&str]| -> Case {
        (name.to_owned(), of, status, answers.iter().map(|answer| (*answer).to_owned()).collect())
    };
    let dashed = format!("10-245-0-8.west.second.{DB}");
    let srv = |weight: u16, port: u16, target: &str| format!("5 SRV 0 {weight} {port} {target}");
    let (http, first, second) = (srv(100, 80, WEB), srv(50, 5432, &dashed), srv(50, 5432, &format!("db-0.east.{DB}")));
    vec![
        one("dns-version.clusterset.local.", "TXT", "NOERROR", &["28800 TXT \"1.0.0\""]),
        one(WEB, "A", "NOERROR", &["5 A 241.0.0.1"]),
        one(WEB, "AAAA", "NOERROR", &["5 AAAA fd00::1"]),
        one("wEb.SHOP.svc.ClusterSet.local.", "A", "NOERROR", &["5 A 241.0.0.1"]),
        one(&format!("_http._tcp.{WEB}"), "SRV", "NOERROR", &[&http]),
        // One record for the port, though both protocols have it.
        one(WEB, "SRV", "NOERROR", &[&http]),
        one(DB, "A", "NOERROR", &["5 A 10.244.0.52", "5 A 10.245.0.8"]),
        one(&format!("db-0.east.{DB}"), "A", "NOERROR", &["5 A 10.244.0.52"]),
        one(&dashed, "A", "NOERROR", &["5 A 10.245.0.8"]),
        one(&format!("_pg._tcp.{DB}"), "SRV", "NOERROR", &[&first, &second]),
        // The name exists without such records.
        one(WEB, "MX", "NOERROR", &[]),
        one(DB, "AAAA", "NOERROR", &[]),
        one("svc.clusterset.local.", "A", "NOERROR", &[]),
        one("shop.svc.clusterset.local.", "A", "NOERROR", &[]),
        one("empty.svc.clusterset.local.", "A", "NOERROR", &[]),
        // Nothing has the name.
        one("missing.shop.svc.clusterset.local.", "A", "NXDOMAIN", &[]),
        one("web.missing.svc.clusterset.local.", "A", "NXDOMAIN", &[]),
        one(&format!("db-1.east.{DB}"), "A", "NXDOMAIN", &[]),
        one(&format!("east.{WEB}"), "A", "NXDOMAIN", &[]),
        one(&format!("east.{DB}"), "A", "NXDOMAIN", &[]),
        one("asleep.shop.svc.clusterset.local.", "A", "NXDOMAIN", &[]),
        one("web.shop.svc.cluster.local.", "A", "REFUSED", &[]),
    ]
}

/// The status, the answers, and whether an SOA record of the zone was with them.
async fn ask(client: &str, server: SocketAddr, tcp: bool, name: &str, of: &str) -> (String, Vec<String>, bool) {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let mut command = Command::new(client);
    // The options' names are those of both.
    command.args([&at, "-p", &port, name, of, "+noall", "+answer", "+authority"]);
    command.arg(if client == "dig" { "+comments" } else { "+header" });
    if tcp {
        command.arg("+tcp");
    }
    let output = command.stdin(Stdio::null()).output().await;
    let output = output.unwrap_or_else(|error| panic!("{client}: {error}: run `make tools`"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let status = text.split_once("status: ").unwrap_or_else(|| panic!("{client} {name} {of}: {text}")).1;
    let status = status.split([',', ';']).next().unwrap().to_owned();
    let (mut answers, mut soa) = (Vec::new(), false);
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with(';')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [owner, ttl, "IN", of, data @ ..] = fields.as_slice() else { panic!("{client}: {line}") };
        if *of == "SOA" {
            soa = *owner == "clusterset.local.";
        } else {
            assert_eq!(owner.to_lowercase(), name.to_lowercase(), "{client}: {line}");
            answers.push(format!("{ttl} {of} {}", data.join(" ")));
        }
    }
    answers.sort();
    (status, answers, soa)
}

async fn serve_on_loopback(zone: Arc<ArcSwap<Zone>>) -> SocketAddr {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    // It ends with the test's runtime.
    tokio::spawn(serve(zone, vec![udp], vec![tcp], Metrics::default(), std::future::pending()));
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_and_kdig_read_the_whole_table_over_both_transports() {
    let server = serve_on_loopback(Arc::new(ArcSwap::from_pointee(zone(true)))).await;
    for client in ["dig", "kdig"] {
        for tcp in [false, true] {
            for (name, of, status, mut answers) in cases() {
                answers.sort();
                let negative = status != "REFUSED" && answers.is_empty();
                let expected = (status.to_owned(), answers, negative);
                assert_eq!(ask(client, server, tcp, &name, of).await, expected, "{client} tcp {tcp}: {name} {of}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_sync_clients_are_told_of_a_failure() {
    let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
    let server = serve_on_loopback(Arc::clone(&zone)).await;
    for client in ["dig", "kdig"] {
        assert_eq!(ask(client, server, true, WEB, "A").await, ("SERVFAIL".to_owned(), vec![], false), "{client}");
    }
    zone.store(Arc::new(self::zone(true)));
    for client in ["dig", "kdig"] {
        assert_eq!(ask(client, server, true, WEB, "A").await.0, "NOERROR", "{client}");
    }
}
