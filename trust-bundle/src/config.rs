//! The service's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use federation_store::StoreConfig;
use mesh_runtime::{Configuration, RuntimeConfig};
use serde::Deserialize;

/// `trust-bundle --config FILE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Logs, metrics, health.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// Where `trust.v1` is served, by convention port 15012.
    pub listen: SocketAddr,
    /// The folder `service` that [`crate::init`] wrote: the federation's authority and the membership root's public half.
    pub service_directory: PathBuf,
    /// Where the state is kept: `embedded: {file}`, or `etcd: {endpoints, caFile, certificateFile, keyFile, prefix}`, which
    /// replicas share.
    pub store: StoreConfig,
    /// How long the certificates of the federation plane live; they are renewed at half of it.
    #[serde(default = "default_certificate_lifetime", with = "mesh_runtime::duration")]
    pub certificate_lifetime: Duration,
    /// Connections that are not yet authenticated, at most.
    #[serde(default = "default_pending_handshakes")]
    pub pending_handshakes: usize,
}

fn default_certificate_lifetime() -> Duration {
    Duration::from_secs(24 * 3600)
}

fn default_pending_handshakes() -> usize {
    256
}

impl Configuration for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.store.problems();
        if self.certificate_lifetime < Duration::from_secs(60) {
            problems.push("certificateLifetime: must be at least 60s".to_owned());
        }
        if self.pending_handshakes == 0 {
            problems.push("pendingHandshakes: must be at least 1".to_owned());
        }
        if !self.service_directory.is_dir() {
            problems.push(format!(
                "serviceDirectory: {} is no directory; `trust-bundle init` makes it",
                self.service_directory.display()
            ));
        }
        problems
    }
}
