//! trust-bundle and federator of a lab: one of each on a file, or two of each on etcd.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use federation_store::EtcdConfig;
use federation_store::lab::{EtcdCluster, LabOptions};

use super::binaries::Binaries;
use super::network::Block;
use super::operator::Operator;
use super::process::{Plan, Process, kill_all};
use super::{DOMAIN, READY};

/// How many replicas of each service there are on etcd.
pub const REPLICAS: u8 = 2;

/// Where a federation keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// The embedded store: one replica of each service.
    Embedded,
    /// Three etcd members: [`REPLICAS`] of each service.
    Etcd,
}

/// The federation's shared services.
#[derive(Debug)]
pub struct Federation {
    /// trust-bundle's replicas.
    pub trust_bundles: Vec<Process>,
    /// federator's replicas.
    pub federators: Vec<Process>,
    /// What they share.
    pub etcd: Option<EtcdCluster>,
    block: Block,
    home: PathBuf,
    operator: PathBuf,
    binaries: Binaries,
}

/// The `isthmus` command, with the keys that `trust-bundle init` wrote.
#[derive(Debug, Clone)]
pub struct FederationOperator {
    isthmus: PathBuf,
    directory: PathBuf,
}

impl FederationOperator {
    /// Runs `isthmus … --operator DIR`, returns what it printed.
    ///
    /// # Errors
    /// It failed; the error has what it wrote to stderr.
    pub async fn isthmus(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let directory = self.directory.display().to_string();
        let all: Vec<&str> = arguments.iter().copied().chain(["--operator", &directory]).collect();
        Operator::run(&self.isthmus, &all).await
    }
}

impl Federation {
    /// Makes a federation as an operator would, and starts its services.
    ///
    /// # Errors
    /// `trust-bundle init` fails or a service does not become ready.
    pub async fn start(directory: &Path, binaries: &Binaries, block: Block, storage: Storage) -> anyhow::Result<Self> {
        let home = directory.join("federation");
        std::fs::create_dir_all(home.join("logs"))?;
        let (etcd, replicas) = match storage {
            Storage::Embedded => (None, 1),
            Storage::Etcd => (Some(Box::pin(EtcdCluster::start(LabOptions::default())).await?), REPLICAS),
        };
        make(&home.join("keys"), binaries, block, replicas).await?;
        let operator = home.join("keys/operator");
        let (trust_bundles, federators) = (Vec::new(), Vec::new());
        let binaries = binaries.clone();
        let mut federation = Self { trust_bundles, federators, etcd, block, home, operator, binaries };
        for replica in 0..replicas {
            let trust_bundle = federation.trust_bundle_plan(replica, "")?;
            federation.trust_bundles.push(Process::start(trust_bundle)?);
            let federator = federation.federator_plan(replica)?;
            federation.federators.push(Process::start(federator)?);
        }
        federation.ready().await?;
        Ok(federation)
    }

    /// Gives every trust-bundle replica more lines of configuration, in place of those that it was given before, and
    /// starts it again.
    ///
    /// # Errors
    /// One does not become ready.
    pub async fn configure_trust_bundles(&mut self, more: impl Fn(Ipv4Addr) -> String) -> anyhow::Result<()> {
        for replica in 0..u8::try_from(self.trust_bundles.len())? {
            self.trust_bundle_plan(replica, &more(self.trust_bundle_address(replica)))?;
            let process = &mut self.trust_bundles[usize::from(replica)];
            process.kill().await?;
            process.restart()?;
            process.ready(READY).await?;
        }
        Ok(())
    }

    /// Writes the configuration.
    fn trust_bundle_plan(&self, replica: u8, more: &str) -> anyhow::Result<Plan> {
        let address = self.trust_bundle_address(replica);
        let config = format!(
            "{}serviceDirectory: {}\n{}{more}",
            common(address),
            self.home.join("keys/service").display(),
            self.store("trust-bundle"),
        );
        self.plan("trust-bundle", replica, config, address)
    }

    fn federator_plan(&self, replica: u8) -> anyhow::Result<Plan> {
        let home = &self.home;
        let [keys, state] = ["keys", "state"].map(|part| home.join(format!("federator-{replica}-{part}")));
        std::fs::create_dir_all(&state)?;
        // Each replica renews its own certificate.
        std::fs::create_dir_all(&keys)?;
        for file in std::fs::read_dir(home.join("keys/federator"))? {
            let file = file?;
            std::fs::copy(file.path(), keys.join(file.file_name()))?;
        }
        let config = format!(
            "{}serviceDirectory: {}\nstateDirectory: {}\nreplica: federator-{replica}\nheartbeatInterval: 1s\n{}",
            common(self.federator_address(replica)),
            keys.display(),
            state.display(),
            self.store("federator"),
        );
        self.plan("federator", replica, config, self.federator_address(replica))
    }

    fn plan(&self, name: &str, replica: u8, config: String, address: Ipv4Addr) -> anyhow::Result<Plan> {
        let home = &self.home;
        let path = home.join(format!("{name}-{replica}.yaml"));
        std::fs::write(&path, config)?;
        Ok(Plan {
            name: format!("{name}-{replica}"),
            program: self.binaries.path(name),
            arguments: vec!["--config".to_owned(), path.display().to_string()],
            log: home.join(format!("logs/{name}-{replica}.log")),
            health: Some((address, 15021).into()),
        })
    }

    /// The part `store` of a service's configuration.
    fn store(&self, service: &str) -> String {
        let Some(etcd) = &self.etcd else {
            return format!("store: {{embedded: {{file: {}}}}}\n", self.home.join(format!("{service}.redb")).display());
        };
        let EtcdConfig { endpoints, ca_file, certificate_file, key_file, prefix } =
            etcd.config(&format!("/isthmus/{service}/"));
        let mut text = format!("store:\n  etcd:\n    endpoints: {endpoints:?}\n    prefix: {prefix}\n");
        for (field, file) in [("caFile", ca_file), ("certificateFile", certificate_file), ("keyFile", key_file)] {
            let _ = writeln!(text, "    {field}: {}", file.display());
        }
        text
    }

    /// Where a trust-bundle replica has its admin page and serves.
    #[must_use]
    pub fn trust_bundle_address(&self, replica: u8) -> Ipv4Addr {
        trust_bundle_address(self.block, replica)
    }

    /// Where a federator replica has its admin page and serves.
    #[must_use]
    pub fn federator_address(&self, replica: u8) -> Ipv4Addr {
        federator_address(self.block, replica)
    }

    /// The operator's keys.
    #[must_use]
    pub fn operator_directory(&self) -> &Path {
        &self.operator
    }

    /// The operator's command with the operator's keys, for what concerns the federation and no one cluster.
    #[must_use]
    pub fn operator(&self) -> FederationOperator {
        FederationOperator { isthmus: self.binaries.path("isthmus"), directory: self.operator.clone() }
    }

    /// Makes a join token, offline, with `isthmus token create`.
    ///
    /// # Errors
    /// The command's.
    pub async fn token(&self, cluster: &str, address_range: &str) -> anyhow::Result<String> {
        let directory = self.operator.display().to_string();
        let arguments = [
            "token",
            "create",
            "--operator",
            &directory,
            "--cluster",
            cluster,
            "--namespace",
            super::NAMESPACE,
            "--address-range",
            address_range,
        ];
        Ok(Operator::run(&self.binaries.path("isthmus"), &arguments).await?.trim().to_owned())
    }

    /// Every process but etcd's.
    pub fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.federators.iter_mut().chain(&mut self.trust_bundles)
    }

    /// Kills every replica of both services.
    ///
    /// # Errors
    /// One of them did not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        kill_all(self.processes()).await
    }

    /// Starts them again.
    ///
    /// # Errors
    /// One of them does not become ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.processes().try_for_each(Process::restart)?;
        self.ready().await
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        for process in self.processes() {
            process.ready(READY).await?;
        }
        Ok(())
    }

    /// The etcd cluster.
    ///
    /// # Errors
    /// The federation keeps its state in files.
    pub fn etcd(&self) -> anyhow::Result<&EtcdCluster> {
        self.etcd.as_ref().context("the federation is not on etcd")
    }

    /// Ends all of them.
    pub async fn stop(&mut self) {
        for process in self.processes() {
            process.stop().await;
        }
    }
}

fn trust_bundle_address(block: Block, replica: u8) -> Ipv4Addr {
    block.address(0, 1 + 2 * replica)
}

fn federator_address(block: Block, replica: u8) -> Ipv4Addr {
    block.address(0, 2 + 2 * replica)
}

fn common(address: Ipv4Addr) -> String {
    format!(
        "runtime: {{admin: \"{address}:15020\", health: \"{address}:15021\", log: {{format: text}}}}\n\
         listen: \"{address}:15012\"\n"
    )
}

/// `trust-bundle init`, as the operator of a new federation types it.
async fn make(keys: &Path, binaries: &Binaries, block: Block, replicas: u8) -> anyhow::Result<()> {
    let mut arguments =
        ["init", "--dir", &keys.display().to_string(), "--federation", DOMAIN].map(str::to_owned).to_vec();
    for replica in 0..replicas {
        arguments
            .extend(["--trust-bundle-address".to_owned(), format!("{}:15012", trust_bundle_address(block, replica))]);
        arguments.extend(["--federator-address".to_owned(), format!("{}:15012", federator_address(block, replica))]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Operator::run(&binaries.path("trust-bundle"), &arguments).await?;
    Ok(())
}
