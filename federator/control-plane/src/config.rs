//! The program's configuration: one YAML file, camelCase.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::foreign_bundles::{self, ForeignTrustDomain};
use federation::{ClusterName, FederationDomain};
use ipnet::{Ipv4Net, Ipv6Net};
use mesh_runtime::{Configuration, RuntimeConfig};
use serde::Deserialize;
use spiffe_identity::{Pace, TrustDomain};

use crate::kubernetes::KubernetesConfig;

/// Everything a control-plane is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Logs, metrics, health.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// The cluster's name in the federation.
    pub cluster: ClusterName,
    /// The federation's domain; the cluster's trust domain is `<cluster>.<federation>`.
    pub federation: FederationDomain,
    /// Keys, membership, and the last good state of everything: survives restarts, is this program's alone.
    pub state_directory: PathBuf,
    /// The cluster's API server; either this or the two directories.
    #[serde(default)]
    pub kubernetes: Option<KubernetesConfig>,
    /// Kubernetes manifests, watched for changes. `export` writes ServiceExports here.
    #[serde(default)]
    pub manifests_directory: Option<PathBuf>,
    /// Where ServiceImports and the status of ServiceExports are written.
    #[serde(default)]
    pub imports_directory: Option<PathBuf>,
    /// The operator's socket: HTTP and JSON over a Unix socket.
    pub admin_socket: PathBuf,
    /// For the cluster's proxies.
    pub discovery: DiscoveryConfig,
    /// For everybody else.
    #[serde(default)]
    pub dns: DnsConfig,
    /// Addresses of imported services.
    #[serde(default)]
    pub clusterset_ips: ClustersetIpConfig,
    /// How gateways of other clusters are measured.
    #[serde(default)]
    pub probes: ProbeConfig,
    /// The cluster's sidecars may not dial out: they reach other clusters through the egress side of their own gateways.
    #[serde(default)]
    pub egress_restricted: bool,
    /// The cluster's own certificate authority.
    #[serde(default)]
    pub authority: AuthorityConfig,
    /// How its keys are replaced.
    #[serde(default)]
    pub rotation: RotationConfig,
    /// Trust domains outside the federation whose peers proxies are to know.
    #[serde(default)]
    pub foreign_trust_domains: Vec<ForeignTrustDomain>,
    /// How long a workload's certificate lives; it is renewed at half of it.
    #[serde(default = "default_svid_lifetime", with = "mesh_runtime::duration")]
    pub svid_lifetime: Duration,
    /// How often the whole manifests directory is looked at, whatever was reported to have changed.
    #[serde(default = "default_rescan", with = "mesh_runtime::duration")]
    pub rescan_interval: Duration,
}

/// Where proxies connect.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DiscoveryConfig {
    /// The address to listen on; port 15010 by convention.
    pub listen: SocketAddr,
}

/// Where names are answered.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct DnsConfig {
    /// Addresses to listen on, UDP and TCP; none: no DNS.
    pub listen: Vec<SocketAddr>,
}

/// Which addresses imported services get.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct ClustersetIpConfig {
    /// IPv4, for example `241.7.0.0/16`: at most a /29 is of use. Clusters may have the same range.
    pub ipv4: Ipv4Net,
    /// IPv6, a unique local prefix; none: services get no IPv6 address.
    pub ipv6: Option<Ipv6Net>,
}

/// How gateways of other clusters are measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct ProbeConfig {
    /// From the end of one probe of a gateway to the next; varied by a fifth.
    #[serde(with = "mesh_runtime::duration")]
    pub interval: Duration,
    /// After this a probe has failed.
    #[serde(with = "mesh_runtime::duration")]
    pub timeout: Duration,
    /// Probes at the same time.
    pub concurrency: usize,
}

/// The cluster's own certificate authority: made in the state directory, unless the operator brings one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct AuthorityConfig {
    /// A file with 64 hexadecimal digits under which the root's key lies sealed on disk; to be kept where the state
    /// directory is not.
    pub sealing_key_file: Option<PathBuf>,
    /// A signing certificate that the operator brings (PEM), followed by those above it, the root last.
    pub certificate_file: Option<PathBuf>,
    /// Its private key (PEM, PKCS#8).
    pub key_file: Option<PathBuf>,
}

/// How the cluster's keys are replaced.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RotationConfig {
    /// How often those who do not watch the trust-bundle fetch the cluster's bundle; published with it. Three of these
    /// pass between a root's publication and its first use.
    #[serde(with = "mesh_runtime::duration")]
    pub refresh_hint: Duration,
    /// How far clocks may be apart: an old root stays this much longer than the longest SVID.
    #[serde(with = "mesh_runtime::duration")]
    pub skew: Duration,
    /// Without all acknowledgements after this time a rotation counts as stalled; it waits on.
    #[serde(with = "mesh_runtime::duration")]
    pub stall: Duration,
}

fn default_svid_lifetime() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}

fn default_rescan() -> Duration {
    Duration::from_secs(5)
}

impl Default for ClustersetIpConfig {
    fn default() -> Self {
        Self { ipv4: Ipv4Net::new_assert(std::net::Ipv4Addr::new(241, 0, 0, 0), 8), ipv6: None }
    }
}

impl Default for RotationConfig {
    fn default() -> Self {
        let Pace { refresh_hint, skew, stall, .. } = Pace::default();
        Self { refresh_hint, skew, stall }
    }
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(2), concurrency: 16 }
    }
}

/// Where the cluster's own objects are, and where what follows from them is written.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// An API server.
    Kubernetes(&'a KubernetesConfig),
    /// Directories of manifests.
    Directories {
        /// Read.
        manifests: &'a Path,
        /// Written.
        imports: &'a Path,
    },
}

impl Config {
    /// Where the cluster's own objects are; `None` where the configuration has problems.
    #[must_use]
    pub fn origin(&self) -> Option<Origin<'_>> {
        match (&self.kubernetes, &self.manifests_directory, &self.imports_directory) {
            (Some(kubernetes), None, None) => Some(Origin::Kubernetes(kubernetes)),
            (None, Some(manifests), Some(imports)) => Some(Origin::Directories { manifests, imports }),
            _ => None,
        }
    }

    /// The cluster's trust domain as text.
    #[must_use]
    pub fn trust_domain_name(&self) -> String {
        self.federation.trust_domain(&self.cluster)
    }
}

impl Configuration for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |wrong: bool, text: &str| problems.extend(wrong.then(|| text.to_owned()));
        check(
            self.trust_domain_name().parse::<TrustDomain>().is_err(),
            "federation: with the cluster's name it makes no trust domain",
        );
        check(self.clusterset_ips.ipv4.prefix_len() > 29, "clustersetIps.ipv4: a prefix of at most 29 bits is needed");
        check(
            self.clusterset_ips.ipv6.is_some_and(|net| net.prefix_len() > 120),
            "clustersetIps.ipv6: a prefix of at most 120 bits is needed",
        );
        check(self.probes.interval < Duration::from_millis(100), "probes.interval: at least 100ms");
        check(self.probes.timeout.is_zero(), "probes.timeout: must be longer than 0s");
        check(self.probes.concurrency == 0, "probes.concurrency: at least 1");
        check(self.svid_lifetime < Duration::from_secs(4), "svidLifetime: at least 4s");
        let AuthorityConfig { sealing_key_file, certificate_file, key_file } = &self.authority;
        check(
            certificate_file.is_some() != key_file.is_some(),
            "authority: certificateFile and keyFile belong together: give both or none",
        );
        check(
            sealing_key_file.as_ref().is_some_and(|file| within(file, &self.state_directory)),
            "authority.sealingKeyFile: must not lie within stateDirectory, beside what it seals",
        );
        check(self.rotation.refresh_hint.as_millis() < 1000, "rotation.refreshHint: at least 1s");
        check(self.rescan_interval < Duration::from_millis(100), "rescanInterval: at least 100ms");
        let Some(origin) = self.origin() else {
            check(true, "kubernetes: either this, or both manifestsDirectory and importsDirectory");
            return problems;
        };
        if let Origin::Directories { manifests, imports } = origin {
            check(within(imports, manifests), "importsDirectory: must not lie within manifestsDirectory");
            check(within(manifests, imports), "manifestsDirectory: must not lie within importsDirectory");
            check(within(&self.state_directory, manifests), "stateDirectory: must not lie within manifestsDirectory");
        }
        problems.extend(foreign_bundles::problems(&self.foreign_trust_domains, &self.federation));
        problems
    }
}

fn within(inner: &Path, outer: &Path) -> bool {
    inner.starts_with(outer)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const SMALLEST: &str = "cluster: east\nfederation: mesh.example\nstateDirectory: /s\nmanifestsDirectory: \
                            /m\nimportsDirectory: /i\nadminSocket: /a.sock\ndiscovery: {listen: \"127.0.0.1:15010\"}\n";

    #[test]
    fn the_smallest_configuration_has_no_problems() {
        let config: Config = serde_saphyr::from_str(SMALLEST).unwrap();
        assert_eq!(config.problems(), Vec::<String>::new());
        assert_eq!(config.trust_domain_name(), "east.mesh.example");
    }

    #[test]
    fn objects_come_from_an_api_server_or_from_both_directories() {
        let with = |part: &str| -> Config {
            serde_saphyr::from_str(&SMALLEST.replace("manifestsDirectory: /m\nimportsDirectory: /i\n", part)).unwrap()
        };
        let kubernetes = with("kubernetes: {}\n");
        assert_eq!(kubernetes.problems(), Vec::<String>::new());
        assert!(matches!(kubernetes.origin(), Some(Origin::Kubernetes(it)) if it.namespace == "isthmus-system"));
        for part in ["", "manifestsDirectory: /m\n", "kubernetes: {}\nimportsDirectory: /i\n"] {
            let problems = with(part).problems();
            assert!(matches!(problems.as_slice(), [one] if one.starts_with("kubernetes: either")), "{problems:?}");
        }
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let text = SMALLEST.replace("/i\n", "/m/i\n")
            + "svidLifetime: 1s\nauthority: {keyFile: /k, sealingKeyFile: /s/k}\nrotation: {refreshHint: 1ms}\nprobes: {interval: 1ms, concurrency: 0}\nclustersetIps: {ipv4: 241.0.0.0/30}\n";
        let config: Config = serde_saphyr::from_str(&text).unwrap();
        let problems = config.problems();
        let fields: Vec<_> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
        let expected = [
            "clustersetIps.ipv4",
            "probes.interval",
            "probes.concurrency",
            "svidLifetime",
            "authority",
            "authority.sealingKeyFile",
            "rotation.refreshHint",
            "importsDirectory",
        ];
        assert_eq!(fields, expected);
        assert!(serde_saphyr::from_str::<Config>(&(SMALLEST.to_owned() + "typo: 1\n")).is_err());
    }
}
