//! v1 Service.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use federation::export::IpFamily;
use federation::{Port, ServiceId};
use k8s_openapi::api::core::v1 as core;

use super::metadata;
use crate::resource::FieldError;

/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// What kind of a service it is, as far as exporting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Has an address: ClusterIP, NodePort, LoadBalancer.
    Addressed,
    /// `clusterIP: None`.
    Headless,
    /// An alias: cannot be exported.
    ExternalName,
}

/// A service. Target ports are not kept: its EndpointSlices carry them resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub id: ServiceId,
    /// Its kind.
    pub kind: ServiceKind,
    /// Its cluster IPs; none when headless, or while none is assigned.
    pub addresses: Vec<IpAddr>,
    /// Its ports, in the order of the manifest.
    pub ports: Vec<Port>,
    /// `sessionAffinity: ClientIP`, and for how long.
    pub client_ip_affinity: Option<Duration>,
    /// As declared or assigned; empty when neither.
    pub ip_families: Vec<IpFamily>,
    /// Empty when not set.
    pub internal_traffic_policy: String,
    /// Empty when not set.
    pub traffic_distribution: String,
}

impl TryFrom<&core::Service> for Service {
    type Error = FieldError;

    fn try_from(service: &core::Service) -> Result<Self, FieldError> {
        let id = metadata::service(&service.metadata)?;
        let default = core::ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&default);
        Ok(Self {
            id,
            kind: kind(spec)?,
            addresses: addresses(spec)?,
            ports: ports(spec.ports.as_deref().unwrap_or_default())?,
            client_ip_affinity: affinity(spec)?,
            ip_families: families(spec.ip_families.as_deref().unwrap_or_default())?,
            internal_traffic_policy: spec.internal_traffic_policy.clone().unwrap_or_default(),
            traffic_distribution: spec.traffic_distribution.clone().unwrap_or_default(),
        })
    }
}

fn kind(spec: &core::ServiceSpec) -> Result<ServiceKind, FieldError> {
    let headless = spec.cluster_ip.as_deref() == Some("None");
    match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "ClusterIP" if headless => Ok(ServiceKind::Headless),
        "ClusterIP" | "NodePort" | "LoadBalancer" => Ok(ServiceKind::Addressed),
        "ExternalName" => Ok(ServiceKind::ExternalName),
        other => Err(FieldError::new(
            "spec.type",
            format_args!("{other:?} is none of ClusterIP, NodePort, LoadBalancer, ExternalName"),
        )),
    }
}

/// `clusterIPs`, or `clusterIP` where only that is set.
fn addresses(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, FieldError> {
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    let one = spec.cluster_ip.as_slice();
    let (texts, field) = if several.is_empty() { (one, "spec.clusterIP") } else { (several, "spec.clusterIPs") };
    let assigned = texts.iter().filter(|text| !text.is_empty() && *text != "None");
    let address = |text: &String| {
        let parsed = text.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified() && !address.is_multicast());
        parsed.ok_or_else(|| FieldError::new(field, format_args!("{text:?} is no address of a service")))
    };
    assigned.map(address).collect()
}

fn ports(ports: &[core::ServicePort]) -> Result<Vec<Port>, FieldError> {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let mut parsed = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let number = metadata::port(port.port, || field("port"))?;
        let protocol = metadata::protocol(port.protocol.as_deref(), || field("protocol"))?;
        let name = port.name.clone().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            return Err(FieldError::new(field("name"), "missing, but every one of several ports must have one"));
        }
        if !names.insert(name.clone()) {
            return Err(FieldError::new(field("name"), format_args!("{name:?} is the name of an earlier port")));
        }
        if !numbers.insert((number, protocol)) {
            return Err(FieldError::new(field("port"), format_args!("{number}/{protocol} is an earlier port too")));
        }
        let app_protocol = port.app_protocol.clone().unwrap_or_default();
        parsed.push(Port { name, port: number, protocol, app_protocol });
    }
    Ok(parsed)
}

fn affinity(spec: &core::ServiceSpec) -> Result<Option<Duration>, FieldError> {
    match spec.session_affinity.as_deref().unwrap_or("None") {
        "None" => Ok(None),
        "ClientIP" => {
            let configured = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let Some(seconds) = configured.and_then(|client_ip| client_ip.timeout_seconds) else {
                return Ok(Some(DEFAULT_AFFINITY));
            };
            let seconds = u64::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
            seconds.map(|seconds| Some(Duration::from_secs(seconds))).ok_or_else(|| {
                FieldError::new("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "allowed are 1 to 86400")
            })
        }
        other => Err(FieldError::new("spec.sessionAffinity", format_args!("{other:?} is none of None, ClientIP"))),
    }
}

fn families(families: &[String]) -> Result<Vec<IpFamily>, FieldError> {
    let mut parsed: Vec<IpFamily> = Vec::with_capacity(families.len());
    for (index, family) in families.iter().enumerate() {
        let error =
            |what: &str| FieldError::new(format!("spec.ipFamilies[{index}]"), format_args!("{family:?} {what}"));
        let family = match family.as_str() {
            "IPv4" => IpFamily::IPv4,
            "IPv6" => IpFamily::IPv6,
            _ => return Err(error("is none of IPv4, IPv6")),
        };
        if parsed.contains(&family) {
            return Err(error("is there already"));
        }
        parsed.push(family);
    }
    Ok(parsed)
}
