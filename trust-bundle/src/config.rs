//! The service's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use federation_store::StoreConfig;
use mesh_runtime::{Configuration, RuntimeConfig};
use serde::Deserialize;
use spiffe_identity::{HINTS_BEFORE_USE, Pace};

use crate::endpoint::EndpointConfig;

/// Below this, renewing at half of it leaves too little time for a second attempt.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(20);

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
    /// Replicas share it, so that one of them can replace the authority for all: it must be writable then.
    pub service_directory: PathBuf,
    /// Where the state is kept: `embedded: {file}`, or `etcd: {endpoints, caFile, certificateFile, keyFile, prefix}`, which
    /// replicas share.
    pub store: StoreConfig,
    /// Where members' bundles are served to software outside the federation; absent: nowhere.
    #[serde(default)]
    pub bundle_endpoint: Option<EndpointConfig>,
    /// How long the certificates of the federation plane live; they are renewed at half of it.
    #[serde(default = "default_certificate_lifetime", with = "mesh_runtime::duration")]
    pub certificate_lifetime: Duration,
    /// How often those poll that do not watch: a new root of the federation's authority is published three times as long
    /// before it signs.
    #[serde(default = "default_minutes", with = "mesh_runtime::duration")]
    pub refresh_hint: Duration,
    /// How far clocks may be apart: the root before is published for so much longer than its certificates live.
    #[serde(default = "default_minutes", with = "mesh_runtime::duration")]
    pub clock_skew: Duration,
    /// Connections that are not yet authenticated, at most.
    #[serde(default = "default_pending_handshakes")]
    pub pending_handshakes: usize,
}

fn default_certificate_lifetime() -> Duration {
    Duration::from_secs(24 * 3600)
}

fn default_minutes() -> Duration {
    Duration::from_secs(300)
}

fn default_pending_handshakes() -> usize {
    256
}

impl Config {
    /// How long each phase of the authority's rotation waits.
    #[must_use]
    pub fn pace(&self) -> Pace {
        Pace {
            refresh_hint: self.refresh_hint,
            longest_svid: self.certificate_lifetime,
            skew: self.clock_skew,
            absence: HINTS_BEFORE_USE * self.refresh_hint,
            ..Pace::default()
        }
    }
}

impl Configuration for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.store.problems();
        if self.certificate_lifetime < SHORTEST_LIFETIME {
            problems.push("certificateLifetime: must be at least 20s".to_owned());
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
