//! The zone of the bench, and what is asked of it.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use federation::Protocol;
use federation_dns::{HeadlessEndpoint, Zone, ZoneContents, ZoneKind, ZonePort, ZoneService};

const NAMESPACES: u16 = 20;
const SERVICES: u16 = 1000;
const HEADLESS: u16 = 50;
const ENDPOINTS: u16 = 12;
const CLUSTERS: [&str; 3] = ["east", "west", "north"];

/// Names in the zone: as many as a large federation's.
pub(super) fn zone() -> anyhow::Result<Zone> {
    let namespace = |number: u16| format!("ns{}", number % NAMESPACES);
    let port = |name: &str, port| ZonePort { name: name.to_owned(), protocol: Protocol::Tcp, port };
    let mut services = Vec::new();
    for number in 0..SERVICES {
        let [high, low] = number.to_be_bytes();
        services.push(ZoneService {
            namespace: namespace(number).parse()?,
            name: format!("svc{number}").parse()?,
            kind: ZoneKind::ClusterSetIp { vips: vec![Ipv4Addr::new(241, 1, high, low).into()] },
            ports: vec![port("http", 80)],
        });
    }
    for number in 0..HEADLESS {
        let [_, low] = number.to_be_bytes();
        let endpoint = |at: u16| HeadlessEndpoint {
            cluster: CLUSTERS[usize::from(at) % CLUSTERS.len()].to_owned(),
            hostname: Some(format!("db-{at}")),
            addresses: vec![IpAddr::from([10, low, 0, at.to_be_bytes()[1]])],
            ready: true,
        };
        services.push(ZoneService {
            namespace: namespace(number).parse()?,
            name: format!("db{number}").parse()?,
            kind: ZoneKind::Headless { endpoints: (0..ENDPOINTS).map(endpoint).collect() },
            ports: vec![port("pg", 5432)],
        });
    }
    Ok(Zone::build(&ZoneContents { services, serial: 1, synced: true, ..ZoneContents::default() }))
}

/// The same zone as a zone file.
pub(super) fn file() -> anyhow::Result<String> {
    let mut text = String::new();
    for record in zone()?.records() {
        writeln!(text, "{record}")?;
    }
    Ok(text)
}

/// Of ten questions: seven for services, one for a family that they do not have, one for SRV records or a headless service,
/// and one for a name that is not there.
pub(super) fn questions() -> String {
    let mut text = String::new();
    for number in 0..SERVICES * 10 {
        // Spread over the services, in no order of theirs.
        let service = u32::from(number) * 7919 % u32::from(SERVICES);
        let host = format!("svc{service}.ns{}.svc.clusterset.local", service % u32::from(NAMESPACES));
        let headless = service % u32::from(HEADLESS);
        let _ = match number % 10 {
            0..7 => writeln!(text, "{host} A"),
            7 => writeln!(text, "{host} AAAA"),
            8 if number % 20 == 8 => writeln!(text, "_http._tcp.{host} SRV"),
            8 => writeln!(text, "db{headless}.ns{}.svc.clusterset.local A", headless % u32::from(NAMESPACES)),
            _ => writeln!(text, "missing{service}.ns0.svc.clusterset.local A"),
        };
    }
    text
}
