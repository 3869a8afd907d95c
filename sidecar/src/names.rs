//! Captured DNS queries: names of the clusterset are answered from this sidecar's own state, everything else by the resolver
//! that the application asked.
//!
//! ```text
//!  query ─┬─ …<name>.<namespace>.svc.clusterset.local ─► known? ask the control-plane once ─► federation-dns
//!         └─ anything else ────────────────────────────► the machine's resolver, byte for byte
//! ```
//!
//! With the control-plane gone, what the workload has used before still resolves; a name that nobody can tell of is
//! `SERVFAIL`, never `NXDOMAIN`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use federation::ServiceHost;
use federation_dns::{HeadlessEndpoint, Transport, Zone, ZoneContents, ZoneKind, ZonePort, ZoneService, respond};
use hickory_proto::op::{Header, Query};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::outbound::{ACCEPT_PAUSE, original};
use crate::routing::{Entry, Router};
use crate::service::{Cluster, Headless, Service};
use crate::tasks::Tasks;

/// Queries under way at a time; more are dropped, and clients ask again.
const MAX_QUERIES: usize = 512;

/// Connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 128;

/// Largest packet passed on: the largest there is.
const MAX_PACKET: usize = 65_535;

/// A resolver that says nothing for this long is given up for the next one.
const UPSTREAM_DEADLINE: Duration = Duration::from_secs(2);

/// A client over TCP has this long between its queries.
const IDLE: Duration = Duration::from_secs(10);

/// Labels of a service's host: `<name>.<namespace>.svc.clusterset.local`.
const HOST_LABELS: usize = 5;

/// Answers captured queries.
pub(crate) struct Names {
    router: Router,
    /// The machine's resolvers, in their order.
    upstream: Vec<SocketAddr>,
    queries: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    tasks: Tasks,
}

impl Names {
    pub(crate) fn new(router: Router, resolvers: &[IpAddr], tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            router,
            upstream: resolvers.iter().map(|address| SocketAddr::new(*address, 53)).collect(),
            queries: Arc::new(Semaphore::new(MAX_QUERIES)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            tasks,
        })
    }

    /// Answers packets until dropped.
    pub(crate) async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut packet = vec![0; MAX_PACKET];
        loop {
            let (length, source) = match socket.recv_from(&mut packet).await {
                Ok(received) => received,
                Err(error) => {
                    // An answer that could not be delivered shows up here too.
                    debug!(%error, "captured query");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.queries).try_acquire_owned() else { continue };
            let (names, socket, query) = (Arc::clone(&self), Arc::clone(&socket), packet[..length].to_vec());
            self.tasks.spawn(async move {
                let answer = match names.own_answer(&query, source, Transport::Udp).await {
                    Some(answer) => Some(answer),
                    None => names.ask_by_udp(&query).await,
                };
                if let Some(answer) = answer
                    && let Err(error) = socket.send_to(&answer, source).await
                {
                    debug!(%error, src.addr = %source, "answer to a captured query");
                }
                drop(permit);
            });
        }
    }

    /// Answers connections until dropped.
    pub(crate) async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, source)) => {
                    let names = Arc::clone(&self);
                    self.tasks.spawn(async move {
                        if let Err(error) = names.converse(stream, source).await {
                            debug!(%error, src.addr = %source, "captured query");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "accept of captured queries");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn converse(&self, mut stream: TcpStream, source: SocketAddr) -> io::Result<()> {
        let resolver = original::destination(&stream).or_else(|| self.upstream.first().copied());
        loop {
            let query = match tokio::time::timeout(IDLE, read_message(&mut stream)).await {
                Ok(Ok(query)) => query,
                // Nothing more to ask.
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            let answer = match self.own_answer(&query, source, Transport::Tcp).await {
                Some(answer) => answer,
                None => {
                    let resolver = resolver.ok_or(io::ErrorKind::AddrNotAvailable)?;
                    let asking = ask_by_tcp(resolver, &query);
                    tokio::time::timeout(UPSTREAM_DEADLINE, asking).await.map_err(|_| io::ErrorKind::TimedOut)??
                }
            };
            write_message(&mut stream, &answer).await?;
        }
    }

    /// The answer from this sidecar's state; `None` when the question is not for it.
    async fn own_answer(&self, query: &[u8], source: SocketAddr, transport: Transport) -> Option<Vec<u8>> {
        let host = asked_host(query)?;
        let entry = self.router.entry(&host.clone().into()).await;
        let zone = zone(&host, entry.as_ref());
        let mut answer = Vec::new();
        respond(&zone, query, source, transport, &mut answer).map(|_| answer)
    }

    async fn ask_by_udp(&self, query: &[u8]) -> Option<Vec<u8>> {
        for resolver in &self.upstream {
            match tokio::time::timeout(UPSTREAM_DEADLINE, ask_one_by_udp(*resolver, query)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => debug!(%error, %resolver, "query passed on"),
                Err(_) => debug!(%resolver, "query passed on: no answer"),
            }
        }
        None
    }
}

/// The service that a query asks about; `None` for other names, and for what is no query.
fn asked_host(query: &[u8]) -> Option<ServiceHost> {
    let mut decoder = BinDecoder::new(query);
    let header = Header::read(&mut decoder).ok()?;
    if header.counts.queries != 1 {
        return None;
    }
    let name = Query::read(&mut decoder).ok()?.name().clone();
    if usize::from(name.num_labels()) < HOST_LABELS {
        return None;
    }
    name.trim_to(HOST_LABELS).to_string().trim_end_matches('.').parse().ok()
}

/// A zone of one service, or of none.
fn zone(host: &ServiceHost, entry: Option<&Entry>) -> Zone {
    let service = match entry {
        Some(Entry::Known(known)) => Some(zone_service(&known.service)),
        Some(Entry::Absent(_)) | None => None,
    };
    Zone::build(&ZoneContents {
        services: service.into_iter().collect(),
        namespaces: vec![host.service().namespace.clone()],
        name_servers: Vec::new(),
        serial: 1,
        synced: entry.is_some(),
    })
}

fn zone_service(service: &Service) -> ZoneService {
    ZoneService {
        namespace: service.id.namespace.clone(),
        name: service.id.name.clone(),
        kind: zone_kind(service),
        ports: service
            .ports
            .iter()
            .map(|port| ZonePort { name: port.name.clone(), protocol: port.protocol, port: port.port })
            .collect(),
    }
}

fn zone_kind(service: &Service) -> ZoneKind {
    if !service.headless {
        return ZoneKind::ClusterSetIp { vips: service.addresses.clone() };
    }
    let of = |cluster: &Cluster| {
        let name = cluster.name.to_string();
        let endpoint = move |endpoint: &Headless| HeadlessEndpoint {
            cluster: name.clone(),
            hostname: endpoint.hostname.clone(),
            addresses: endpoint.addresses.clone(),
            ready: endpoint.ready,
        };
        cluster.headless.iter().map(endpoint).collect::<Vec<_>>()
    };
    ZoneKind::Headless { endpoints: service.clusters.iter().flat_map(of).collect() }
}

/// From a port of its own, connected: what comes from elsewhere is no answer.
async fn ask_one_by_udp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_PACKET];
    loop {
        let length = socket.recv(&mut answer).await?;
        // The id of the query, or it is a late answer to another one.
        if answer.get(..2) == query.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_by_tcp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use hickory_proto::op::Message;
    use hickory_proto::rr::{Name, RecordType};
    use hickory_proto::serialize::binary::BinEncodable;

    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_bytes().unwrap()
    }

    #[test]
    fn names_of_services_and_below_them_are_this_sidecars() {
        let host = |name: &str| asked_host(&query(name)).map(|host| host.to_string());
        let cart = Some("cart.shop.svc.clusterset.local".to_owned());
        assert_eq!(host("cart.shop.svc.clusterset.local."), cart);
        assert_eq!(host("CART.shop.svc.ClusterSet.local."), cart);
        assert_eq!(host("_http._tcp.cart.shop.svc.clusterset.local."), cart);
        for other in ["example.com.", "cart.shop.svc.cluster.local.", "shop.svc.clusterset.local.", "clusterset.local."]
        {
            assert_eq!(host(other), None, "{other}");
        }
        assert_eq!(asked_host(b"\0\x01"), None);
    }

    #[test]
    fn what_nobody_can_tell_of_is_a_failure_and_what_nobody_exports_does_not_exist() {
        let host: ServiceHost = "cart.shop.svc.clusterset.local".parse().unwrap();
        let query = query("cart.shop.svc.clusterset.local.");
        let code = |entry: Option<&Entry>| {
            let mut answer = Vec::new();
            respond(&zone(&host, entry), &query, ([127, 0, 0, 1], 5).into(), Transport::Udp, &mut answer).unwrap();
            answer[3] & 0x0f
        };
        assert_eq!(code(None), 2);
        assert_eq!(code(Some(&Entry::Absent(std::time::Instant::now()))), 3);
    }
}
