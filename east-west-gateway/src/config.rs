//! The configuration file: camelCase YAML. Every problem is reported at once, before anything is bound.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use federation::{ClusterName, Locality};
use ipnet::IpNet;
use mesh_runtime::{Configuration, RuntimeConfig};
use relay::{HelloLimits, RelayOptions};
use serde::Deserialize;
use spiffe_identity::{SpiffeId, TrustDomain};

/// Namespace and service account of every cluster's control-plane.
const CONTROL_PLANE_ACCOUNT: (&str, &str) = ("isthmus-system", "control-plane");

/// The gateway's port, seen from outside.
const PORT: u16 = 15443;

/// The port for sidecars of the own cluster.
const EGRESS_PORT: u16 = 15444;

/// Networks that are never routed between strangers: RFC 1918, RFC 6598, loopback, unique local IPv6.
const PRIVATE: [&str; 7] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "::1/128", "fc00::/7"];

/// A gateway's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Process plumbing: admin and health listeners, logs, traces, the drain's deadline.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// For logs and status, unique among the cluster's gateways: a pod's name.
    pub name: String,
    /// Where connections from outside are accepted; `[::]:15443` if absent.
    #[serde(default = "everywhere")]
    pub listen: Vec<SocketAddr>,
    /// Threads that pass connections on; as many as there are cores if 0 or absent.
    #[serde(default)]
    pub workers: usize,
    /// Load balancers in front, by their addresses: from these, and only these, every connection begins with a header of the PROXY
    /// protocol, version 2. None if absent.
    #[serde(default)]
    pub proxy_protocol_from: Vec<IpNet>,
    /// Where other clusters reach this gateway; told to them through the control-plane.
    pub advertise: AdvertiseConfig,
    /// The way out to other clusters, for the cluster's own sidecars. None if absent.
    #[serde(default)]
    pub egress: Option<EgressConfig>,
    /// Where this gateway runs: endpoints of its own zone come first.
    #[serde(default)]
    pub locality: Locality,
    /// The control-plane, and how it is recognised.
    pub discovery: DiscoveryConfig,
    /// Keeps the gateway's own SVID with its key, and the last good state. Created with mode 0700 if absent.
    pub state_directory: PathBuf,
    /// Reaching endpoints.
    #[serde(default)]
    pub connect: ConnectConfig,
    /// What strangers may cost.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// Where other clusters reach a gateway.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AdvertiseConfig {
    /// An IP address or a host name.
    pub address: String,
    /// The port; 15443 if absent.
    #[serde(default = "port")]
    pub port: u16,
}

/// The way out to other clusters, for sidecars that may not dial out themselves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EgressConfig {
    /// Where the cluster's own sidecars are accepted; `[::]:15444` if absent. Other clusters must not reach it.
    #[serde(default = "everywhere_inside")]
    pub listen: Vec<SocketAddr>,
    /// Where the cluster's own sidecars reach it: an IP address or a host name. The pod's own address, not a load balancer's.
    pub address: String,
    /// The port there; 15444 if absent.
    #[serde(default = "egress_port")]
    pub port: u16,
    /// The cluster's own networks: connections from elsewhere are reset. Private networks if absent; where other clusters are on
    /// such networks too, name the pods'.
    #[serde(default = "private_networks")]
    pub allowed_sources: Vec<IpNet>,
}

/// The control-plane, and how it is recognised.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DiscoveryConfig {
    /// `host:port`, tried in turn.
    pub addresses: Vec<String>,
    /// The cluster's trust domain, `<cluster>.<federation domain>`. The control-plane must show
    /// `spiffe://<trust domain>/ns/isthmus-system/sa/control-plane`.
    pub trust_domain: String,
    /// The cluster's root certificates, PEM: the pin for the first contact.
    pub root_file: PathBuf,
    /// The service-account token shown when there is no valid SVID yet. Read again for every use.
    pub token_file: PathBuf,
}

impl DiscoveryConfig {
    /// The parsed trust domain.
    ///
    /// # Errors
    /// A sentence naming the field.
    pub fn trust_domain(&self) -> Result<TrustDomain, String> {
        self.trust_domain.parse().map_err(|error| format!("discovery.trustDomain: {error}"))
    }

    /// Who the control-plane must be.
    ///
    /// # Errors
    /// A sentence naming the field.
    pub fn control_plane(&self) -> Result<SpiffeId, String> {
        let (namespace, account) = CONTROL_PLANE_ACCOUNT;
        SpiffeId::workload(&self.trust_domain()?, namespace, account)
            .map_err(|error| format!("discovery.trustDomain: {error}"))
    }

    /// The cluster that this gateway belongs to: the first label of its trust domain.
    ///
    /// # Errors
    /// A sentence naming the field.
    pub fn cluster(&self) -> Result<ClusterName, String> {
        let (label, _) = self
            .trust_domain
            .split_once('.')
            .ok_or("discovery.trustDomain: must be of the form <cluster>.<federation domain>")?;
        label.parse().map_err(|error| format!("discovery.trustDomain: {error}"))
    }
}

/// Reaching endpoints.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ConnectConfig {
    /// All attempts for one connection together; `1s`, no longer than a caller waits before it tries another gateway.
    #[serde(with = "mesh_runtime::duration")]
    pub budget: Duration,
    /// One attempt, while another endpoint is left to try; `250ms`.
    #[serde(with = "mesh_runtime::duration")]
    pub attempt: Duration,
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self { budget: Duration::from_secs(1), attempt: Duration::from_millis(250) }
    }
}

/// What strangers may cost.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LimitsConfig {
    /// Connections at a time; 20000. One more is reset, so that its caller goes elsewhere at once.
    pub max_connections: usize,
    /// Connections to one service, or out to one cluster, at a time; 10000. One more gets an alert, so that its caller goes elsewhere at once.
    pub max_connections_per_service: usize,
    /// Connections of one source address (an IPv4 address, or an IPv6 /64) at a time whose hello has not arrived; 256.
    pub max_pending_per_source: u32,
    /// Resident bytes above which new connections are reset. If absent, nine tenths of the container's memory limit, in which
    /// the kernel counts socket buffers too; without such a limit there is none here.
    pub max_memory: Option<u64>,
    /// Pipes of 1 MiB through which bulk is passed on without being copied, two descriptors each; 64. 0: all is copied.
    pub max_pipes: usize,
    /// The bytes within which a ClientHello must end; 16384.
    pub hello_max_bytes: usize,
    /// The time in which a ClientHello must arrive; `3s`.
    #[serde(with = "mesh_runtime::duration")]
    pub hello_deadline: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let hello = HelloLimits::default();
        Self {
            max_connections: 20_000,
            max_connections_per_service: 10_000,
            max_pending_per_source: 256,
            max_memory: None,
            max_pipes: RelayOptions::default().max_pipes,
            hello_max_bytes: hello.max_bytes,
            hello_deadline: hello.deadline,
        }
    }
}

impl LimitsConfig {
    /// The part that the ClientHello reader enforces.
    #[must_use]
    pub const fn hello(&self) -> HelloLimits {
        HelloLimits { max_bytes: self.hello_max_bytes, deadline: self.hello_deadline }
    }
}

/// The smallest hello limit that lets every genuine client in: hybrid key shares, ECH, long tickets.
const LEAST_HELLO_BYTES: usize = 4096;

/// More threads than any machine has cores.
const MAX_WORKERS: usize = 1024;

impl Configuration for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        require(!self.name.is_empty(), "name: must not be empty");
        require(!self.listen.is_empty(), "listen: name at least one address");
        require(!self.advertise.address.is_empty(), "advertise.address: must not be empty");
        require(self.advertise.port > 0, "advertise.port: must be more than zero");
        if let Some(egress) = &self.egress {
            require(!egress.listen.is_empty(), "egress.listen: name at least one address");
            require(!egress.address.is_empty(), "egress.address: must not be empty");
            require(egress.port > 0, "egress.port: must be more than zero");
            require(!egress.allowed_sources.is_empty(), "egress.allowedSources: name at least one network");
            require(
                !egress.listen.iter().any(|address| address.port() != 0 && self.listen.contains(address)),
                "egress.listen: must not be in listen too",
            );
        }
        require(!self.discovery.addresses.is_empty(), "discovery.addresses: name at least one host:port");
        require(
            self.discovery.addresses.iter().all(|address| is_host_and_port(address)),
            "discovery.addresses: each must be host:port",
        );
        require(!self.state_directory.as_os_str().is_empty(), "stateDirectory: must not be empty");
        require(!self.connect.attempt.is_zero(), "connect.attempt: must be more than zero");
        require(self.connect.attempt <= self.connect.budget, "connect.budget: must not be below connect.attempt");
        require(self.limits.max_connections > 0, "limits.maxConnections: must be more than zero");
        require(self.limits.max_connections_per_service > 0, "limits.maxConnectionsPerService: must be more than zero");
        require(self.limits.max_pending_per_source > 0, "limits.maxPendingPerSource: must be more than zero");
        require(self.limits.max_memory != Some(0), "limits.maxMemory: must be more than zero");
        require(self.workers <= MAX_WORKERS, "workers: must not be above 1024");
        require(self.limits.hello_max_bytes >= LEAST_HELLO_BYTES, "limits.helloMaxBytes: must be at least 4096");
        require(!self.limits.hello_deadline.is_zero(), "limits.helloDeadline: must be more than zero");
        problems.extend(self.discovery.control_plane().err());
        problems.extend(self.discovery.cluster().err());
        problems
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn everywhere() -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT))]
}

fn everywhere_inside() -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, EGRESS_PORT))]
}

fn private_networks() -> Vec<IpNet> {
    PRIVATE.iter().filter_map(|network| network.parse().ok()).collect()
}

const fn port() -> u16 {
    PORT
}

const fn egress_port() -> u16 {
    EGRESS_PORT
}
