//! The server over real sockets: the protocol around the zone, UDP and TCP, and everything that is no query.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use federation::Protocol;
use federation_dns::{
    HeadlessEndpoint, Kind, Metrics, Transport, Zone, ZoneContents, ZoneKind, ZonePort, ZoneService, respond, serve,
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};
use hickory_resolver::{
    Resolver,
    config::{NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

/// Longest wait for anything that has to come.
const DEADLINE: Duration = Duration::from_secs(10);
/// Wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

const WEB: &str = "web.shop.svc.clusterset.local.";
const MANY: &str = "many.shop.svc.clusterset.local.";

fn zone(synced: bool, vip: [u8; 4]) -> Zone {
    let service = |name: &str, kind| ZoneService {
        namespace: "shop".parse().unwrap(),
        name: name.parse().unwrap(),
        kind,
        ports: vec![ZonePort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 80 }],
    };
    let endpoints = (0..400_u16).map(|number| HeadlessEndpoint {
        cluster: "east".to_owned(),
        hostname: Some(format!("many-{number}")),
        addresses: vec![Ipv4Addr::from([10, 0, (number >> 8) as u8, number as u8]).into()],
        ready: true,
    });
    Zone::build(&ZoneContents {
        services: vec![
            service("web", ZoneKind::ClusterSetIp { vips: vec![IpAddr::from(vip)] }),
            service("many", ZoneKind::Headless { endpoints: endpoints.collect() }),
        ],
        namespaces: vec!["shop".parse().unwrap()],
        synced,
        ..ZoneContents::default()
    })
}

struct Server {
    address: SocketAddr,
    zone: Arc<ArcSwap<Zone>>,
    metrics: Metrics,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start() -> Self {
        let (udp, tcp) = bind().await;
        let address = udp.local_addr().unwrap();
        let zone = Arc::new(ArcSwap::from_pointee(zone(true, [241, 0, 0, 1])));
        let metrics = Metrics::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let task = tokio::spawn(serve(zone.clone(), vec![udp], vec![tcp], metrics.clone(), shutdown));
        Self { address, zone, metrics, stop, task }
    }

    async fn stop(self) {
        drop(self.stop);
        timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
    }

    /// What comes back for a packet over UDP, if anything does in time.
    async fn packet(&self, packet: &[u8], wait: Duration) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(packet, self.address).await.unwrap();
        let mut response = vec![0; 65_535];
        let length = timeout(wait, socket.recv(&mut response)).await.ok()?.unwrap();
        response.truncate(length);
        Some(response)
    }

    async fn udp(&self, query: &Message) -> Message {
        let response = self.packet(&query.to_vec().unwrap(), DEADLINE).await.unwrap();
        check(query, &response)
    }

    async fn tcp(&self, query: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        ask_over(&mut stream, query).await
    }
}

/// One free port for both.
async fn bind() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free over both transports");
}

async fn ask_over(stream: &mut TcpStream, query: &Message) -> Message {
    let packet = query.to_vec().unwrap();
    stream.write_u16(u16::try_from(packet.len()).unwrap()).await.unwrap();
    stream.write_all(&packet).await.unwrap();
    let length = timeout(DEADLINE, stream.read_u16()).await.unwrap().unwrap();
    let mut response = vec![0; usize::from(length)];
    timeout(DEADLINE, stream.read_exact(&mut response)).await.unwrap().unwrap();
    check(query, &response)
}

/// Parses a response and checks what every one has in common.
fn check(query: &Message, response: &[u8]) -> Message {
    let message = Message::from_vec(response).unwrap();
    assert_eq!(message.metadata.id, query.metadata.id);
    assert_eq!(message.metadata.message_type, MessageType::Response);
    assert_eq!(message.metadata.op_code, query.metadata.op_code);
    assert!(!message.metadata.recursion_available);
    message
}

fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), record_type));
    message
}

fn with_edns(mut message: Message, payload: u16, version: u8) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(version);
    message.set_edns(edns);
    message
}

#[tokio::test]
async fn answers_come_over_udp_and_tcp_with_codes_and_soa() {
    let server = Server::start().await;
    let table = [
        (WEB, RecordType::A, ResponseCode::NoError, 1, false, true),
        (WEB, RecordType::AAAA, ResponseCode::NoError, 0, true, true),
        ("wEb.sHoP.svc.ClusterSet.local.", RecordType::A, ResponseCode::NoError, 1, false, true),
        ("missing.shop.svc.clusterset.local.", RecordType::A, ResponseCode::NXDomain, 0, true, true),
        ("web.shop.svc.cluster.local.", RecordType::A, ResponseCode::Refused, 0, false, false),
        ("clusterset.local.", RecordType::AXFR, ResponseCode::Refused, 0, false, false),
        (WEB, RecordType::ANY, ResponseCode::NoError, 1, false, true),
    ];
    for (name, record_type, code, answers, soa, authoritative) in table {
        let query = query(name, record_type);
        for response in [server.udp(&query).await, server.tcp(&query).await] {
            assert_eq!(response.metadata.response_code, code, "{name} {record_type}");
            assert_eq!(response.answers.len(), answers, "{name} {record_type}");
            let authorities: Vec<RecordType> =
                response.authorities.iter().map(hickory_proto::rr::Record::record_type).collect();
            assert_eq!(authorities, if soa { vec![RecordType::SOA] } else { vec![] }, "{name} {record_type}");
            assert_eq!(response.metadata.authoritative, authoritative, "{name} {record_type}");
            assert!(response.metadata.recursion_desired && !response.metadata.truncation);
            assert_eq!(response.queries, query.queries, "the question comes back as it was asked");
            assert!(response.edns.is_none());
        }
    }
    assert_eq!(server.metrics.answered(Transport::Udp, Kind::NoSuchName), 1);
    assert_eq!(server.metrics.answered(Transport::Tcp, Kind::Refused), 2);
    server.stop().await;
}

#[tokio::test]
async fn names_fail_until_the_zone_is_synced_and_follow_it_afterwards() {
    let server = Server::start().await;
    server.zone.store(Arc::new(Zone::default()));
    let response = server.udp(&query(WEB, RecordType::A)).await;
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    assert!(response.authorities.is_empty() && !response.metadata.authoritative);
    server.zone.store(Arc::new(zone(true, [241, 0, 0, 9])));
    let response = server.udp(&query(WEB, RecordType::A)).await;
    assert_eq!(response.answers[0].data.to_string(), "241.0.0.9");
    assert_eq!(response.answers[0].ttl, 5);
    server.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_over_udp_and_complete_over_tcp() {
    let server = Server::start().await;
    let plain = query(MANY, RecordType::A);
    let large = with_edns(query(MANY, RecordType::A), 65_535, 0);
    for query in [&plain, &large] {
        let packet = server.packet(&query.to_vec().unwrap(), DEADLINE).await.unwrap();
        assert!(packet.len() <= 512);
        let response = check(query, &packet);
        assert!(response.metadata.truncation && response.answers.is_empty());
        assert_eq!(response.edns.is_some(), query.edns.is_some(), "EDNS is answered even then");
        let response = server.tcp(query).await;
        assert!(!response.metadata.truncation);
        assert_eq!(response.answers.len(), 400);
    }
    server.stop().await;
}

#[tokio::test]
async fn edns_sizes_are_honoured_within_bounds_and_versions_refused() {
    let server = Server::start().await;
    // SRV of the web service with its address fits everywhere.
    let response = server.udp(&with_edns(query(WEB, RecordType::SRV), 4096, 0)).await;
    assert_eq!(response.answers.len(), 1);
    assert_eq!(response.additionals.len(), 1, "the target's address");
    let edns = response.edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
    let response = server.udp(&with_edns(query(WEB, RecordType::A), 100, 0)).await;
    assert_eq!(response.answers.len(), 1, "less than 512 counts as 512");
    let response = server.udp(&with_edns(query(WEB, RecordType::A), 4096, 1)).await;
    assert_eq!(u16::from(response.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert!(response.answers.is_empty() && response.edns.is_some());
    server.stop().await;
}

#[tokio::test]
async fn other_operations_classes_and_counts_are_told_so() {
    let server = Server::start().await;
    for op_code in [OpCode::Update, OpCode::Notify, OpCode::Status] {
        let mut message = query(WEB, RecordType::SOA);
        message.metadata.op_code = op_code;
        assert_eq!(server.udp(&message).await.metadata.response_code, ResponseCode::NotImp, "{op_code:?}");
    }
    let mut none = query(WEB, RecordType::A);
    none.queries.clear();
    assert_eq!(server.udp(&none).await.metadata.response_code, ResponseCode::FormErr);
    let mut two = query(WEB, RecordType::A);
    two.add_query(Query::query(Name::from_str(MANY).unwrap(), RecordType::A));
    assert_eq!(server.tcp(&two).await.metadata.response_code, ResponseCode::FormErr);
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(server.udp(&chaos).await.metadata.response_code, ResponseCode::Refused);
    server.stop().await;
}

#[tokio::test]
async fn garbage_is_answered_with_an_error_or_not_at_all_and_stops_nothing() {
    let server = Server::start().await;
    let mut truncated = query(WEB, RecordType::A).to_vec().unwrap();
    truncated.truncate(20);
    let response = Message::from_vec(&server.packet(&truncated, DEADLINE).await.unwrap()).unwrap();
    assert_eq!((response.metadata.id, response.metadata.response_code), (4711, ResponseCode::FormErr));
    let mut response = query(WEB, RecordType::A);
    response.metadata.message_type = MessageType::Response;
    for silent in [vec![], vec![0; 11], response.to_vec().unwrap()] {
        assert_eq!(server.packet(&silent, SILENCE).await, None, "{silent:?}");
    }
    server.packet(&vec![0xff; 9_000], SILENCE).await;
    server.packet(&[0; 4_096], SILENCE).await;

    // A length without a query, a length beyond any, and a connection that just closes.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).await.unwrap();
    let mut rest = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().ok();
    assert!(rest.is_empty(), "closed without a word");
    drop(TcpStream::connect(server.address).await.unwrap());

    assert_eq!(server.udp(&query(WEB, RecordType::A)).await.answers.len(), 1);
    assert_eq!(server.tcp(&query(WEB, RecordType::A)).await.answers.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_connection_carries_several_queries_and_many_connections_leave_room() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..5 {
        assert_eq!(ask_over(&mut stream, &query(WEB, RecordType::A)).await.answers.len(), 1);
    }
    // One source takes all it may have; another still gets in.
    let mut hoard = Vec::new();
    for _ in 0..200 {
        hoard.push(TcpStream::connect(server.address).await.unwrap());
    }
    let last = hoard.last_mut().unwrap();
    assert!(matches!(timeout(DEADLINE, last.read(&mut [0])).await.unwrap(), Ok(0) | Err(_)), "closed at once");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(server.address).await.unwrap();
    assert_eq!(ask_over(&mut other, &query(WEB, RecordType::A)).await.answers.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_stub_resolver_resolves_through_it() {
    let server = Server::start().await;
    let mut name_server = NameServerConfig::udp_and_tcp(server.address.ip());
    for connection in &mut name_server.connections {
        connection.port = server.address.port();
    }
    let config = ResolverConfig::from_parts(None, vec![], vec![name_server]);
    let resolver = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
    let addresses: Vec<IpAddr> = resolver.lookup_ip(WEB).await.unwrap().iter().collect();
    assert_eq!(addresses, [IpAddr::from([241, 0, 0, 1])]);
    let addresses = resolver.lookup_ip(MANY).await.unwrap();
    assert_eq!(addresses.iter().count(), 400, "by way of TCP");
    let error = resolver.lookup_ip("missing.shop.svc.clusterset.local.").await.unwrap_err();
    assert!(error.is_nx_domain(), "{error}");
    server.stop().await;
}

proptest! {
    #[test]
    fn no_packet_stops_the_responder(packet in prop::collection::vec(any::<u8>(), 0..600), flip in any::<(u16, u8)>()) {
        let zone = zone(true, [241, 0, 0, 1]);
        let source = SocketAddr::from(([127, 0, 0, 1], 5353));
        let mut bent = with_edns(query(MANY, RecordType::SRV), 1400, 0).to_vec().unwrap();
        let index = usize::from(flip.0) % bent.len();
        bent[index] ^= flip.1;
        for packet in [packet, bent] {
            for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
                let mut out = vec![1, 2, 3];
                let kind = respond(&zone, &packet, source, transport, &mut out);
                prop_assert_eq!(kind.is_some(), !out.is_empty());
                prop_assert!(out.len() <= limit);
                if kind.is_some() {
                    prop_assert_eq!(&out[..2], &packet[..2], "the query's id");
                    prop_assert!(out[2] & 0x80 != 0, "a response");
                }
            }
        }
    }
}
