//! Addresses that ServiceImports have already: what a control-plane that lost its disk goes on with.

use std::net::IpAddr;
use std::time::Duration;

use federation::ServiceId;
use federation_resources::mcs::ServiceImport;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tokio::time::timeout;

use super::MANAGED_BY;

/// Imports asked for at once.
const PAGE: u32 = 500;

/// One page.
const REQUEST: Duration = Duration::from_secs(10);

/// Why they are not known.
#[derive(Debug, thiserror::Error)]
pub enum StandingError {
    /// The API server's answer.
    #[error("the ServiceImports that are there cannot be listed: {0}")]
    Api(#[from] kube::Error),
    /// It gave none.
    #[error("the ServiceImports that are there cannot be listed: no answer within {REQUEST:?}")]
    Silent,
}

/// The addresses of the imports that a control-plane of this cluster has written. None where the kind is not defined.
///
/// # Errors
/// [`StandingError`]
pub async fn standing_addresses(client: &Client) -> Result<Vec<(ServiceId, IpAddr)>, StandingError> {
    let imports: Api<ServiceImport> = Api::all(client.clone());
    let mut page = ListParams::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1)).limit(PAGE);
    let mut addresses = Vec::new();
    loop {
        let listed = match timeout(REQUEST, imports.list(&page)).await.map_err(|_| StandingError::Silent)? {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(addresses),
            listed => listed?,
        };
        for import in &listed {
            let id = format!("{}/{}", import.namespace().unwrap_or_default(), import.name_any());
            let Ok(id) = id.parse::<ServiceId>() else { continue };
            let parsed = import.spec.ips.iter().filter_map(|ip| ip.parse().ok());
            addresses.extend(parsed.map(|ip: IpAddr| (id.clone(), ip)));
        }
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(addresses),
        }
    }
}
