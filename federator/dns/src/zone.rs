//! The zone's records and the answers from them, pure.

mod build;
mod wire;

use std::{collections::HashMap, net::IpAddr};

use federation::{Namespace, Protocol, ServiceId, ServiceName};
use hickory_proto::{
    op::ResponseCode,
    rr::{LowerName, Record, RecordType},
};

pub(crate) use wire::{Addresses, Asked, WireName};

/// Everything a zone is built from.
#[derive(Debug, Clone, Default)]
pub struct ZoneContents {
    /// The imported services.
    pub services: Vec<ZoneService>,
    /// The namespaces that exist in this cluster: `<namespace>.svc.clusterset.local` exists for each.
    pub namespaces: Vec<Namespace>,
    /// Addresses at which this zone is served, published as those of `ns.dns.clusterset.local`.
    pub name_servers: Vec<IpAddr>,
    /// The serial of the SOA record; grows with every change.
    pub serial: u32,
    /// Whether the federation's first full state has been applied.
    pub synced: bool,
}

/// An imported service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneService {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ServiceName,
    /// What its name resolves to.
    pub kind: ZoneKind,
    /// Its ports.
    pub ports: Vec<ZonePort>,
}

/// What a service's name resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZoneKind {
    /// Its clusterset addresses, whether it has endpoints or not.
    ClusterSetIp {
        /// At most one per family.
        vips: Vec<IpAddr>,
    },
    /// The addresses of its ready endpoints.
    Headless {
        /// Ready or not, of all clusters.
        endpoints: Vec<HeadlessEndpoint>,
    },
}

/// An endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadlessEndpoint {
    /// The id of its cluster: one label, or two (`name.second`).
    pub cluster: String,
    /// The pod's host name, a label. Without one, the endpoint is named by its dashed addresses.
    pub hostname: Option<String>,
    /// Its addresses, as seen from here.
    pub addresses: Vec<IpAddr>,
    /// Only ready endpoints are published.
    pub ready: bool,
}

/// A service's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZonePort {
    /// May be empty; then there is no `_<port>._<protocol>` record.
    pub name: String,
    /// For the `_<protocol>` label.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// Something that could not be published. The rest of its service is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneProblem {
    /// The service was given twice; the first counts.
    #[error("{0} is given twice")]
    Duplicate(ServiceId),
    /// A cluster id that is neither one label nor two.
    #[error("{service}: {cluster:?} is no cluster id")]
    Cluster {
        /// The service.
        service: ServiceId,
        /// The id.
        cluster: String,
    },
    /// A host name that is no label.
    #[error("{service}: {hostname:?} is no host name")]
    Hostname {
        /// The service.
        service: ServiceId,
        /// The host name.
        hostname: String,
    },
    /// A port name that is no label.
    #[error("{service}: {port:?} is no port name")]
    Port {
        /// The service.
        service: ServiceId,
        /// The port's name.
        port: String,
    },
    /// A name longer than DNS allows.
    #[error("{service}: a name below {below:?} is longer than 255 bytes")]
    TooLong {
        /// The service.
        service: ServiceId,
        /// What the name begins with.
        below: String,
    },
}

/// One immutable state of `clusterset.local`.
#[derive(Debug, Clone)]
pub struct Zone {
    origin: LowerName,
    names: HashMap<WireName, Node>,
    soa: Record,
    /// The SOA record as it goes into packets, without its owner.
    encoded_soa: Vec<u8>,
    synced: bool,
    services: usize,
    problems: Vec<ZoneProblem>,
}

/// The records at one name, by type. Few types, so a list; none at all where only names below exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    sets: Vec<(RecordType, Vec<Record>)>,
    /// The same A and AAAA records once more, as they go into packets.
    addresses: Vec<(RecordType, Addresses)>,
}

/// What a zone says to a question.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Whether and what was found.
    pub finding: Finding,
    /// The records asked for; empty unless [`Finding::Records`].
    pub records: &'a [Record],
    /// The SOA record that belongs into a negative answer.
    pub soa: Option<&'a Record>,
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finding {
    /// Records of the type asked for.
    Records,
    /// The name exists, but has no record of this type.
    NoData,
    /// The name does not exist.
    NoSuchName,
    /// The name is not known, and the first full state has not been applied yet.
    NotSynced,
    /// The name is not below `clusterset.local`.
    OutsideZone,
}

impl Finding {
    /// The response code that says so.
    pub const fn response_code(self) -> ResponseCode {
        match self {
            Self::Records | Self::NoData => ResponseCode::NoError,
            Self::NoSuchName => ResponseCode::NXDomain,
            Self::NotSynced => ResponseCode::ServFail,
            Self::OutsideZone => ResponseCode::Refused,
        }
    }
}

impl Zone {
    /// Looks a name up. The name has to be fully qualified, as names read from the wire are.
    ///
    /// `ANY` is answered with one record set, as RFC 8482 suggests.
    pub fn answer(&self, name: &LowerName, record_type: RecordType) -> Answer<'_> {
        let node = WireName::of(name).and_then(|name| self.names.get(&name));
        let Some(node) = node else {
            return self.negative(self.unknown(self.origin.zone_of(name)));
        };
        let found = node.sets.iter().find(|(of, _)| *of == record_type || record_type == RecordType::ANY);
        match found {
            Some((_, records)) => Answer { finding: Finding::Records, records, soa: None },
            None => self.negative(Finding::NoData),
        }
    }

    /// What is said of a name that is not there.
    const fn unknown(&self, below_origin: bool) -> Finding {
        match below_origin {
            false => Finding::OutsideZone,
            true if self.synced => Finding::NoSuchName,
            true => Finding::NotSynced,
        }
    }

    fn negative(&self, finding: Finding) -> Answer<'_> {
        let soa = matches!(finding, Finding::NoData | Finding::NoSuchName).then_some(&self.soa);
        Answer { finding, records: &[], soa }
    }

    /// Whether a name is `clusterset.local` or below it.
    pub fn contains(&self, name: &LowerName) -> bool {
        self.origin.zone_of(name)
    }

    /// Whether the first full state has been applied.
    pub const fn synced(&self) -> bool {
        self.synced
    }

    /// Services in the zone, headless ones without ready endpoints included.
    pub const fn services(&self) -> usize {
        self.services
    }

    /// Names in the zone.
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// Every record, as a zone transfer would have them.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.names.values().flat_map(|node| &node.sets).flat_map(|(_, records)| records)
    }

    /// What could not be published.
    pub fn problems(&self) -> &[ZoneProblem] {
        &self.problems
    }
}

impl Default for Zone {
    /// A zone before the first sync: it knows its own name only.
    fn default() -> Self {
        Self::build(&ZoneContents::default())
    }
}
