//! A federation of clusters with API servers of their own.

use std::path::{Path, PathBuf};

use futures_util::future::try_join_all;

use super::deployed::PROGRAMS;
use super::{Assets, Deployed};
use crate::lab::binaries::Binaries;
use crate::lab::federation::{Federation, Storage};
use crate::lab::network::Network;

/// The federation's services and its clusters. Dropping it kills every process.
pub struct KubernetesLab {
    /// trust-bundle and federator.
    pub federation: Federation,
    /// The clusters, joined.
    pub clusters: Vec<Deployed>,
    directory: PathBuf,
    _network: Network,
}

impl KubernetesLab {
    /// Starts clusters of these names side by side.
    ///
    /// # Errors
    /// A program is missing, or something does not become ready; the error names its log.
    pub async fn start(directory: &Path, names: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(directory, names, Binaries::build_only(&PROGRAMS)?).await
    }

    /// Starts clusters with programs that are there.
    ///
    /// # Errors
    /// As [`KubernetesLab::start`].
    pub async fn start_with(directory: &Path, names: &[&str], binaries: Binaries) -> anyhow::Result<Self> {
        let assets = Assets::find()?;
        let mut network = Network::reserve()?;
        std::fs::create_dir_all(directory)?;
        let federation = Federation::start(directory, &binaries, network.next_block(), Storage::Embedded).await?;
        let programs = (&assets, &binaries);
        let starting: Vec<_> = names
            .iter()
            .map(|name| Deployed::start(name, directory, programs, network.next_block(), &federation))
            .collect();
        let clusters = try_join_all(starting).await?;
        Ok(Self { federation, clusters, directory: directory.to_owned(), _network: network })
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends every process.
    pub async fn stop(&mut self) {
        for cluster in &mut self.clusters {
            cluster.stop().await;
        }
        self.federation.stop().await;
    }
}
