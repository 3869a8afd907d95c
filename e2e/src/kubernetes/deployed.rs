//! One cluster with its control-plane, installed from `deploy/` and run with nothing but its own role.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{ApiServers, Assets, Kubelet, READY};
use crate::lab::binaries::Binaries;
use crate::lab::federation::Federation;
use crate::lab::network::Block;
use crate::lab::operator::Operator;
use crate::lab::process::{Plan, Process};
use crate::lab::{DOMAIN, wait};

/// The programs that a lab of API servers runs.
pub(super) const PROGRAMS: [&str; 6] =
    ["trust-bundle", "federator", "control-plane", "east-west-gateway", "sidecar", "isthmus"];

/// The control-plane's namespace and service account.
pub const ACCOUNT: (&str, &str) = ("isthmus-system", "control-plane");

/// A cluster.
pub struct Deployed {
    /// Its API.
    pub servers: ApiServers,
    /// Its control-plane.
    pub control_plane: Process,
    directory: PathBuf,
    block: Block,
    binaries: Binaries,
    _kubelet: Kubelet,
}

impl Deployed {
    /// Starts the API servers, applies what `deploy/` has, starts the control-plane and joins the federation.
    ///
    /// # Errors
    /// Any of these fails.
    pub async fn start(
        name: &str,
        directory: &Path,
        (assets, binaries): (&Assets, &Binaries),
        block: Block,
        federation: &Federation,
    ) -> anyhow::Result<Self> {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory)?;
        let servers = ApiServers::start(name, &directory, assets, block).await?;
        let kubelet = Kubelet::start(servers.client.clone(), name, block.number()).await?;
        servers.apply(&deploy("crds")).await?;
        servers.apply(&deploy("control-plane/rbac")).await?;
        servers.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).await?;
        let kubeconfig = servers.account_kubeconfig(ACCOUNT.0, ACCOUNT.1).await?;
        let plan = control_plane(name, "control-plane", &directory, binaries, (block, 0), &kubeconfig)?;
        let control_plane = Process::start(plan)?;
        let mut cluster =
            Self { servers, control_plane, directory, block, binaries: binaries.clone(), _kubelet: kubelet };
        cluster.join(federation).await.with_context(|| format!("joining {name}"))?;
        Ok(cluster)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.servers.name()
    }

    /// Where its control-plane answers DNS.
    #[must_use]
    pub fn dns(&self) -> std::net::SocketAddr {
        (self.block.address(0, 3), 15053).into()
    }

    /// Where its control-plane serves proxies.
    #[must_use]
    pub fn discovery(&self) -> std::net::SocketAddr {
        (self.block.address(0, 2), 15010).into()
    }

    /// A second replica: with the same state and role, at other addresses.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn second_replica(&self) -> anyhow::Result<Process> {
        let kubeconfig = self.servers.account_kubeconfig(ACCOUNT.0, ACCOUNT.1).await?;
        let place = (self.block, 4);
        Process::start(control_plane(self.name(), "second", &self.directory, &self.binaries, place, &kubeconfig)?)
    }

    /// A gateway with a token and roots, at one of the cluster's addresses; its ways out to other clusters are open.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn gateway(&self, name: &str, place: u8, token: &str, roots: &str) -> anyhow::Result<Process> {
        let address = self.block.address(0, place);
        let more = format!(
            "name: {name}\nlisten: [\"{address}:15443\"]\nadvertise: {{address: {address}}}\n\
             egress: {{listen: [\"{address}:15444\"], address: {address}}}\n"
        );
        self.proxy("east-west-gateway", (name, place), &more, token, roots)
    }

    /// A pod's sidecar with a token and roots, at one of the cluster's addresses.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn sidecar(&self, pod: &str, place: u8, token: &str, roots: &str) -> anyhow::Result<Process> {
        let address = self.block.address(0, place);
        let more = format!(
            "workload: {{name: {pod}, addresses: [{address}]}}\n\
             listeners: {{outbound: [\"{address}:15001\"], inbound: [\"{address}:15008\"]}}\n"
        );
        self.proxy("sidecar", (pod, place), &more, token, roots)
    }

    fn proxy(
        &self,
        program: &str,
        (name, place): (&str, u8),
        more: &str,
        token: &str,
        roots: &str,
    ) -> anyhow::Result<Process> {
        let address = self.block.address(0, place);
        let home = self.directory.join(name);
        std::fs::create_dir_all(&home)?;
        std::fs::write(home.join("token"), token)?;
        std::fs::write(home.join("root.crt"), roots)?;
        let home_path = home.display();
        let config = format!(
            "runtime: {{admin: \"{address}:15020\", health: \"{address}:15021\", log: {{format: text}}}}\n{more}\
             discovery: {{addresses: [\"{}\"], trustDomain: {}.{DOMAIN}, rootFile: {home_path}/root.crt, \
             tokenFile: {home_path}/token}}\nstateDirectory: {home_path}/state\n",
            self.discovery(),
            self.name(),
        );
        let path = home.join("config.yaml");
        std::fs::write(&path, config)?;
        Process::start(Plan {
            name: format!("{}/{name}", self.name()),
            program: self.binaries.path(program),
            arguments: vec!["--config".to_owned(), path.display().to_string()],
            log: home.join("log"),
            health: Some((address, 15021).into()),
        })
    }

    async fn join(&mut self, federation: &Federation) -> anyhow::Result<()> {
        let operator = federation.operator_directory().display().to_string();
        let isthmus = self.binaries.path("isthmus");
        let range = self.block.range();
        let arguments =
            ["token", "create", "--operator", &operator, "--cluster", self.name(), "--address-range", &range];
        let token = Operator::run(&isthmus, &arguments).await?;
        let socket = self.directory.join("control-plane.sock");
        wait::until(&format!("{}: admin socket", self.name()), READY, || async {
            tokio::net::UnixStream::connect(&socket).await
        })
        .await?;
        Operator::new(isthmus, socket).isthmus(&["join", token.trim()]).await?;
        self.control_plane.ready(READY).await
    }

    /// Ends every process.
    pub async fn stop(&mut self) {
        self.control_plane.stop().await;
        self.servers.stop().await;
    }
}

/// A folder of `deploy/`.
#[must_use]
pub fn deploy(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(folder)
}

/// `place`: the cluster's addresses, and from which one on.
fn control_plane(
    cluster: &str,
    replica: &str,
    directory: &Path,
    binaries: &Binaries,
    (block, first): (Block, u8),
    kubeconfig: &Path,
) -> anyhow::Result<Plan> {
    let address = block.address(0, first + 2);
    let config = format!(
        "runtime: {{admin: \"{address}:15020\", health: \"{address}:15021\", log: {{format: text}}}}\n\
         cluster: {cluster}\nfederation: {DOMAIN}\nstateDirectory: {state}\nadminSocket: {socket}\n\
         kubernetes: {{kubeconfig: {kubeconfig}}}\nclustersetIps: {{ipv4: 241.0.0.0/16, ipv6: \"fd24:1::/64\"}}\n\
         discovery: {{listen: \"{address}:15010\"}}\ndns: {{listen: [\"{dns}:15053\"]}}\n",
        state = directory.join("state").display(),
        socket = directory.join(format!("{replica}.sock")).display(),
        kubeconfig = kubeconfig.display(),
        dns = block.address(0, first + 3),
    );
    let path = directory.join(format!("{replica}.yaml"));
    std::fs::write(&path, config)?;
    Ok(Plan {
        name: format!("{cluster}/{replica}"),
        program: binaries.path("control-plane"),
        arguments: vec!["--config".to_owned(), path.display().to_string()],
        log: directory.join(format!("{replica}.log")),
        health: Some((address, 15021).into()),
    })
}
