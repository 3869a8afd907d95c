//! A lab whose clusters each have one ticking application, exported to all.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};

use super::{Calls, Stream, Ticker};
use crate::demo::story::imported_clusters;
use crate::lab::binaries::Binaries;
use crate::lab::shop_federation::shop_federation;
use crate::lab::{ClusterDescription, Lab, NAMESPACE, READY, ServiceDescription, wait};

/// The clusters there can be, their services, and the byte that each says.
const CLUSTERS: [(&str, &str, u8); 3] =
    [("east", "ticks-east", b'e'), ("west", "ticks-west", b'w'), ("north", "ticks-north", b'n')];
/// Where applications listen, and their services too.
const PORT: u16 = 6379;

/// What a lab may have different from others: more lines of configuration, other programs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings<'a> {
    /// For trust-bundle.
    pub trust_bundle: &'a str,
    /// For each control-plane.
    pub control_plane: &'a str,
    /// The programs; without, those that tests run, which are built when need be.
    pub binaries: Option<&'a Binaries>,
}

/// The running lab, and its applications: they run in this process.
#[derive(Debug)]
pub struct TickingLab {
    /// The processes.
    pub lab: Lab,
    tickers: BTreeMap<&'static str, Ticker>,
}

/// The byte that a cluster's side of a stream says.
#[must_use]
pub fn byte_of(cluster: &str) -> u8 {
    CLUSTERS.iter().find(|(name, ..)| *name == cluster).map_or(b'?', |(_, _, byte)| *byte)
}

impl TickingLab {
    /// The first `clusters` of east, west and north.
    ///
    /// # Errors
    /// A process does not start, or an export does not arrive.
    pub async fn start(directory: &Path, clusters: usize, settings: Settings<'_>) -> anyhow::Result<Self> {
        let binaries = settings.binaries.cloned().map_or_else(Binaries::build, Ok)?;
        let mut ticking = Self { lab: Lab::start(directory, binaries).await?, tickers: BTreeMap::new() };
        if !settings.trust_bundle.is_empty() {
            ticking.lab.federation.configure_trust_bundles(|_| settings.trust_bundle.to_owned()).await?;
        }
        let clusters = CLUSTERS.get(..clusters).context("there are three clusters at most")?;
        for (name, service, byte) in clusters {
            ticking.add(name, service, *byte, settings.control_plane).await.with_context(|| (*name).to_owned())?;
        }
        for (name, service, _) in clusters {
            let operator = ticking.lab.cluster(name)?.operator();
            operator.isthmus(&["export", &format!("{NAMESPACE}/{service}")]).await?;
        }
        for cluster in &ticking.lab.clusters {
            let operator = cluster.operator();
            wait::until("every import is there", READY, || async {
                let imports: serde_json::Value = operator.json(&["get", "imports"]).await?;
                ensure!(imported_clusters(&imports) == clusters.len(), "{imports}");
                Ok(())
            })
            .await?;
        }
        Ok(ticking)
    }

    async fn add(&mut self, name: &'static str, service: &'static str, byte: u8, more: &str) -> anyhow::Result<()> {
        let mut description = describe(name, service)?;
        description.gateways = 1;
        self.lab.add_unjoined(description).await?;
        let cluster = self.lab.clusters.last_mut().context("it was just added")?;
        if !more.is_empty() {
            cluster.configure_control_plane(more).await?;
        }
        cluster.join(&self.lab.federation).await?;
        cluster.start_proxies().await?;
        let pod = cluster.pods_of(service)?.first_mut().context("the service has no pod")?;
        if let Some(mut application) = pod.application.take() {
            application.kill().await?;
        }
        let ticker = Ticker::listen((pod.facts.address, PORT).into(), byte).await?;
        self.tickers.insert(name, ticker);
        Ok(())
    }

    /// A stream from one cluster's client to another's application.
    ///
    /// # Errors
    /// It is refused.
    pub async fn stream(&mut self, from: &str, to: &str) -> anyhow::Result<Stream> {
        let proxy = self.lab.cluster(from)?.client_proxy();
        Ok(Stream::open(proxy, &authority(to), byte_of(from)).await?)
    }

    /// A stream, as soon as one is not refused, once both ends have heard each other.
    ///
    /// # Errors
    /// It goes on being refused.
    pub async fn until_stream(&mut self, from: &str, to: &str) -> anyhow::Result<Stream> {
        let (proxy, authority) = (self.lab.cluster(from)?.client_proxy(), authority(to));
        let begun = Instant::now();
        let open = || Stream::open(proxy, &authority, byte_of(from));
        let stream = wait::until(&format!("a stream from {from} to {to}"), READY, open).await?;
        wait::until(&format!("bytes between {from} and {to}"), READY, || async {
            ensure!(stream.last(byte_of(to)).is_some() && self.heard(to, from).is_some_and(|at| at > begun), "none");
            Ok(())
        })
        .await?;
        Ok(stream)
    }

    /// Calls from one cluster's client to another's application.
    ///
    /// # Errors
    /// There is no such cluster.
    pub fn calls(&mut self, from: &str, to: &str) -> anyhow::Result<Calls> {
        Ok(Calls::start(self.lab.cluster(from)?.client_proxy(), authority(to), byte_of(from)))
    }

    /// When the application of a cluster last heard a byte of another cluster.
    #[must_use]
    pub fn heard(&self, at: &str, of: &str) -> Option<Instant> {
        self.tickers.get(at)?.last(byte_of(of))
    }
}

fn describe(name: &'static str, service: &'static str) -> anyhow::Result<ClusterDescription> {
    let like = shop_federation().into_iter().find(|cluster| cluster.name == name).context("no such cluster")?;
    let redis = shop_federation().into_iter().flat_map(|cluster| cluster.services).find(|it| it.port == PORT);
    let redis = redis.context("the shop has no store")?;
    let service = ServiceDescription { name: service, replicas: 1, ..redis };
    Ok(ClusterDescription { services: vec![service], ..like })
}

fn authority(cluster: &str) -> String {
    let service = CLUSTERS.iter().find(|(name, ..)| *name == cluster).map_or("nobody", |(_, service, _)| *service);
    format!("{service}.{NAMESPACE}.svc.clusterset.local:{PORT}")
}
