//! Gateways and the endpoints of headless services.

use std::net::IpAddr;

use federation::{Gateway, GatewayAddress, HeadlessEndpoint, HostLabel};

use super::export::service_id;
use super::{
    ConvertError, MAX_ENDPOINT_ADDRESSES, MAX_SLICE_ENDPOINTS, at_most, each, locality, object_name, port_number, shown,
};
use crate::payload::Slice;
use crate::record::v1 as wire;

impl TryFrom<wire::Gateway> for Gateway {
    type Error = ConvertError;

    fn try_from(gateway: wire::Gateway) -> Result<Self, ConvertError> {
        Ok(Self {
            name: object_name("name", gateway.name)?,
            address: address(&gateway.address)?,
            port: port_number("port", gateway.port)?,
            locality: locality(gateway.locality)?,
            draining: gateway.draining,
        })
    }
}

impl From<&Gateway> for wire::Gateway {
    fn from(gateway: &Gateway) -> Self {
        Self {
            name: gateway.name.clone(),
            address: gateway.address.to_string(),
            port: gateway.port.into(),
            locality: Some((&gateway.locality).into()),
            draining: gateway.draining,
        }
    }
}

fn address(text: &str) -> Result<GatewayAddress, ConvertError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(GatewayAddress::Ip(address));
    }
    let host = text.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    // Resolvers take "127.1" and "2130706433" for addresses: what ends in a number is no host name (WHATWG URL, 3.5).
    let numeric = host.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    match object_name("address", host.to_owned()) {
        Ok(host) if !numeric => Ok(GatewayAddress::Host(host)),
        _ => Err(ConvertError::new("address", format!("{} is neither an IP address nor a host name", shown(text)))),
    }
}

impl TryFrom<wire::HeadlessEndpoint> for HeadlessEndpoint {
    type Error = ConvertError;

    fn try_from(endpoint: wire::HeadlessEndpoint) -> Result<Self, ConvertError> {
        at_most("addresses", &endpoint.addresses, MAX_ENDPOINT_ADDRESSES)?;
        let parse = |(index, text): (usize, &String)| {
            let problem =
                |_| ConvertError::new(format!("addresses[{index}]"), format!("{} is no address", shown(text)));
            text.parse::<IpAddr>().map_err(problem)
        };
        let hostname = Some(endpoint.hostname).filter(|hostname| !hostname.is_empty());
        let hostname = hostname.map(|hostname| HostLabel::parse(&hostname)).transpose();
        Ok(Self {
            hostname: hostname.map_err(|error| ConvertError::new("hostname", error))?,
            addresses: endpoint.addresses.iter().enumerate().map(parse).collect::<Result<_, _>>()?,
            locality: locality(endpoint.locality)?,
            ready: endpoint.ready,
            service_account: object_name("service_account", endpoint.service_account)?,
        })
    }
}

impl From<&HeadlessEndpoint> for wire::HeadlessEndpoint {
    fn from(endpoint: &HeadlessEndpoint) -> Self {
        Self {
            hostname: endpoint.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
            addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
            locality: Some((&endpoint.locality).into()),
            ready: endpoint.ready,
            service_account: endpoint.service_account.clone(),
        }
    }
}

pub(crate) fn slice_from_wire(slice: wire::EndpointSlice) -> Result<Slice, ConvertError> {
    Ok(Slice {
        service: service_id(&slice.namespace, &slice.service)?,
        name: object_name("slice", slice.slice)?,
        endpoints: each("endpoints", slice.endpoints, MAX_SLICE_ENDPOINTS, HeadlessEndpoint::try_from)?,
    })
}

pub(crate) fn slice_to_wire(slice: &Slice) -> wire::EndpointSlice {
    wire::EndpointSlice {
        namespace: slice.service.namespace.to_string(),
        service: slice.service.name.to_string(),
        slice: slice.name.clone(),
        endpoints: slice.endpoints.iter().map(Into::into).collect(),
    }
}
