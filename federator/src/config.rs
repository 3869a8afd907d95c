//! The service's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use federation_store::StoreConfig;
use mesh_runtime::{Configuration, RuntimeConfig};
use serde::Deserialize;

/// `federator --config FILE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Logs, metrics, health.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// Where `federation.v1` is served, by convention port 15012.
    pub listen: SocketAddr,
    /// The folder `federator` that `trust-bundle init` wrote: the service's certificate, the pins, the addresses.
    pub service_directory: PathBuf,
    /// Where the last good trust state is kept.
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
    /// What one cluster may use.
    #[serde(default)]
    pub quota: Quota,
}

/// What one cluster may use.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Quota {
    /// Live exports and headless slices.
    pub exports: usize,
    /// Bytes of one record.
    pub record_bytes: usize,
    /// Records in one message.
    pub publish_records: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { exports: 5_000, record_bytes: 64 * 1024, publish_records: 100 }
    }
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
        if self.quota.publish_records == 0 || self.quota.record_bytes == 0 || self.quota.exports == 0 {
            problems.push("quota: every limit must be at least 1".to_owned());
        }
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
