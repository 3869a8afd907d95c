//! The service's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use federation_store::StoreConfig;
use mesh_runtime::{Configuration, RuntimeConfig};
use mesh_tls::rpc::AcceptLimits;
use serde::Deserialize;

use crate::quota::Quota;

/// `federator --config FILE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Logs, metrics, health.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// Where `federation.v1` is served, by convention port 15012.
    pub listen: SocketAddr,
    /// The folder `federator` that `trust-bundle init` wrote: the service's first certificate, the pins, the addresses. It is
    /// only read; other files put there later count from the next start on.
    pub service_directory: PathBuf,
    /// Where the last good trust state is kept, the renewed certificate, and the federation's roots as they are now.
    pub state_directory: PathBuf,
    /// Where the state is kept: `embedded: {file}`, or `etcd: {endpoints, caFile, certificateFile, keyFile, prefix}`, which
    /// replicas share.
    pub store: StoreConfig,
    /// This replica's name, for logs and status.
    #[serde(default = "default_replica")]
    pub replica: String,
    /// How often control-planes send heartbeats; a cluster is suspect after three were missed.
    #[serde(default = "default_heartbeat", with = "mesh_runtime::duration")]
    pub heartbeat_interval: Duration,
    /// Connections that are not yet authenticated, at most.
    #[serde(default = "default_pending_handshakes")]
    pub pending_handshakes: usize,
    /// Of these, from one address at most; further ones are closed at once. More where clusters share an address, behind a
    /// translation of addresses or a balancer.
    #[serde(default = "default_pending_handshakes_per_source")]
    pub pending_handshakes_per_source: usize,
    /// What one cluster may use.
    #[serde(default)]
    pub quota: Quota,
}

fn default_replica() -> String {
    "federator-0".to_owned()
}

fn default_heartbeat() -> Duration {
    Duration::from_secs(2)
}

fn default_pending_handshakes() -> usize {
    1024
}

fn default_pending_handshakes_per_source() -> usize {
    AcceptLimits::default().handshakes_per_source
}

impl Configuration for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.store.problems();
        if self.heartbeat_interval < Duration::from_millis(100) {
            problems.push("heartbeatInterval: must be at least 100ms".to_owned());
        }
        if self.pending_handshakes == 0 {
            problems.push("pendingHandshakes: must be at least 1".to_owned());
        }
        if self.pending_handshakes_per_source == 0 {
            problems.push("pendingHandshakesPerSource: must be at least 1".to_owned());
        }
        problems.extend(self.quota.problems());
        for (field, directory) in
            [("serviceDirectory", &self.service_directory), ("stateDirectory", &self.state_directory)]
        {
            if !directory.is_dir() {
                problems.push(format!("{field}: {} is no directory", directory.display()));
            }
        }
        problems
    }
}
