//! `isthmus dig`, against a small server that answers over UDP and TCP from one port.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::control_plane::ControlPlane;
use crate::{Ran, isthmus};

const CART: &str = "cart.shop.svc.clusterset.local.";

/// A server of the names in [`respond`].
struct Server {
    address: SocketAddr,
    tcp: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        // The same port of both transports; somebody else may have the second, then another pair is tried.
        let (udp, listener) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(listener) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, listener);
            }
        };
        let (address, tcp) = (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        tasks.spawn(over_udp(udp));
        tasks.spawn(over_tcp(listener, Arc::clone(&tcp)));
        Self { address, tcp, _tasks: tasks }
    }

    async fn dig(&self, arguments: &[&str]) -> Ran {
        let server = self.address.to_string();
        let arguments = [&["dig", "--server", &server], arguments].concat();
        isthmus(&PathBuf::from("/nonexistent/admin.sock"), &arguments, "").await
    }
}

async fn over_udp(socket: UdpSocket) {
    let mut buffer = [0; 2048];
    let mut lost = 0;
    while let Ok((size, client)) = socket.recv_from(&mut buffer).await {
        let query = Message::from_vec(&buffer[..size]).unwrap();
        assert_eq!(query.max_payload(), 1232, "the query offers EDNS");
        let name = query.queries[0].name().to_ascii();
        if name.starts_with("lost-once.") && lost == 0 {
            lost += 1;
            continue;
        }
        if name.starts_with("silent.") {
            continue;
        }
        if name.starts_with("forged.") {
            let mut forged = answer(&query);
            forged.metadata.id = query.metadata.id.wrapping_add(1);
            forged.answers = vec![address(&name, [6, 6, 6, 6])];
            socket.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
        }
        let mut reply = answer(&query);
        if name.starts_with("large.") {
            reply = reply.truncate();
        }
        let mut bytes = reply.to_vec().unwrap();
        if name.starts_with("cut.") {
            bytes[2] |= 0b10;
            bytes.truncate(bytes.len() - 3);
        }
        socket.send_to(&bytes, client).await.unwrap();
    }
}

async fn over_tcp(listener: TcpListener, served: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut query).await.unwrap();
        let reply = answer(&Message::from_vec(&query).unwrap()).to_vec().unwrap();
        stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
        stream.write_all(&reply).await.unwrap();
        served.fetch_add(1, Ordering::Relaxed);
    }
}

fn address(name: &str, octets: [u8; 4]) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), 5, RData::A(A::from(Ipv4Addr::from(octets))))
}

fn answer(query: &Message) -> Message {
    let question: Query = query.queries[0].clone();
    let name = question.name().to_ascii();
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.edns = query.edns.clone();
    match (name.as_str(), question.query_type()) {
        (CART, RecordType::A) => {
            reply.add_answer(address(CART, [241, 0, 0, 3]));
        }
        (CART, RecordType::AAAA) => {}
        ("_http._tcp.cart.shop.svc.clusterset.local.", RecordType::SRV) => {
            let target = SRV::new(0, 50, 80, Name::from_ascii(CART).unwrap());
            reply.add_answer(Record::from_rdata(question.name().clone(), 30, RData::SRV(target)));
            reply.add_additional(address(CART, [241, 0, 0, 3]));
        }
        ("dns-version.clusterset.local.", RecordType::TXT) => {
            let text = TXT::new(vec!["1.0.0".to_owned()]);
            reply.add_answer(Record::from_rdata(question.name().clone(), 28800, RData::TXT(text)));
        }
        (name, RecordType::A) if name.starts_with("large.") || name.starts_with("cut.") => {
            for last in 0..200 {
                reply.add_answer(address(name, [10, 0, 0, last]));
            }
        }
        (name, RecordType::A) if name.starts_with("forged.") || name.starts_with("lost-once.") => {
            reply.add_answer(address(name, [10, 0, 0, 1]));
        }
        _ => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    reply.add_query(question);
    reply
}

#[tokio::test]
async fn an_answer_reads_like_digs() {
    let server = Server::start().await;
    let ran = server.dig(&["cart.shop.svc.clusterset.local"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for line in [
        "status: NOERROR",
        ";; flags: qr aa rd; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1",
        ";cart.shop.svc.clusterset.local.\t\tIN\tA",
        "cart.shop.svc.clusterset.local.\t5\tIN\tA\t241.0.0.3\n",
        &format!(";; SERVER: 127.0.0.1#{} (UDP)", server.address.port()),
    ] {
        assert!(ran.stdout.contains(line), "{line:?} is not in {}", ran.stdout);
    }
}

#[tokio::test]
async fn a_service_can_be_asked_for_as_kubernetes_names_it() {
    let server = Server::start().await;
    let ran = server.dig(&["shop/cart", "--short"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "241.0.0.3\n"), "{ran:?}");
}

#[tokio::test]
async fn json_has_every_section() {
    let server = Server::start().await;
    let ran = server.dig(&["_http._tcp.cart.shop.svc.clusterset.local", "srv", "-o", "json"]).await;
    let json = ran.json();
    assert_eq!(json["status"], "NOERROR");
    assert_eq!(json["type"], "SRV");
    assert_eq!(json["transport"], "udp");
    assert_eq!(json["flags"], json!(["qr", "aa", "rd"]));
    assert_eq!(
        json["answers"],
        json!([{"name": "_http._tcp.cart.shop.svc.clusterset.local.", "ttl": 30, "class": "IN", "type": "SRV",
            "data": "0 50 80 cart.shop.svc.clusterset.local."}])
    );
    assert_eq!(json["additional"][0]["data"], "241.0.0.3");
    assert!(json["queryTimeMs"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn texts_are_quoted() {
    let server = Server::start().await;
    let ran = server.dig(&["dns-version.clusterset.local", "TXT", "--short"]).await;
    assert_eq!(ran.stdout, "\"1.0.0\"\n", "{ran:?}");
}

#[tokio::test]
async fn no_data_is_an_answer_and_no_name_is_bad_news() {
    let server = Server::start().await;
    let ran = server.dig(&["shop/cart", "AAAA"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("ANSWER: 0"), "{ran:?}");
    let ran = server.dig(&["shop/none"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stdout.contains("status: NXDOMAIN"), "{ran:?}");
}

#[tokio::test]
async fn what_does_not_fit_comes_over_tcp() {
    let server = Server::start().await;
    for (number, name) in ["large.example", "cut.example"].iter().enumerate() {
        let ran = server.dig(&[name, "-o", "json"]).await;
        let json = ran.json();
        assert_eq!(json["transport"], "tcp");
        assert_eq!(json["answers"].as_array().unwrap().len(), 200);
        assert_eq!(server.tcp.load(Ordering::Relaxed), number + 1);
    }
    let ran = server.dig(&["shop/cart", "--tcp", "-o", "json"]).await;
    assert_eq!(ran.json()["transport"], "tcp");
}

#[tokio::test]
async fn a_lost_query_is_sent_again_and_a_forged_answer_is_passed_over() {
    let server = Server::start().await;
    let ran = server.dig(&["lost-once.example", "--short", "--timeout", "300ms"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "10.0.0.1\n"), "{ran:?}");
    let ran = server.dig(&["forged.example", "--short"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "10.0.0.1\n"), "{ran:?}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_named() {
    let server = Server::start().await;
    let ran = server.dig(&["silent.example", "--timeout", "100ms"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    let expected = format!("isthmus: dig silent.example: {}: no answer in time\n", server.address);
    assert_eq!(ran.stderr, expected);
}

#[tokio::test]
async fn the_control_plane_says_where_its_dns_is() {
    let server = Server::start().await;
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| state.status["dns"] = json!([server.address]));
    let ran = isthmus(control_plane.socket(), &["dig", "shop/cart", "--short"], "").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "241.0.0.3\n"), "{ran:?}");

    control_plane.change(|state| state.status["dns"] = json!([]));
    let ran = isthmus(control_plane.socket(), &["dig", "shop/cart"], "").await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("names no DNS address") && ran.stderr.contains("--server"), "{ran:?}");
}
