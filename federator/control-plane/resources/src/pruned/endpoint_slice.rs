//! discovery.k8s.io/v1 EndpointSlice.

use std::net::IpAddr;

use federation::{HostLabel, Namespace, Protocol, ServiceName};
use k8s_openapi::api::discovery::v1 as discovery;

use super::metadata;
use crate::resource::FieldError;

/// Names the Service that a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A slice of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its own name.
    pub name: String,
    /// The service of the same namespace that it belongs to; `None` when it belongs to no local one, as the slices that
    /// a multi-cluster controller writes for imports.
    pub service: Option<ServiceName>,
    /// Its ports.
    pub ports: Vec<EndpointPort>,
    /// Its endpoints; those of FQDN slices are left out.
    pub endpoints: Vec<Endpoint>,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The service port's name.
    pub name: String,
    /// The number that the pods listen on: the service port's target, resolved; `None` stands for any.
    pub port: Option<u16>,
    /// The transport.
    pub protocol: Protocol,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// May take traffic; unknown counts as ready, as Kubernetes says.
    pub ready: bool,
    /// Its host name in a headless service.
    pub hostname: Option<HostLabel>,
    /// Its node.
    pub node: Option<String>,
    /// Its zone, as the slice says it.
    pub zone: Option<String>,
    /// The pod behind it, of the same namespace.
    pub pod: Option<String>,
}

impl TryFrom<&discovery::EndpointSlice> for EndpointSlice {
    type Error = FieldError;

    fn try_from(slice: &discovery::EndpointSlice) -> Result<Self, FieldError> {
        let fqdn = match slice.address_type.as_str() {
            "IPv4" | "IPv6" => false,
            "FQDN" => true,
            other => {
                return Err(FieldError::new("addressType", format_args!("{other:?} is none of IPv4, IPv6, FQDN")));
            }
        };
        let endpoints = if fqdn { &[] } else { slice.endpoints.as_deref().unwrap_or_default() };
        Ok(Self {
            namespace: metadata::namespace(&slice.metadata)?,
            name: metadata::name(&slice.metadata)?,
            service: service(slice)?,
            ports: slice.ports.iter().flatten().enumerate().map(port).collect::<Result<_, _>>()?,
            endpoints: endpoints.iter().enumerate().map(endpoint).collect::<Result<_, _>>()?,
        })
    }
}

fn service(slice: &discovery::EndpointSlice) -> Result<Option<ServiceName>, FieldError> {
    let Some(name) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL)) else {
        return Ok(None);
    };
    let parsed = name.parse().map_err(|error| FieldError::new(format!("metadata.labels.{SERVICE_LABEL}"), error))?;
    Ok(Some(parsed))
}

fn port((index, port): (usize, &discovery::EndpointPort)) -> Result<EndpointPort, FieldError> {
    let field = |name: &str| format!("ports[{index}].{name}");
    Ok(EndpointPort {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.map(|number| metadata::port(number, || field("port"))).transpose()?,
        protocol: metadata::protocol(port.protocol.as_deref(), || field("protocol"))?,
    })
}

fn endpoint((index, endpoint): (usize, &discovery::Endpoint)) -> Result<Endpoint, FieldError> {
    let field = |name: &str| format!("endpoints[{index}].{name}");
    if endpoint.addresses.is_empty() {
        return Err(FieldError::new(field("addresses"), "empty"));
    }
    let addresses = endpoint.addresses.iter().enumerate().map(|(position, text)| {
        text.parse().map_err(|_| {
            FieldError::new(field(&format!("addresses[{position}]")), format_args!("{text:?} is no address"))
        })
    });
    let hostname = endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty());
    let hostname = hostname.map(str::parse).transpose().map_err(|error| FieldError::new(field("hostname"), error));
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    Ok(Endpoint {
        addresses: addresses.collect::<Result<_, _>>()?,
        ready: endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true),
        hostname: hostname?,
        node: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        pod: pod.and_then(|target| target.name.clone()),
    })
}
