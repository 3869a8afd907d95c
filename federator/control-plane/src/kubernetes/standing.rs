//! Addresses that imports have already: what a control-plane that lost its disk goes on with.

use std::net::IpAddr;
use std::time::Duration;

use federation::{ServiceHost, ServiceId};
use federation_resources::mcs::ServiceImport;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::MANAGED_BY;
use super::writer::{HEADLESS_LABEL, SERVICE_NAME_LABEL, SLICE_MANAGED_BY, SLICE_MANAGER, SOURCE_CLUSTER_LABEL};

/// Objects asked for at once.
const PAGE: u32 = 500;

/// One page.
const REQUEST: Duration = Duration::from_secs(10);

/// Why they are not known.
#[derive(Debug, thiserror::Error)]
pub enum StandingError {
    /// The API server's answer.
    #[error("the imports that are there cannot be listed: {0}")]
    Api(#[from] kube::Error),
    /// It gave none.
    #[error("the imports that are there cannot be listed: no answer within {REQUEST:?}")]
    Silent,
}

/// The addresses of the imports that a control-plane of this cluster has written, and those of headless endpoints. None where
/// the kinds are not defined. What is no address of this cluster's ranges, as the own pods' are none, is for the caller to
/// leave out.
///
/// # Errors
/// [`StandingError`]
pub async fn standing_addresses(client: &Client) -> Result<Vec<(ServiceHost, IpAddr)>, StandingError> {
    let imports = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
    let slices = format!("{SLICE_MANAGED_BY}={SLICE_MANAGER},{HEADLESS_LABEL}");
    let mut addresses = Vec::new();
    all::<ServiceImport>(client, &imports, |import| addresses.extend(of_import(import))).await?;
    all::<EndpointSlice>(client, &slices, |slice| addresses.extend(of_slice(slice))).await?;
    Ok(addresses)
}

/// Every object of a kind with these labels, page by page.
async fn all<K>(client: &Client, labels: &str, mut each: impl FnMut(&K)) -> Result<(), StandingError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let mut page = ListParams::default().labels(labels).limit(PAGE);
    loop {
        let listed = match timeout(REQUEST, api.list(&page)).await.map_err(|_| StandingError::Silent)? {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            listed => listed?,
        };
        listed.iter().for_each(&mut each);
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(()),
        }
    }
}

fn of_import(import: &ServiceImport) -> Vec<(ServiceHost, IpAddr)> {
    let id = ServiceId::parse_parts(&import.namespace().unwrap_or_default(), &import.name_any());
    let parsed = import.spec.ips.iter().filter_map(|ip| ip.parse().ok());
    id.map(|id| parsed.map(|ip| (id.host(), ip)).collect()).unwrap_or_default()
}

fn of_slice(slice: &EndpointSlice) -> Vec<(ServiceHost, IpAddr)> {
    let label = |name: &str| slice.labels().get(name).map(String::as_str).unwrap_or_default();
    let id = ServiceId::parse_parts(&slice.namespace().unwrap_or_default(), label(SERVICE_NAME_LABEL));
    let (Ok(id), Ok(cluster)) = (id, label(SOURCE_CLUSTER_LABEL).parse()) else { return Vec::new() };
    let cluster: federation::ClusterName = cluster;
    let endpoints = slice.endpoints.iter().flatten();
    let host = |hostname: &str| id.endpoint_host(cluster.clone(), hostname.parse().ok()?).ok();
    let named = endpoints.filter_map(|endpoint| Some((host(endpoint.hostname.as_ref()?)?, &endpoint.addresses)));
    let of = |(host, addresses): (ServiceHost, &Vec<String>)| {
        let addresses = addresses.iter().filter_map(|address| address.parse().ok());
        addresses.map(|address| (host.clone(), address)).collect::<Vec<_>>()
    };
    named.flat_map(of).collect()
}
