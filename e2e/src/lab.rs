//! The lab: any number of clusters as real processes on loopback addresses, from a short description.
//!
//! ```text
//!   Description ──► Lab ──► federation   127.F.0.1 trust-bundle, 127.F.0.2 federator (on etcd also .3 and .4)
//!                    │
//!                    ├────► cluster A    127.A.0.2 control-plane, 127.A.0.3 DNS, 127.A.0.11… gateways
//!                    │                   127.A.1.1… pods: the application and its sidecar
//!                    └────► cluster B    127.B.…
//! ```
//!
//! Ports are the product's own: each process has an address to itself. Every process is a child with its log in a file,
//! and dies with the lab. Manifests are written as a cluster's controllers would write them.

pub mod authority;
pub mod binaries;
pub mod cluster;
pub mod federation;
pub mod manifest;
pub mod network;
pub mod operator;
pub mod process;
pub mod shop_federation;
pub mod wait;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::shop::Role;
use binaries::Binaries;
use cluster::Cluster;
use federation::{Federation, Storage};
use network::Network;

/// The federation's domain in every lab.
pub const DOMAIN: &str = "mesh.example";
/// The namespace that the lab's workloads run in.
pub const NAMESPACE: &str = "shop";
/// How long anything may take to become ready on a busy machine.
pub const READY: Duration = Duration::from_secs(30);

/// A service of one cluster, and how many pods it has there.
#[derive(Debug, Clone)]
pub struct ServiceDescription {
    /// The service's name; also its service account's.
    pub name: &'static str,
    /// What its pods run.
    pub role: Role,
    /// The service's port.
    pub port: u16,
    /// Where the pods listen.
    pub target_port: u16,
    /// The port's name, whose prefix declares the protocol.
    pub port_name: &'static str,
    /// Its pods.
    pub replicas: u8,
}

/// One cluster.
#[derive(Debug, Clone)]
pub struct ClusterDescription {
    /// Its name.
    pub name: &'static str,
    /// Its region.
    pub region: &'static str,
    /// Its zone.
    pub zone: &'static str,
    /// How many east-west gateways it has.
    pub gateways: u8,
    /// Its sidecars may not dial out: they reach other clusters through its gateways' egress side.
    pub egress_restricted: bool,
    /// What runs in it.
    pub services: Vec<ServiceDescription>,
    /// Where its programs send spans (OTLP over gRPC), if anywhere.
    pub collector: Option<SocketAddr>,
}

/// A running lab. Dropping it kills every process.
#[derive(Debug)]
pub struct Lab {
    /// trust-bundle and federator.
    pub federation: Federation,
    /// The clusters, in the order of their descriptions.
    pub clusters: Vec<Cluster>,
    binaries: Binaries,
    directory: PathBuf,
    network: Network,
}

impl Lab {
    /// Starts the federation's services; clusters are added by [`Lab::add`].
    ///
    /// # Errors
    /// A binary is missing or stale, or a process does not become ready; the error names its log.
    pub async fn start(directory: &Path, binaries: Binaries) -> anyhow::Result<Self> {
        Self::start_on(directory, binaries, Storage::Embedded).await
    }

    /// As [`Lab::start`], with the federation's state in `storage`.
    ///
    /// # Errors
    /// As [`Lab::start`], or etcd does not come up.
    pub async fn start_on(directory: &Path, binaries: Binaries, storage: Storage) -> anyhow::Result<Self> {
        let mut network = Network::reserve()?;
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let federation = Federation::start(directory, &binaries, network.next_block(), storage).await?;
        Ok(Self { federation, clusters: Vec::new(), binaries, directory: directory.to_owned(), network })
    }

    /// Starts clusters side by side and joins them; their workloads run when this returns.
    ///
    /// # Errors
    /// As [`Lab::start`], or a join is refused.
    pub async fn add(&mut self, descriptions: Vec<ClusterDescription>) -> anyhow::Result<()> {
        let federation = &self.federation;
        let starting = descriptions.into_iter().map(|description| {
            let block = self.network.next_block();
            let directory = self.directory.join(description.name);
            let binaries = self.binaries.clone();
            async move {
                let name = description.name;
                let mut cluster = Cluster::start(&directory, binaries, block, description).await?;
                cluster.join(federation).await.with_context(|| format!("joining {name}"))?;
                cluster.start_proxies().await?;
                anyhow::Ok(cluster)
            }
        });
        let starting: Vec<_> = starting.collect();
        self.clusters.extend(futures_util::future::try_join_all(starting).await?);
        Ok(())
    }

    /// Starts one cluster's control-plane and leaves the join to the caller.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub async fn add_unjoined(&mut self, description: ClusterDescription) -> anyhow::Result<()> {
        let block = self.network.next_block();
        let directory = self.directory.join(format!("{}-{}", description.name, self.clusters.len()));
        self.clusters.push(Cluster::start(&directory, self.binaries.clone(), block, description).await?);
        Ok(())
    }

    /// A cluster by its name.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn cluster(&mut self, name: &str) -> anyhow::Result<&mut Cluster> {
        let found = self.clusters.iter_mut().find(|cluster| cluster.name() == name);
        found.with_context(|| format!("the lab has no cluster {name}"))
    }

    /// Ends every process as an administrator would, with SIGTERM first.
    pub async fn stop(mut self) {
        for cluster in &mut self.clusters {
            cluster.stop().await;
        }
        self.federation.stop().await;
    }
}
