//! The cluster's own roots, where the pods of its gateways and sidecars find them: a ConfigMap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use spiffe_identity::pem;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use super::{FIELD_MANAGER, MANAGED_BY};
use crate::snapshot::Snapshot;

/// The ConfigMap, in the control-plane's own namespace.
pub const ROOTS_CONFIG_MAP: &str = "isthmus-root";

/// Its key: certificates in PEM, while a root is replaced more than one.
pub const ROOTS_KEY: &str = "root.crt";

/// One request.
const REQUEST: Duration = Duration::from_secs(10);

/// After a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Writes the roots whenever they change, until nobody shows snapshots any more.
pub async fn tell_roots(client: Client, namespace: String, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let mut told = None;
    loop {
        let bundle = Arc::clone(&snapshots.borrow_and_update().own_bundle);
        let mut failed = false;
        if !bundle.roots.is_empty() && told.as_ref() != Some(&bundle) {
            let text = pem::certificates_to_pem(&bundle.roots);
            match timeout(REQUEST, apply(&maps, text)).await {
                Ok(Ok(())) => told = Some(bundle),
                Ok(Err(error)) => {
                    warn!(%error, "the ConfigMap {ROOTS_CONFIG_MAP} is not written");
                    failed = true;
                }
                Err(_) => {
                    warn!("the ConfigMap {ROOTS_CONFIG_MAP} is not written: no answer within {REQUEST:?}");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if failed => {}
        }
    }
}

async fn apply(maps: &Api<ConfigMap>, text: String) -> Result<(), kube::Error> {
    let labels = BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())]);
    let name = Some(ROOTS_CONFIG_MAP.to_owned());
    let map = ConfigMap {
        metadata: ObjectMeta { name, labels: Some(labels), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(ROOTS_KEY.to_owned(), text)])),
        ..ConfigMap::default()
    };
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    maps.patch(ROOTS_CONFIG_MAP, &parameters, &Patch::Apply(&map)).await.map(|_| ())
}
