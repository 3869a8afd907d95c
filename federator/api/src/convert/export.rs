//! Exports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use federation::export::IpFamily;
use federation::{Export, Port, ServiceId, ServiceType, ZoneCapacity};

use super::{
    ConvertError, MAX_METADATA, MAX_PORTS, MAX_SERVICE_ACCOUNTS, MAX_ZONES, at_most, each, object_name, shown, visible,
};
use crate::record::v1 as wire;
use crate::unix;

/// Kubernetes' own limit on `sessionAffinityConfig.clientIP.timeoutSeconds`.
const MAX_AFFINITY_SECONDS: u32 = 86_400;
/// Kubernetes' limit on a qualified name: a prefix of 253 bytes, '/', and 63 bytes.
const MAX_QUALIFIED_NAME: usize = 317;
/// Kubernetes' limit on a label's value.
const MAX_LABEL_VALUE: usize = 63;
/// Kubernetes' limit on all annotations of an object.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

pub(crate) fn service_id(namespace: &str, service: &str) -> Result<ServiceId, ConvertError> {
    Ok(ServiceId::new(
        namespace.parse().map_err(|error| ConvertError::new("namespace", error))?,
        service.parse().map_err(|error| ConvertError::new("service", error))?,
    ))
}

impl TryFrom<wire::Export> for Export {
    type Error = ConvertError;

    fn try_from(export: wire::Export) -> Result<Self, ConvertError> {
        Ok(Self {
            service: service_id(&export.namespace, &export.service)?,
            service_type: service_type(export.r#type)?,
            ports: ports(export.ports)?,
            client_ip_affinity: affinity(export.client_ip_affinity_seconds)?,
            ip_families: ip_families(export.ip_families)?,
            internal_traffic_policy: visible("internal_traffic_policy", export.internal_traffic_policy, 63)?,
            traffic_distribution: visible("traffic_distribution", export.traffic_distribution, 63)?,
            labels: labels(export.labels)?,
            annotations: annotations(export.annotations)?,
            created: unix::from_seconds(export.created_at),
            service_accounts: service_accounts(export.service_accounts)?,
            zones: zones(export.zones)?,
        })
    }
}

impl From<&Export> for wire::Export {
    fn from(export: &Export) -> Self {
        Self {
            namespace: export.service.namespace.to_string(),
            service: export.service.name.to_string(),
            r#type: wire::ServiceType::from(export.service_type).into(),
            ports: export.ports.iter().map(Into::into).collect(),
            client_ip_affinity_seconds: export.client_ip_affinity.map_or(0, whole_seconds),
            ip_families: export.ip_families.iter().map(|family| wire::IpFamily::from(*family).into()).collect(),
            internal_traffic_policy: export.internal_traffic_policy.clone(),
            traffic_distribution: export.traffic_distribution.clone(),
            labels: export.labels.clone(),
            annotations: export.annotations.clone(),
            created_at: unix::seconds(export.created),
            service_accounts: export.service_accounts.clone(),
            zones: export.zones.iter().map(Into::into).collect(),
        }
    }
}

impl From<ServiceType> for wire::ServiceType {
    fn from(service_type: ServiceType) -> Self {
        match service_type {
            ServiceType::ClusterSetIP => Self::ClusterSetIp,
            ServiceType::Headless => Self::Headless,
        }
    }
}

impl TryFrom<wire::ServiceType> for ServiceType {
    type Error = ConvertError;

    fn try_from(service_type: wire::ServiceType) -> Result<Self, ConvertError> {
        match service_type {
            wire::ServiceType::ClusterSetIp => Ok(Self::ClusterSetIP),
            wire::ServiceType::Headless => Ok(Self::Headless),
            wire::ServiceType::Unspecified => Err(ConvertError::new("type", "is missing or unknown")),
        }
    }
}

impl From<IpFamily> for wire::IpFamily {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::IPv4 => Self::V4,
            IpFamily::IPv6 => Self::V6,
        }
    }
}

fn service_type(number: i32) -> Result<ServiceType, ConvertError> {
    wire::ServiceType::try_from(number).unwrap_or_default().try_into()
}

/// An affinity shorter than a second is still one: 0 says that there is none.
fn whole_seconds(affinity: Duration) -> u32 {
    u32::try_from(affinity.as_secs()).unwrap_or(MAX_AFFINITY_SECONDS).clamp(1, MAX_AFFINITY_SECONDS)
}

fn affinity(seconds: u32) -> Result<Option<Duration>, ConvertError> {
    if seconds > MAX_AFFINITY_SECONDS {
        let problem = format!("{seconds} is more than {MAX_AFFINITY_SECONDS}");
        return Err(ConvertError::new("client_ip_affinity_seconds", problem));
    }
    Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
}

fn ports(ports: Vec<wire::Port>) -> Result<Vec<Port>, ConvertError> {
    let ports = each("ports", ports, MAX_PORTS, Port::try_from)?;
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        if !names.insert(&port.name) {
            return Err(ConvertError::new(format!("ports[{index}].name"), format!("{} is there twice", port.name)));
        }
        if !numbers.insert((port.port, port.protocol)) {
            let problem = format!("{}/{} is there twice", port.port, port.protocol);
            return Err(ConvertError::new(format!("ports[{index}].port"), problem));
        }
    }
    Ok(ports)
}

fn ip_families(families: Vec<i32>) -> Result<Vec<IpFamily>, ConvertError> {
    let families = each("ip_families", families, 2, |number| match wire::IpFamily::try_from(number) {
        Ok(wire::IpFamily::V4) => Ok(IpFamily::IPv4),
        Ok(wire::IpFamily::V6) => Ok(IpFamily::IPv6),
        Ok(wire::IpFamily::Unspecified) | Err(_) => Err(ConvertError::new("family", format!("{number} is unknown"))),
    })?;
    match families.as_slice() {
        [first, second] if first == second => Err(ConvertError::new("ip_families", "one is there twice")),
        _ => Ok(families),
    }
}

fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ConvertError> {
    if labels.len() > MAX_METADATA {
        return Err(ConvertError::new("labels", format!("{} entries, allowed are {MAX_METADATA}", labels.len())));
    }
    for (key, value) in &labels {
        let field = format!("labels[{}]", shown(key));
        visible(&field, key.clone(), MAX_QUALIFIED_NAME)?;
        visible(&field, value.clone(), MAX_LABEL_VALUE)?;
    }
    Ok(labels)
}

fn annotations(annotations: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ConvertError> {
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_ANNOTATIONS_BYTES || annotations.len() > MAX_METADATA {
        let problem = format!("{} entries of {bytes} bytes are more than allowed", annotations.len());
        return Err(ConvertError::new("annotations", problem));
    }
    for key in annotations.keys() {
        visible(&format!("annotations[{}]", shown(key)), key.clone(), MAX_QUALIFIED_NAME)?;
    }
    Ok(annotations)
}

fn service_accounts(accounts: Vec<String>) -> Result<Vec<String>, ConvertError> {
    at_most("service_accounts", &accounts, MAX_SERVICE_ACCOUNTS)?;
    let check = |(index, account)| object_name(&format!("service_accounts[{index}]"), account);
    accounts.into_iter().enumerate().map(check).collect()
}

/// Sorted, as the domain wants them; a zone listed twice would count twice.
fn zones(zones: Vec<wire::ZoneCapacity>) -> Result<Vec<ZoneCapacity>, ConvertError> {
    let mut zones = each("zones", zones, MAX_ZONES, ZoneCapacity::try_from)?;
    zones.sort_by(|a, b| a.locality.cmp(&b.locality));
    match zones.windows(2).find(|pair| pair[0].locality == pair[1].locality) {
        Some(pair) => Err(ConvertError::new("zones", format!("{} is there twice", pair[0].locality))),
        None => Ok(zones),
    }
}
