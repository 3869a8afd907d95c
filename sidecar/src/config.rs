//! The configuration file.
//!
//! camelCase YAML; every problem is reported at once, before anything is bound.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mesh_runtime::{Configuration, RuntimeConfig};
use serde::Deserialize;
use spiffe_identity::{SpiffeId, TrustDomain};

/// Namespace and service account of every cluster's control-plane.
const CONTROL_PLANE_ACCOUNT: (&str, &str) = ("isthmus-system", "control-plane");

/// A sidecar's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Process plumbing: admin and health listeners, logs, traces, drain.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// The workload behind this sidecar.
    pub workload: WorkloadConfig,
    /// The control-plane, and how it is recognised.
    pub discovery: DiscoveryConfig,
    /// Where this sidecar listens.
    pub listeners: Listeners,
    /// Keeps the SVID with its key, and the last good state. Created with mode 0700 if absent.
    pub state_directory: PathBuf,
    /// How old the last confirmation of the federation's trust state may be before peers of other trust domains are not
    /// believed any more, new or connected; absent, the default: whatever its age, the last state goes on to be trusted.
    /// At least `1m`, since confirmations are told in steps. Peers of the own trust domain are spared: its roots are the
    /// cluster's own.
    #[serde(default, with = "mesh_runtime::duration::option")]
    pub max_trust_age: Option<Duration>,
    /// The SPIFFE Workload API for other programs of the workload; absent: not offered.
    #[serde(default)]
    pub workload_api: Option<WorkloadApiConfig>,
    /// What of the application's traffic the kernel is to hand over; absent: nothing, the application asks by itself.
    #[serde(default)]
    pub capture: Option<CaptureConfig>,
    /// Calls of the local application.
    #[serde(default)]
    pub outbound: OutboundConfig,
    /// Calls to the local application.
    #[serde(default)]
    pub inbound: InboundConfig,
}

/// The workload behind a sidecar.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadConfig {
    /// For logs and status, unique among the workloads of one identity: a pod's name.
    pub name: String,
    /// The pod's addresses, by which the control-plane finds its endpoints.
    pub addresses: Vec<IpAddr>,
    /// Where the application listens; the first of `addresses` if absent.
    #[serde(default)]
    pub app_address: Option<IpAddr>,
}

impl WorkloadConfig {
    /// Where the application listens.
    #[must_use]
    pub fn application(&self) -> IpAddr {
        self.app_address
            .or_else(|| self.addresses.first().copied())
            .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    }
}

/// The control-plane, and how it is recognised.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DiscoveryConfig {
    /// `host:port`, tried in turn.
    pub addresses: Vec<String>,
    /// The cluster's trust domain, for example `east.mesh.example`. The control-plane must show
    /// `spiffe://<trust domain>/ns/isthmus-system/sa/control-plane`.
    pub trust_domain: String,
    /// The cluster's root certificates, PEM: the pin for the first contact.
    pub root_file: PathBuf,
    /// The service-account token shown once, when there is no valid SVID yet. Read again for every use.
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
}

/// Where a sidecar listens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Listeners {
    /// The explicit proxy for the local application: HTTP and SOCKS5. Port 15001 by convention.
    pub outbound: Vec<SocketAddr>,
    /// Mesh connections. Port 15008 by convention.
    pub inbound: Vec<SocketAddr>,
    /// Captured DNS queries, UDP and TCP: 127.0.0.1 and `[::1]`, port 15053 by convention.
    #[serde(default)]
    pub dns: Vec<SocketAddr>,
    /// Plaintext connections to ports that a policy makes strict, handed over by the kernel to be refused: `0.0.0.0` and
    /// `[::]`, port 15006 by convention. Needs `capture`; absent: such policies are not kept.
    #[serde(default)]
    pub strict: Vec<SocketAddr>,
}

/// What of the application's traffic the kernel is to hand over; see [`crate::capture`].
///
/// Captured connections arrive at the loopback address of their family, so the outbound listeners must include
/// 127.0.0.1 (and `[::1]`), or the unspecified address.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CaptureConfig {
    /// Destinations to capture, the clusterset's addresses: `[241.0.0.0/8]`.
    pub ranges: Vec<IpNet>,
    /// Destinations within them that are left alone.
    pub excluded_ranges: Vec<IpNet>,
    /// Destination ports that are left alone.
    pub excluded_ports: Vec<u16>,
    /// User ids whose traffic is left alone, the sidecar's own among them: `[1337]`.
    pub excluded_users: Vec<u32>,
    /// Where a kubelet's probes come from, the node's own addresses: their plaintext reaches strict ports, too.
    pub probe_sources: Vec<IpNet>,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            ranges: vec![DEFAULT_CLUSTERSET_RANGE],
            excluded_ranges: Vec::new(),
            excluded_ports: Vec::new(),
            excluded_users: vec![DEFAULT_USER],
            probe_sources: Vec::new(),
        }
    }
}

/// Where a cluster gives services their addresses unless it is told otherwise.
const DEFAULT_CLUSTERSET_RANGE: IpNet = IpNet::new_assert(IpAddr::V4(std::net::Ipv4Addr::new(241, 0, 0, 0)), 8);

/// The user that a sidecar runs as by convention.
const DEFAULT_USER: u32 = 1337;

/// Calls of the local application.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct OutboundConfig {
    /// How long a request for a service not heard of before waits for the control-plane's answer; `2s`.
    #[serde(with = "mesh_runtime::duration")]
    pub lookup_deadline: Duration,
    /// Connections of the application at a time; 10000.
    pub max_connections: usize,
    /// Requests of the application at a time; 10000. One more is answered 503.
    pub max_requests: usize,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self { lookup_deadline: Duration::from_secs(2), max_connections: 10_000, max_requests: 10_000 }
    }
}

/// Calls to the local application.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct InboundConfig {
    /// Mesh connections at a time; 10000. One more is told that the sidecar is overloaded.
    pub max_connections: usize,
    /// Requests that the application has at a time, at most; 4096. While it is slower than usual they are fewer. One more is
    /// told to go elsewhere, or to come again.
    pub max_requests: u32,
    /// How long the application may take to accept a connection; `1s`.
    #[serde(with = "mesh_runtime::duration")]
    pub connect_timeout: Duration,
    /// How long an idle connection to the application is kept for the next request; `4s`, less than what common servers
    /// wait before they close it.
    #[serde(with = "mesh_runtime::duration")]
    pub keep_alive: Duration,
}

impl Default for InboundConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_requests: 4096,
            connect_timeout: Duration::from_secs(1),
            keep_alive: Duration::from_secs(4),
        }
    }
}

/// The SPIFFE Workload API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadApiConfig {
    /// The Unix socket, mode 0660. Whoever may open it is handed the workload's key: put it where the workload alone comes.
    pub socket: PathBuf,
}

/// Confirmations are told in steps of 10 s, and take a few seconds on their way.
const LEAST_TRUST_AGE: Duration = Duration::from_secs(60);

/// The longest path of a socket, so that its temporary name fits the kernel's 107 bytes as well.
const MAX_SOCKET_PATH: usize = 100;

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
        require(!self.workload.name.is_empty(), "workload.name: must not be empty");
        require(!self.workload.addresses.is_empty(), "workload.addresses: name at least one address of the workload");
        require(!self.discovery.addresses.is_empty(), "discovery.addresses: name at least one host:port");
        require(
            self.discovery.addresses.iter().all(|address| is_host_and_port(address)),
            "discovery.addresses: each must be host:port",
        );
        require(!self.listeners.outbound.is_empty(), "listeners.outbound: name at least one address");
        require(!self.listeners.inbound.is_empty(), "listeners.inbound: name at least one address");
        require(!self.state_directory.as_os_str().is_empty(), "stateDirectory: must not be empty");
        require(
            self.max_trust_age.is_none_or(|age| age >= LEAST_TRUST_AGE),
            "maxTrustAge: at least 1m, confirmations come in steps",
        );
        require(!self.outbound.lookup_deadline.is_zero(), "outbound.lookupDeadline: must be more than zero");
        require(self.outbound.max_connections > 0, "outbound.maxConnections: must be more than zero");
        require(self.inbound.max_connections > 0, "inbound.maxConnections: must be more than zero");
        require(self.inbound.max_requests > 0, "inbound.maxRequests: must be more than zero");
        require(self.outbound.max_requests > 0, "outbound.maxRequests: must be more than zero");
        require(!self.inbound.connect_timeout.is_zero(), "inbound.connectTimeout: must be more than zero");
        require(
            self.workload_api.as_ref().is_none_or(|api| (1..=MAX_SOCKET_PATH).contains(&api.socket.as_os_str().len())),
            "workloadApi.socket: must be a path of at most 100 bytes",
        );
        problems.extend(self.discovery.control_plane().err());
        problems.extend(self.capture_problems());
        problems
    }
}

impl Config {
    fn capture_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(capture) = &self.capture else {
            if !self.listeners.strict.is_empty() {
                problems.push("listeners.strict: without a capture section nothing arrives there".to_owned());
            }
            return problems;
        };
        if capture.probe_sources.iter().any(|range| range.prefix_len() == 0) {
            problems.push("capture.probeSources: a range of everything would let all plaintext through".to_owned());
        }
        if capture.ranges.is_empty() {
            problems.push("capture.ranges: name at least one range".to_owned());
        }
        if capture.ranges.iter().any(|range| range.prefix_len() == 0) {
            problems
                .push("capture.ranges: a range of everything would capture what is not the clusterset's".to_owned());
        }
        if capture.excluded_ports.contains(&0) {
            problems.push("capture.excludedPorts: 0 is no port".to_owned());
        }
        if capture.excluded_users.is_empty() {
            problems.push("capture.excludedUsers: the sidecar's own user must be left alone".to_owned());
        }
        problems.extend(one_port("outbound", &self.listeners.outbound));
        problems.extend(one_port("dns", &self.listeners.dns));
        problems.extend(one_port("strict", &self.listeners.strict));
        problems
    }
}

/// What is captured goes to one port, at the loopback address of its family.
fn one_port(field: &str, listeners: &[SocketAddr]) -> Option<String> {
    let mut ports = listeners.iter().map(SocketAddr::port);
    let first = ports.next()?;
    ports.any(|port| port != first).then(|| format!("listeners.{field}: with capture, all must have one port"))
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}
