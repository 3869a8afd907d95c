//! `clusterset.local` for everybody without a sidecar: the zone follows the snapshots.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use federation::ServiceType;
use federation_dns::{HeadlessEndpoint, Metrics, Zone, ZoneContents, ZoneKind, ZonePort, ZoneService};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::snapshot::{ServiceView, Snapshot};

/// A pause is so many times as long as the build before it: a zone costs as much as all its names, and a burst of changes keeps no
/// core busy with it.
const REST: u32 = 9;

/// No pause is longer. Resolvers keep answers for seconds.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// The sockets of a name server, bound.
#[derive(Debug)]
pub struct NameSockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
}

impl NameSockets {
    /// Binds UDP and TCP on each address; where a port is 0, both get one number.
    ///
    /// # Errors
    /// The first address that cannot be bound, with its field.
    pub async fn bind(listen: &[SocketAddr]) -> anyhow::Result<Self> {
        let (mut udp, mut tcp, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for (index, address) in listen.iter().enumerate() {
            let failed =
                |error: std::io::Error| anyhow::anyhow!("dns.listen[{index}]: cannot listen on {address}: {error}");
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            udp.push(UdpSocket::bind(bound).await.map_err(failed)?);
            tcp.push(listener);
            addresses.push(bound);
        }
        Ok(Self { udp, tcp, addresses })
    }

    /// Where names are answered.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers until `shutdown`, following the snapshots.
    ///
    /// # Errors
    /// A socket's task ended unexpectedly.
    pub async fn serve(
        self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        metrics: Metrics,
        shutdown: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
        let servers: Vec<_> = self.addresses.iter().map(SocketAddr::ip).collect();
        let follow = async {
            let mut before: Option<Arc<Snapshot>> = None;
            loop {
                let snapshot = Arc::clone(&snapshots.borrow_and_update());
                let begun = Instant::now();
                if snapshot.revision > 0 && before.as_ref().is_none_or(|before| names_differ(before, &snapshot)) {
                    let built = Zone::build(&contents(&snapshot, &servers));
                    for problem in built.problems() {
                        warn!(%problem, "a name is not published");
                    }
                    metrics.zone_replaced(&built);
                    zone.store(Arc::new(built));
                    before = Some(snapshot);
                    tokio::time::sleep(begun.elapsed().saturating_mul(REST).min(LONGEST_REST)).await;
                }
                if snapshots.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = follow => Ok(()),
            served = federation_dns::serve(Arc::clone(&zone), self.udp, self.tcp, metrics.clone(), shutdown) => {
                Ok(served?)
            }
        }
    }
}

/// Endpoint churn of services with an address changes no name.
fn names_differ(before: &Snapshot, after: &Snapshot) -> bool {
    let same = |(before, after): (&Arc<ServiceView>, &Arc<ServiceView>)| {
        Arc::ptr_eq(before, after)
            || (before.import.service == after.import.service
                && before.vips == after.vips
                && before.import.ports == after.import.ports
                && before.import.service_type == after.import.service_type
                && after.import.service_type != ServiceType::Headless)
    };
    before.synced != after.synced
        || before.namespaces != after.namespaces
        || before.services.len() != after.services.len()
        || !before.services.values().zip(after.services.values()).all(same)
}

fn contents(snapshot: &Snapshot, servers: &[std::net::IpAddr]) -> ZoneContents {
    ZoneContents {
        services: snapshot.services.values().map(|view| service(view)).collect(),
        namespaces: snapshot.namespaces.iter().cloned().collect(),
        name_servers: servers.iter().copied().filter(|address| !address.is_unspecified()).collect(),
        serial: u32::try_from(snapshot.revision % u64::from(u32::MAX)).unwrap_or_default(),
        synced: snapshot.synced,
    }
}

fn service(view: &ServiceView) -> ZoneService {
    let port = |port: &federation::merge::ImportPort| ZonePort {
        name: port.port.name.clone(),
        protocol: port.port.protocol,
        port: port.port.port,
    };
    let kind = match view.import.service_type {
        ServiceType::ClusterSetIP => ZoneKind::ClusterSetIp { vips: view.vips.clone() },
        ServiceType::Headless => ZoneKind::Headless { endpoints: endpoints(view) },
    };
    ZoneService {
        namespace: view.import.service.namespace.clone(),
        name: view.import.service.name.clone(),
        kind,
        ports: view.import.ports.iter().map(port).collect(),
    }
}

fn endpoints(view: &ServiceView) -> Vec<HeadlessEndpoint> {
    let of = |exporter: &crate::snapshot::ExporterView| {
        let cluster = exporter.cluster.to_string();
        let endpoint = move |endpoint: &federation::HeadlessEndpoint| HeadlessEndpoint {
            cluster: cluster.clone(),
            hostname: endpoint.hostname.as_ref().map(ToString::to_string),
            addresses: endpoint.addresses.clone(),
            ready: endpoint.ready,
        };
        exporter.headless.iter().map(endpoint).collect::<Vec<_>>()
    };
    view.clusters.iter().flat_map(of).collect()
}
