//! EndpointSlices of imports, one source cluster in each.
//!
//! The cluster's own share are its pods. Pods of other clusters have no address here, since pod ranges may overlap: what
//! an application dials for them is the clusterset IP, or the address of the cluster's range that stands for a headless endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use federation::{HeadlessEndpoint, Port, ServiceType};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::ObjectMeta;

use crate::local::LocalEndpoint;
use crate::snapshot::{ExporterView, ServiceView};

/// Names the import.
pub const SERVICE_NAME_LABEL: &str = "multicluster.kubernetes.io/service-name";
/// Names the cluster that the endpoints are of.
pub const SOURCE_CLUSTER_LABEL: &str = "multicluster.kubernetes.io/source-cluster";
/// Who looks after a slice.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// We do.
pub const SLICE_MANAGER: &str = "isthmus.dev";

/// Says that the import is headless.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Endpoints of one slice, as the API's own controller has them.
const ENDPOINTS: usize = 100;

/// What endpoints of one slice have in common: their family, and the number behind each port's name.
type Shape = (bool, BTreeMap<String, Option<u16>>);

/// The slices of an import, by name, without their owner.
pub(super) fn of(view: &ServiceView) -> BTreeMap<String, EndpointSlice> {
    let mut slices = BTreeMap::new();
    for exporter in &view.clusters {
        let mut shapes: BTreeMap<Shape, Vec<Endpoint>> = BTreeMap::new();
        for (shape, endpoint) in endpoints(view, exporter) {
            shapes.entry(shape).or_default().push(endpoint);
        }
        for (shape, endpoints) in shapes {
            for (number, chunk) in endpoints.chunks(ENDPOINTS).enumerate() {
                let slice = slice(view, exporter, &shape, number, chunk);
                slices.insert(slice.metadata.name.clone().unwrap_or_default(), slice);
            }
        }
    }
    slices
}

fn endpoints(view: &ServiceView, exporter: &ExporterView) -> Vec<(Shape, Endpoint)> {
    let exposed = view.import.ports.iter().filter(|port| port.clusters.contains(&exporter.cluster));
    let declared: BTreeMap<String, Option<u16>> =
        exposed.map(|port| (port.port.name.clone(), Some(port.port.port))).collect();
    let headless = view.import.service_type == ServiceType::Headless;
    if exporter.local {
        let each = exporter.endpoints.iter().flat_map(|endpoint| {
            let targets: BTreeMap<_, _> = declared
                .iter()
                .map(|(name, port)| (name.clone(), endpoint.targets.get(name).copied().flatten().or(*port)))
                .collect();
            endpoint
                .addresses
                .iter()
                .filter(|address| is_allowed(**address))
                .map(move |address| ((address.is_ipv4(), targets.clone()), own(endpoint, *address, exporter, view)))
        });
        return each.collect();
    }
    if headless {
        let each = exporter.headless.iter().flat_map(|endpoint| {
            let declared = declared.clone();
            endpoint
                .addresses
                .iter()
                .filter(|address| is_allowed(**address))
                .map(move |address| ((address.is_ipv4(), declared.clone()), remote(endpoint, *address)))
        });
        return each.collect();
    }
    let ready = exporter.trusted && exporter.zones.iter().any(|zone| zone.ready > 0);
    let one = |address: &IpAddr| Endpoint {
        addresses: vec![address.to_string()],
        conditions: conditions(ready),
        ..Endpoint::default()
    };
    view.vips.iter().map(|address| ((address.is_ipv4(), declared.clone()), one(address))).collect()
}

/// The hostname of a pod of a headless service is the one that its own slice says.
fn own(endpoint: &LocalEndpoint, address: IpAddr, exporter: &ExporterView, view: &ServiceView) -> Endpoint {
    let named = exporter.headless.iter().find(|headless| headless.addresses.contains(&address));
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: conditions(endpoint.ready),
        hostname: named.and_then(|headless| headless.hostname.as_ref()).map(ToString::to_string),
        zone: zone(&endpoint.locality.zone),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(view.import.service.namespace.to_string()),
            name: Some(endpoint.pod.clone()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn remote(endpoint: &HeadlessEndpoint, address: IpAddr) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: conditions(endpoint.ready),
        hostname: endpoint.hostname.as_ref().map(ToString::to_string),
        zone: zone(&endpoint.locality.zone),
        ..Endpoint::default()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the field is optional")]
fn conditions(ready: bool) -> Option<EndpointConditions> {
    Some(EndpointConditions { ready: Some(ready), serving: Some(ready), terminating: Some(false) })
}

fn zone(zone: &str) -> Option<String> {
    Some(zone.to_owned()).filter(|zone| !zone.is_empty())
}

/// Addresses that the API refuses in slices, whatever a peer says.
fn is_allowed(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !link_local
}

fn slice(
    view: &ServiceView,
    exporter: &ExporterView,
    (ipv4, targets): &Shape,
    number: usize,
    endpoints: &[Endpoint],
) -> EndpointSlice {
    let service = &view.import.service;
    let ports = view.import.ports.iter().map(|port| &port.port);
    let ports = ports.filter_map(|port| targets.get(&port.name).map(|number| slice_port(port, *number)));
    let labels = [
        (SERVICE_NAME_LABEL, service.name.to_string()),
        (SOURCE_CLUSTER_LABEL, exporter.cluster.to_string()),
        (SLICE_MANAGED_BY, SLICE_MANAGER.to_owned()),
    ];
    let mut labels: BTreeMap<_, _> = labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if view.import.service_type == ServiceType::Headless {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    let family = if *ipv4 { "IPv4" } else { "IPv6" };
    let hash = digest(&SHA256, format!("{service}/{}/{family}/{targets:?}/{number}", exporter.cluster).as_bytes());
    let hash: String = hash.as_ref()[..5].iter().map(|byte| format!("{byte:02x}")).collect();
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(endpoints.to_vec()),
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", service.name)),
            namespace: Some(service.namespace.to_string()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        ports: Some(ports.collect()),
    }
}

fn slice_port(port: &Port, number: Option<u16>) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        port: number.map(i32::from),
        protocol: Some(port.protocol.to_string()),
        app_protocol: Some(port.app_protocol.clone()).filter(|protocol| !protocol.is_empty()),
    }
}
