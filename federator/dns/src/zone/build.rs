//! From services to records.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use federation::{Protocol, ServiceId, export::dashed};
use hickory_proto::{
    ProtoError,
    rr::{
        LowerName, Name, RData, Record, RecordType,
        rdata::{NS, SOA, SRV, TXT},
    },
};

use super::{HeadlessEndpoint, Node, WireName, Zone, ZoneContents, ZoneKind, ZonePort, ZoneProblem, ZoneService, wire};

/// The zone's labels.
const ORIGIN: [&str; 2] = ["clusterset", "local"];

/// The version of the DNS specification that the zone follows.
const DNS_VERSION: &str = "1.0.0";

/// Time resolvers keep the version, in seconds: the specification's.
const VERSION_TTL: u32 = 28_800;

/// Time resolvers keep records and negative answers, in seconds. The specification allows 5, and 30 for SRV.
const TTL: u32 = 5;

/// The weights of the SRV records of one name add up to about this.
const SRV_WEIGHTS: usize = 100;

/// Longest cluster id, in bytes (KEP-2149).
const MAX_CLUSTER_ID: usize = 128;

/// The SOA's times for secondaries, which this zone has none of.
const REFRESH: i32 = 7_200;
const RETRY: i32 = 1_800;
const EXPIRE: i32 = 86_400;

impl Zone {
    /// Builds a zone. What cannot be published is left out and listed in [`Zone::problems`].
    pub fn build(contents: &ZoneContents) -> Self {
        let mut builder = Builder::default();
        let origin = name(&ORIGIN);
        let soa = builder.apex(&origin, contents);
        for namespace in &contents.namespaces {
            builder.exists(&name(&[namespace.as_str(), "svc", ORIGIN[0], ORIGIN[1]]));
        }
        let mut seen = BTreeSet::new();
        for service in &contents.services {
            let id = ServiceId::new(service.namespace.clone(), service.name.clone());
            if seen.insert(id.clone()) {
                builder.service(&id, service);
            } else {
                builder.problems.push(ZoneProblem::Duplicate(id));
            }
        }
        let names = builder.names.into_iter().filter_map(|(name, node)| Some((WireName::of(&name)?, node.encoded())));
        Self {
            origin: origin.into(),
            names: names.collect(),
            encoded_soa: wire::encode(&soa),
            soa,
            synced: contents.synced,
            services: seen.len(),
            problems: builder.problems,
        }
    }
}

#[derive(Default)]
struct Builder {
    names: HashMap<LowerName, Node>,
    problems: Vec<ZoneProblem>,
}

impl Builder {
    /// The records of the zone itself; its SOA.
    fn apex(&mut self, origin: &Name, contents: &ZoneContents) -> Record {
        let [second, top] = ORIGIN;
        let server = name(&["ns", "dns", second, top]);
        let master = name(&["hostmaster", second, top]);
        let soa = SOA::new(server.clone(), master, contents.serial, REFRESH, RETRY, EXPIRE, TTL);
        let soa = Record::from_rdata(origin.clone(), TTL, RData::SOA(soa));
        self.names.entry(origin.into()).or_default().sets.push((RecordType::SOA, vec![soa.clone()]));
        self.add(origin, TTL, RData::NS(NS(server.clone())));
        self.exists(&name(&["dns", second, top]));
        self.exists(&server);
        self.addresses(&server, &contents.name_servers.iter().copied().collect());
        let version = TXT::new(vec![DNS_VERSION.to_owned()]);
        self.add(&name(&["dns-version", second, top]), VERSION_TTL, RData::TXT(version));
        self.exists(&name(&["svc", second, top]));
        soa
    }

    fn service(&mut self, id: &ServiceId, service: &ZoneService) {
        let parent = name(&[service.namespace.as_str(), "svc", ORIGIN[0], ORIGIN[1]]);
        self.exists(&parent);
        // Two labels of at most 63 bytes and a short suffix always fit.
        let Ok(host) = child(service.name.as_str(), &parent) else { return };
        match &service.kind {
            ZoneKind::ClusterSetIp { vips } => {
                self.exists(&host);
                self.addresses(&host, &vips.iter().copied().collect());
                self.ports(id, &host, &[&host], &service.ports);
            }
            ZoneKind::Headless { endpoints } => self.headless(id, &host, endpoints, &service.ports),
        }
    }

    fn headless(&mut self, id: &ServiceId, host: &Name, endpoints: &[HeadlessEndpoint], ports: &[ZonePort]) {
        let mut all: BTreeSet<IpAddr> = BTreeSet::new();
        let mut hosts: BTreeMap<Name, BTreeSet<IpAddr>> = BTreeMap::new();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready) {
            match endpoint_names(id, host, endpoint) {
                Ok(names) => {
                    all.extend(&endpoint.addresses);
                    for (name, addresses) in names {
                        hosts.entry(name).or_default().extend(addresses);
                    }
                }
                Err(problem) => self.problems.push(problem),
            }
        }
        if all.is_empty() {
            return;
        }
        self.addresses(host, &all);
        for (name, addresses) in &hosts {
            self.addresses(name, addresses);
        }
        let targets: Vec<&Name> = hosts.keys().collect();
        self.ports(id, host, &targets, ports);
    }

    /// SRV records: of each named port below the service, and of all ports at its own name.
    fn ports(&mut self, id: &ServiceId, host: &Name, targets: &[&Name], ports: &[ZonePort]) {
        let weight = u16::try_from((SRV_WEIGHTS / targets.len().max(1)).max(1)).unwrap_or(1);
        let record = |target: &Name, port: u16| RData::SRV(SRV::new(0, weight, port, target.clone()));
        let mut numbers = BTreeSet::new();
        for port in ports {
            numbers.insert(port.port);
            if port.name.is_empty() {
                continue;
            }
            let label = port.name.to_ascii_lowercase();
            let protocol = child(protocol_label(port.protocol), host);
            let owner = protocol.and_then(|protocol| Ok((child(&format!("_{label}"), &protocol)?, protocol)));
            match owner {
                Ok((owner, protocol)) if is_label(&label) => {
                    self.exists(&protocol);
                    for target in targets {
                        self.add(&owner, TTL, record(target, port.port));
                    }
                }
                Ok(_) => self.problems.push(ZoneProblem::Port { service: id.clone(), port: port.name.clone() }),
                Err(_) => self.problems.push(ZoneProblem::TooLong { service: id.clone(), below: port.name.clone() }),
            }
        }
        for number in numbers {
            for target in targets {
                self.add(host, TTL, record(target, number));
            }
        }
    }

    fn addresses(&mut self, host: &Name, addresses: &BTreeSet<IpAddr>) {
        for address in addresses {
            let data = match address {
                IpAddr::V4(address) => RData::A((*address).into()),
                IpAddr::V6(address) => RData::AAAA((*address).into()),
            };
            self.add(host, TTL, data);
        }
    }

    fn exists(&mut self, name: &Name) {
        self.names.entry(name.into()).or_default();
    }

    fn add(&mut self, name: &Name, ttl: u32, data: RData) {
        let record_type = data.record_type();
        let record = Record::from_rdata(name.clone(), ttl, data);
        let node = self.names.entry(name.into()).or_default();
        match node.sets.iter_mut().find(|(of, _)| *of == record_type) {
            Some((_, records)) => records.push(record),
            None => node.sets.push((record_type, vec![record])),
        }
    }
}

/// The names of an endpoint and the addresses of each: its host name's, or one per address.
fn endpoint_names(
    service: &ServiceId,
    host: &Name,
    endpoint: &HeadlessEndpoint,
) -> Result<Vec<(Name, Vec<IpAddr>)>, ZoneProblem> {
    let cluster = endpoint.cluster.to_ascii_lowercase();
    let labels: Vec<&str> = cluster.split('.').collect();
    if labels.len() > 2 || cluster.len() > MAX_CLUSTER_ID || !labels.iter().all(|label| is_label(label)) {
        return Err(ZoneProblem::Cluster { service: service.clone(), cluster: endpoint.cluster.clone() });
    }
    let too_long = |_: ProtoError| ZoneProblem::TooLong { service: service.clone(), below: endpoint.cluster.clone() };
    let below = labels.iter().rev().try_fold(host.clone(), |parent, label| child(label, &parent)).map_err(too_long)?;
    match &endpoint.hostname {
        Some(hostname) if !is_label(&hostname.to_ascii_lowercase()) => {
            Err(ZoneProblem::Hostname { service: service.clone(), hostname: hostname.clone() })
        }
        Some(hostname) => {
            let name = child(&hostname.to_ascii_lowercase(), &below).map_err(too_long)?;
            Ok(vec![(name, endpoint.addresses.clone())])
        }
        None => endpoint
            .addresses
            .iter()
            .map(|address| Ok((child(&dashed(*address), &below).map_err(too_long)?, vec![*address])))
            .collect(),
    }
}

const fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "_tcp",
        Protocol::Udp => "_udp",
        Protocol::Sctp => "_sctp",
    }
}

/// An RFC 1123 label in lower case.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A name of labels that are known to be good and few.
fn name(labels: &[&str]) -> Name {
    labels.iter().rev().fold(Name::root(), |parent, label| child(label, &parent).unwrap_or(parent))
}

fn child(label: &str, parent: &Name) -> Result<Name, ProtoError> {
    parent.prepend_label(label.as_bytes())
}
