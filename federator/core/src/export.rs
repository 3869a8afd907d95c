//! What a cluster says of a service it exports, and of its gateways.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::delegation::MAX_CAPACITY;
use crate::locality::Locality;
use crate::name::{HostLabel, ServiceId};

/// A transport protocol, as in a Kubernetes Service's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, the default.
    #[default]
    Tcp,
    /// UDP: named, never carried.
    Udp,
    /// SCTP: named, never carried.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// What the bytes on a port are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApplicationProtocol {
    /// HTTP/1.1 towards the application.
    Http1,
    /// HTTP/2 with prior knowledge towards the application; gRPC among it.
    Http2,
    /// Opaque bytes.
    Tcp,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// May be empty when it is the only one.
    pub name: String,
    /// The service's port, 1 to 65535.
    pub port: u16,
    /// The transport.
    pub protocol: Protocol,
    /// As declared; empty when not.
    pub app_protocol: String,
}

impl Port {
    /// What the bytes are: by `appProtocol` first, then by the port's name up to its first '-' (Istio's convention);
    /// undeclared ports are opaque.
    #[must_use]
    pub fn application_protocol(&self) -> ApplicationProtocol {
        self.declared_protocol().unwrap_or(ApplicationProtocol::Tcp)
    }

    /// Whether `appProtocol` or the port's name says what the bytes are.
    #[must_use]
    pub fn declares_protocol(&self) -> bool {
        self.declared_protocol().is_some()
    }

    fn declared_protocol(&self) -> Option<ApplicationProtocol> {
        let of = |text: &str| match text {
            "http" | "http1" | "kubernetes.io/ws" => Some(ApplicationProtocol::Http1),
            "http2" | "grpc" | "h2c" | "kubernetes.io/h2c" => Some(ApplicationProtocol::Http2),
            "tcp" | "redis" | "mysql" | "mongo" | "postgres" | "postgresql" | "tls" | "https" => {
                Some(ApplicationProtocol::Tcp)
            }
            _ => None,
        };
        let prefix = self.name.split('-').next().unwrap_or_default();
        of(&self.app_protocol.to_ascii_lowercase()).or_else(|| of(prefix))
    }
}

/// The two kinds of service that can be exported (KEP-1645).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceType {
    /// Answers under a clusterset IP.
    ClusterSetIP,
    /// Names its endpoints.
    Headless,
}

/// An IP family of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// `IPv4`
    IPv4,
    /// `IPv6`
    IPv6,
}

/// What the endpoints with a sidecar of a zone can take: the sum of their weights, which are 1 unless somebody says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneCapacity {
    /// The zone.
    pub locality: Locality,
    /// Of all endpoints.
    pub total: u32,
    /// Of the ready ones among them.
    pub ready: u32,
}

impl ZoneCapacity {
    /// Adds endpoints up by zone, sorted: where each is, its weight, and whether it is ready. What is beyond [`MAX_CAPACITY`] is scaled
    /// to it, so that the ready part stays what it is.
    pub fn add_up<'a>(endpoints: impl IntoIterator<Item = (&'a Locality, u32, bool)>) -> Vec<Self> {
        let mut zones: BTreeMap<&Locality, (u64, u64)> = BTreeMap::new();
        for (locality, weight, is_ready) in endpoints {
            let (total, ready) = zones.entry(locality).or_default();
            *total += u64::from(weight);
            *ready += if is_ready { u64::from(weight) } else { 0 };
        }
        let zone = |(locality, (total, ready)): (&Locality, (u64, u64))| {
            let scaled = |capacity: u64| {
                let scaled = match u64::from(MAX_CAPACITY) {
                    most if total > most => (u128::from(capacity) * u128::from(most)).div_ceil(u128::from(total)),
                    _ => capacity.into(),
                };
                u32::try_from(scaled).unwrap_or(MAX_CAPACITY)
            };
            Self { locality: locality.clone(), total: scaled(total), ready: scaled(ready) }
        };
        zones.into_iter().map(zone).collect()
    }
}

/// One cluster's word on one service. Its size does not depend on the number of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The service.
    pub service: ServiceId,
    /// Its kind.
    pub service_type: ServiceType,
    /// Its ports, as the Service lists them.
    pub ports: Vec<Port>,
    /// Session affinity by client address, for this long; `None`: no affinity.
    pub client_ip_affinity: Option<Duration>,
    /// Its families, the first one preferred.
    pub ip_families: Vec<IpFamily>,
    /// Kubernetes' `internalTrafficPolicy`, empty when not set.
    pub internal_traffic_policy: String,
    /// Kubernetes' `trafficDistribution`, empty when not set.
    pub traffic_distribution: String,
    /// `exportedLabels` of the ServiceExport.
    pub labels: BTreeMap<String, String>,
    /// `exportedAnnotations` of the ServiceExport.
    pub annotations: BTreeMap<String, String>,
    /// When the ServiceExport was made, whole seconds.
    pub created: SystemTime,
    /// Service accounts in the service's namespace that may answer.
    pub service_accounts: Vec<String>,
    /// Capacity per zone, sorted by locality.
    pub zones: Vec<ZoneCapacity>,
}

impl Export {
    /// The ready capacity of all zones.
    #[must_use]
    pub fn ready(&self) -> u32 {
        self.zones.iter().map(|zone| zone.ready).fold(0, u32::saturating_add)
    }
}

/// Where a gateway can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GatewayAddress {
    /// An address.
    Ip(IpAddr),
    /// A host name, resolved with its TTL by whoever dials.
    Host(String),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Host(host) => host.fmt(formatter),
        }
    }
}

/// An east-west gateway of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gateway {
    /// Unique in its cluster.
    pub name: String,
    /// Where.
    pub address: GatewayAddress,
    /// The port.
    pub port: u16,
    /// Its locality.
    pub locality: Locality,
    /// Takes no new connections.
    pub draining: bool,
}

/// An endpoint of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadlessEndpoint {
    /// Its host name; `None`: named by its dashed address.
    pub hostname: Option<HostLabel>,
    /// Its addresses in its own cluster: elsewhere they mean nothing, for pod ranges of clusters may overlap.
    pub addresses: Vec<IpAddr>,
    /// Its locality.
    pub locality: Locality,
    /// Whether it is ready.
    pub ready: bool,
    /// Its service account.
    pub service_account: String,
}

impl HeadlessEndpoint {
    /// What it is called below its cluster: its host name, or its first address with dashes (`10-244-0-52`, `fd00--1`). `None`
    /// where neither makes a label.
    #[must_use]
    pub fn label(&self) -> Option<HostLabel> {
        match &self.hostname {
            Some(hostname) => Some(hostname.clone()),
            None => HostLabel::parse(&dashed(*self.addresses.first()?)).ok(),
        }
    }
}

/// An address as a label: `10-244-0-52`, or `fd00--1`.
#[must_use]
pub fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}
