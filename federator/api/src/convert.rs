//! Wire messages to the domain's types and back.
//!
//! From the wire everything is checked, and the error names the field as the .proto file spells it, for example
//! `ports[2].port: 70000 is not from 1 to 65535`. To the wire nothing can fail.

mod export;
mod gateway;

use federation::{Locality, Port, Protocol, ZoneCapacity};

use crate::record::v1 as wire;

pub(crate) use gateway::{slice_from_wire, slice_to_wire};

/// More than any service has; a bound on what one message makes a receiver keep.
pub const MAX_PORTS: usize = 256;
/// Zones of one export.
pub const MAX_ZONES: usize = 256;
/// Gateways of one cluster.
pub const MAX_GATEWAYS: usize = 256;
/// Endpoints of one slice, Kubernetes' own limit.
pub const MAX_SLICE_ENDPOINTS: usize = 1_000;
/// Addresses of one endpoint.
pub const MAX_ENDPOINT_ADDRESSES: usize = 100;
/// Service accounts of one export.
pub const MAX_SERVICE_ACCOUNTS: usize = 256;
/// Exported labels or annotations of one export.
pub const MAX_METADATA: usize = 256;

/// A message that cannot be one of the domain's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// The field, as the .proto file names it, with its path.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ConvertError {
    pub(crate) fn new(field: impl Into<String>, problem: impl ToString) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }

    /// The same error, seen from the message around it.
    #[must_use]
    pub fn within(mut self, field: &str) -> Self {
        self.field = format!("{field}.{}", self.field);
        self
    }
}

/// Peer-made text in an error stays short.
pub(crate) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

pub(crate) fn at_most<T>(field: &str, items: &[T], limit: usize) -> Result<(), ConvertError> {
    if items.len() > limit {
        return Err(ConvertError::new(field, format!("{} entries, allowed are {limit}", items.len())));
    }
    Ok(())
}

/// Converts each item, with its index in the error's path.
pub(crate) fn each<T, U>(
    field: &str,
    items: Vec<T>,
    limit: usize,
    convert: impl Fn(T) -> Result<U, ConvertError>,
) -> Result<Vec<U>, ConvertError> {
    at_most(field, &items, limit)?;
    let convert_one = |(index, item)| convert(item).map_err(|error| error.within(&format!("{field}[{index}]")));
    items.into_iter().enumerate().map(convert_one).collect()
}

/// Empty, or visible ASCII of a bounded length.
pub(crate) fn visible(field: &str, text: String, limit: usize) -> Result<String, ConvertError> {
    if text.len() > limit {
        return Err(ConvertError::new(field, format!("{} bytes, allowed are {limit}", text.len())));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConvertError::new(field, format!("{} has other than visible ASCII characters", shown(&text))));
    }
    Ok(text)
}

/// A Kubernetes object name: an RFC 1123 subdomain.
pub(crate) fn object_name(field: &str, text: String) -> Result<String, ConvertError> {
    let valid = text.len() <= 253 && text.split('.').all(|label| federation::Namespace::parse(label).is_ok());
    if !valid {
        return Err(ConvertError::new(field, format!("{} is no RFC 1123 subdomain", shown(&text))));
    }
    Ok(text)
}

pub(crate) fn port_number(field: &str, port: u32) -> Result<u16, ConvertError> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ConvertError::new(field, format!("{port} is not from 1 to 65535"))),
    }
}

impl TryFrom<wire::Locality> for Locality {
    type Error = ConvertError;

    /// Both parts are label values, since they come from a node's labels.
    fn try_from(locality: wire::Locality) -> Result<Self, ConvertError> {
        Ok(Self { region: visible("region", locality.region, 63)?, zone: visible("zone", locality.zone, 63)? })
    }
}

impl From<&Locality> for wire::Locality {
    fn from(locality: &Locality) -> Self {
        Self { region: locality.region.clone(), zone: locality.zone.clone() }
    }
}

/// An absent locality is an unknown one.
pub(crate) fn locality(locality: Option<wire::Locality>) -> Result<Locality, ConvertError> {
    Locality::try_from(locality.unwrap_or_default()).map_err(|error| error.within("locality"))
}

impl TryFrom<wire::ZoneCapacity> for ZoneCapacity {
    type Error = ConvertError;

    fn try_from(zone: wire::ZoneCapacity) -> Result<Self, ConvertError> {
        Ok(Self { locality: locality(zone.locality)?, total: zone.total, ready: zone.ready })
    }
}

impl From<&ZoneCapacity> for wire::ZoneCapacity {
    fn from(zone: &ZoneCapacity) -> Self {
        Self { locality: Some((&zone.locality).into()), total: zone.total, ready: zone.ready }
    }
}

impl TryFrom<wire::Port> for Port {
    type Error = ConvertError;

    fn try_from(port: wire::Port) -> Result<Self, ConvertError> {
        let protocol = match port.protocol() {
            wire::Protocol::Tcp => Protocol::Tcp,
            wire::Protocol::Udp => Protocol::Udp,
            wire::Protocol::Sctp => Protocol::Sctp,
            wire::Protocol::Unspecified => {
                return Err(ConvertError::new("protocol", format!("{} is unknown", port.protocol)));
            }
        };
        if !port.name.is_empty() && federation::Namespace::parse(&port.name).is_err() {
            return Err(ConvertError::new("name", format!("{} is no RFC 1123 label", shown(&port.name))));
        }
        Ok(Self {
            name: port.name,
            port: port_number("port", port.port)?,
            protocol,
            app_protocol: visible("app_protocol", port.app_protocol, 317)?,
        })
    }
}

impl From<&Port> for wire::Port {
    fn from(port: &Port) -> Self {
        let protocol = match port.protocol {
            Protocol::Tcp => wire::Protocol::Tcp,
            Protocol::Udp => wire::Protocol::Udp,
            Protocol::Sctp => wire::Protocol::Sctp,
        };
        Self {
            name: port.name.clone(),
            port: port.port.into(),
            protocol: protocol.into(),
            app_protocol: port.app_protocol.clone(),
        }
    }
}
