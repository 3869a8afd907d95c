//! Captured traffic: a real client that knows nothing of the mesh, and the program as it is installed.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use federation_api::discovery::v1 as wire;
use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::record::v1::{HeadlessEndpoint, ServiceType};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::applications::Application;
use crate::cluster::{Cluster, GRPC, HTTP, PATIENCE, Pod, RAW, UNDECLARED, UNDECLARED_TOO, host};
use crate::gateway::Gateway;
use crate::namespace::{self, HOME, RESOLVER, said};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sidecar");
/// The user that the sidecar runs as, whose traffic is left alone.
const USER: u32 = 1337;

/// A client's sidecar as a process of its own user, and the files that it is given.
pub(crate) struct Installed {
    directory: TempDir,
    _running: Child,
}

impl Installed {
    pub(crate) async fn start(cluster: &Cluster) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let from = cluster.config("frontend-1", "frontend").discovery;
        cluster.workload("frontend-1", "frontend", &[]);
        for (file, name) in [(&from.root_file, "root.crt"), (&from.token_file, "token")] {
            std::fs::copy(file, directory.path().join(name)).unwrap();
        }
        std::fs::create_dir(directory.path().join("state")).unwrap();
        for name in ["root.crt", "token", "state"] {
            chown(directory.path().join(name), Some(USER), Some(USER)).unwrap();
        }
        let folder = directory.path().display();
        let config = format!(
            "runtime: {{ admin: \"127.0.0.1:15020\", health: \"127.0.0.1:15021\" }}
workload: {{ name: frontend-1, addresses: [127.0.0.1] }}
discovery:
  addresses: [\"{}\"]
  trustDomain: {}
  rootFile: {folder}/root.crt
  tokenFile: {folder}/token
listeners:
  outbound: [\"127.0.0.1:15001\", \"[::1]:15001\"]
  inbound: [\"127.0.0.1:15008\"]
  dns: [\"127.0.0.1:15053\", \"[::1]:15053\"]
capture: {{ ranges: [241.0.0.0/8, \"fd00:241::/64\"] }}
stateDirectory: {folder}/state
",
            from.addresses[0], from.trust_domain
        );
        std::fs::write(directory.path().join("sidecar.yaml"), config).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--"])
            .args([PROGRAM, "--config"])
            .arg(directory.path().join("sidecar.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let installed = Self { _running: command.spawn().unwrap(), directory };
        let waited = installed.command(&["wait", "--timeout", "20s"]).await;
        assert!(waited.status.success(), "{}", said(&waited));
        installed
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("sidecar.yaml")
    }

    /// One of the program's commands, with the same configuration.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).args(arguments).arg("--config").arg(self.config()).output().await.unwrap()
    }

    pub(crate) async fn done(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Another cluster behind a gateway, with an application for each kind of port.
struct Shop {
    east: Cluster,
    _west: Cluster,
    _server: Pod,
    _gateway: Gateway,
    _applications: Vec<Application>,
}

async fn shop() -> Shop {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    east.trusts(&west);
    west.trusts(&east);
    let applications = vec![
        Application::http1("web").await,
        Application::http2("grpc").await,
        Application::echo("redis").await,
        Application::echo("greeting").await,
        Application::http1("plain-web").await,
    ];
    let ports = [HTTP, GRPC, RAW, UNDECLARED, UNDECLARED_TOO];
    let bindings: Vec<_> = ports.into_iter().zip(applications.iter().map(Application::port)).collect();
    let server = west.pod("cart-1", "cart", &bindings).await;
    let gateway = Gateway::start(vec![("west/shop/cart-1".to_owned(), server.mesh())]).await;
    east.imports(&ports, vec![west.remote(1, &[("gw-1", gateway.address)], &ports)]);
    Shop { east, _west: west, _server: server, _gateway: gateway, _applications: applications }
}

/// An application: a user without privileges, and not the sidecar's.
async fn curl(arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--"]);
    command.args(["curl", "--silent", "--show-error", "--max-time", "10"]).args(arguments).output().await.unwrap()
}

async fn page(arguments: &[&str]) -> String {
    let output = curl(arguments).await;
    assert!(output.status.success(), "curl {arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A resolver that knows `plain.example` and nothing else, over UDP and TCP.
fn resolver() {
    let socket = UdpSocket::bind((RESOLVER, 53)).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 4096];
        loop {
            let (length, source) = socket.recv_from(&mut packet).unwrap();
            socket.send_to(&resolved(&packet[..length]), source).unwrap();
        }
    });
    let listener = std::net::TcpListener::bind((RESOLVER, 53)).unwrap();
    std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query).unwrap();
            let answer = resolved(&query);
            stream.write_all(&[&u16::try_from(answer.len()).unwrap().to_be_bytes(), &answer[..]].concat()).unwrap();
        }
    });
}

fn resolved(query: &[u8]) -> Vec<u8> {
    let query = Message::from_bytes(query).unwrap();
    let question = query.queries[0].clone();
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_query(question.clone());
    if question.name().to_ascii().trim_end_matches('.') != "plain.example" {
        answer.metadata.response_code = ResponseCode::NXDomain;
    } else if question.query_type() == RecordType::A {
        let address = RData::A(A(HOME.parse().unwrap()));
        answer.add_answer(Record::from_rdata(question.name().clone(), 5, address));
    }
    answer.to_bytes().unwrap()
}

/// Asks for addresses over a connection to the resolver.
async fn asked_by_tcp(stream: &mut TcpStream, name: &str) -> (ResponseCode, Vec<String>) {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let query = query.to_bytes().unwrap();
    stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
    stream.write_all(&query).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    let answer = Message::from_bytes(&answer).unwrap();
    (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
}

/// One plain HTTP exchange: who connected, and every byte that came.
async fn plain_exchange(listener: &TcpListener, client: impl Future<Output = String>) -> (SocketAddr, Vec<u8>) {
    let serving = async {
        let (mut stream, peer) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await.unwrap();
        (peer, request)
    };
    let (page, served) = tokio::join!(client, serving);
    assert_eq!(page, "ok");
    served
}

async fn connect(address: &str, port: u16) -> TcpStream {
    TcpStream::connect((address, port)).await.unwrap()
}

/// Everything that comes until the other side has ended, after this side has said something and ended.
async fn exchange(address: &str, port: u16, bytes: &[u8]) -> String {
    let mut stream = connect(address, port).await;
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[test]
fn a_client_that_knows_nothing_of_the_mesh_reaches_another_cluster_by_name() {
    namespace::inside("capture::a_client_that_knows_nothing_of_the_mesh_reaches_another_cluster_by_name", || async {
        resolver();
        let mut shop = shop().await;
        let installed = Installed::start(&shop.east).await;
        installed.done(&["capture", "install"]).await;
        let url = format!("http://{}/hello", host("cart"));
        assert_eq!(page(&[&url]).await, "web GET /hello ");
        assert_eq!(page(&["-4", &url]).await, "web GET /hello ");
        assert_eq!(page(&["-6", &url]).await, "web GET /hello ");
        assert_eq!(page(&["http://[fd00:241::7]/six"]).await, "web GET /six ");
        let alias = page(&["-i", "-H", "host: alias.example", "http://241.0.0.7/"]).await;
        assert!(alias.contains(&format!("echo-host: {}:80", host("cart"))), "the mesh's own name: {alias}");
        let wrong = page(&["-i", "-H", "host: other.shop.svc.clusterset.local", "http://241.0.0.7/"]).await;
        assert!(wrong.starts_with("HTTP/1.1 421 "), "{wrong}");
        let grpc = format!("http://{}:50051/shop.Cart/Get", host("cart"));
        let answer = page(&["-i", "--http2-prior-knowledge", "-H", "te: trailers", "-d", "frames", &grpc]).await;
        assert!(answer.contains("frames") && answer.contains("grpc-status: 0"), "{answer}");
        assert_eq!(exchange("241.0.0.7", 6379, b"PING").await, "redisPING;4");
        assert_eq!(exchange("fd00:241::7", 6379, b"PING").await, "redisPING;4");
        // What was used once goes on without a control-plane, names included.
        shop.east.control_plane.stop().await;
        assert_eq!(page(&[&url]).await, "web GET /hello ");
    });
}

#[test]
fn on_undeclared_ports_servers_may_speak_first_and_http_is_recognised() {
    namespace::inside("capture::on_undeclared_ports_servers_may_speak_first_and_http_is_recognised", || async {
        resolver();
        let shop = shop().await;
        let installed = Installed::start(&shop.east).await;
        installed.done(&["capture", "install"]).await;
        let mut silent = connect("241.0.0.7", UNDECLARED.port).await;
        let mut greeting = [0; 8];
        tokio::time::timeout(PATIENCE, silent.read_exact(&mut greeting)).await.unwrap().unwrap();
        assert_eq!(&greeting, b"greeting");
        silent.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut echoed = [0; 18];
        silent.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"GET / HTTP/1.1\r\n\r\n", "what comes later changes nothing");
        assert_eq!(exchange("241.0.0.7", UNDECLARED.port, b"\x16\x03\x01binary").await, "greeting\x16\x03\x01binary;9");
        let answer = page(&["-i", &format!("http://{}:9001/x", host("cart"))]).await;
        assert!(answer.ends_with("plain-web GET /x "), "{answer}");
        assert!(answer.contains("echo-x-forwarded-client-cert:"), "as HTTP, not as bytes: {answer}");
    });
}

#[test]
fn what_is_not_of_the_clusterset_is_not_touched() {
    namespace::inside("capture::what_is_not_of_the_clusterset_is_not_touched", || async {
        resolver();
        let shop = shop().await;
        let installed = Installed::start(&shop.east).await;
        let listener = TcpListener::bind((HOME, 8080)).await.unwrap();
        let (_, before) = plain_exchange(&listener, page(&["http://plain.example:8080/path"])).await;
        installed.done(&["capture", "install"]).await;
        let (_, after) = plain_exchange(&listener, page(&["http://plain.example:8080/path"])).await;
        assert_eq!(String::from_utf8_lossy(&before), String::from_utf8_lossy(&after));
        // The very connection, and every byte in it.
        let mut client = TcpStream::connect((HOME, 8080)).await.unwrap();
        let (mut server, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let sending = async { client.write_all(&bytes).await.unwrap() };
        let mut received = vec![0; bytes.len()];
        let receiving = async { server.read_exact(&mut received).await.unwrap() };
        tokio::join!(sending, receiving);
        assert_eq!(received, bytes);
        let state = page(&["http://127.0.0.1:15020/metrics"]).await;
        assert!(!state.contains("isthmus_sidecar_outbound_requests_total{"), "nothing came by: {state}");
    });
}

#[test]
fn what_cannot_be_carried_is_refused_at_once_and_the_sidecars_own_traffic_does_not_come_back() {
    namespace::inside(
        "capture::what_cannot_be_carried_is_refused_at_once_and_the_sidecars_own_traffic_does_not_come_back",
        || async {
            resolver();
            let shop = shop().await;
            let installed = Installed::start(&shop.east).await;
            installed.done(&["capture", "install"]).await;
            let datagrams = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
            datagrams.connect("241.0.0.7:5000").await.unwrap();
            // The kernel may say it at once, too.
            let _ = datagrams.send(b"x").await;
            let refused = tokio::time::timeout(PATIENCE, datagrams.recv(&mut [0; 1])).await.unwrap();
            assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
            // The reset may come before the client has looked at its own connect.
            let heard = async { TcpStream::connect(("241.0.0.7", 81)).await?.read(&mut [0; 1]).await };
            let ended = tokio::time::timeout(PATIENCE, heard).await.unwrap();
            assert_eq!(
                ended.unwrap_err().kind(),
                std::io::ErrorKind::ConnectionReset,
                "a port that the service has not"
            );
            let own = Command::new("setpriv")
                .args(["--reuid", &USER.to_string(), "--clear-groups", "--", "curl", "-s", "--max-time", "1"])
                .arg("http://241.0.0.7/")
                .output()
                .await
                .unwrap();
            assert!(!own.status.success(), "it goes out as it is: {}", said(&own));
            assert_eq!(page(&["http://241.0.0.7/"]).await, "web GET / ", "others' does not");
        },
    );
}

#[test]
fn rules_are_installed_and_removed_any_number_of_times() {
    namespace::inside("capture::rules_are_installed_and_removed_any_number_of_times", || async {
        let shop = shop().await;
        let installed = Installed::start(&shop.east).await;
        assert_eq!(installed.done(&["capture", "show"]).await, "nothing is captured\n");
        installed.done(&["capture", "remove"]).await;
        installed.done(&["capture", "install"]).await;
        let first = installed.done(&["capture", "show"]).await;
        for expected in ["table inet isthmus", "redirect to :15001", "redirect to :15053", "skuid 1337"] {
            assert!(first.contains(expected), "{expected}: {first}");
        }
        installed.done(&["capture", "install"]).await;
        assert_eq!(installed.done(&["capture", "show"]).await, first);
        assert_eq!(page(&["http://241.0.0.7/"]).await, "web GET / ");
        installed.done(&["capture", "remove"]).await;
        installed.done(&["capture", "remove"]).await;
        assert_eq!(installed.done(&["capture", "show"]).await, "nothing is captured\n");
        let begun = Instant::now();
        assert!(!curl(&["--max-time", "1", "http://241.0.0.7/"]).await.status.success());
        assert!(begun.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn where_requests_go_and_what_would_be_is_explained_on_the_admin_listener() {
    namespace::inside("capture::where_requests_go_and_what_would_be_is_explained_on_the_admin_listener", || async {
        resolver();
        let shop = shop().await;
        let installed = Installed::start(&shop.east).await;
        installed.done(&["capture", "install"]).await;
        let ask = async |question: &str| {
            let json = ["-H", "content-type: application/json", "-d", question, "http://127.0.0.1:15020/debug/explain"];
            serde_json::from_str::<serde_json::Value>(&page(&json).await).unwrap()
        };
        let unknown = ask(r#"{"service": "shop/cart"}"#).await;
        assert!(unknown["error"].as_str().unwrap().contains("has not asked for it yet"), "{unknown}");
        assert_eq!(page(&["http://241.0.0.7/"]).await, "web GET / ");
        let answer = ask(r#"{"service": "shop/cart", "port": 80, "failed": ["cluster=west"]}"#).await;
        let port = &answer["ports"][0];
        let now = &port["now"]["priorities"][0]["groups"][0];
        assert_eq!((&now["name"], &now["why"], &now["load"]), (&"west".into(), &"other region".into(), &1.0.into()));
        let members = now["members"].as_array().unwrap();
        assert!(members.iter().any(|member| member["endpoint"] == "west/shop/cart-1"), "who answered: {answer}");
        assert_eq!((&port["now"]["panic"], &port["whatIf"]["panic"]), (&false.into(), &true.into()), "{answer}");
        let out = &port["whatIf"]["priorities"][0]["groups"][0]["members"][0];
        assert_eq!(out["ejected"]["cause"], "Supposed", "{answer}");
        assert_eq!(page(&["http://241.0.0.7/"]).await, "web GET / ", "nothing really failed");
        let nobody = ask(r#"{"service": "shop/cart", "failed": ["cluster=north"]}"#).await;
        assert!(nobody["error"].as_str().unwrap().contains("north"), "{nobody}");
    });
}

#[test]
fn queries_over_tcp_are_captured_as_those_over_udp_are() {
    namespace::inside("capture::queries_over_tcp_are_captured_as_those_over_udp_are", || async {
        resolver();
        let shop = shop().await;
        let installed = Installed::start(&shop.east).await;
        installed.done(&["capture", "install"]).await;
        let mut stream = connect(RESOLVER, 53).await;
        let cart = asked_by_tcp(&mut stream, "cart.shop.svc.clusterset.local.").await;
        assert_eq!(cart, (ResponseCode::NoError, vec!["241.0.0.7".to_owned()]));
        let plain = asked_by_tcp(&mut stream, "plain.example.").await;
        assert_eq!(plain, (ResponseCode::NoError, vec![HOME.to_owned()]), "passed on, on the same connection");
        let nobody = asked_by_tcp(&mut stream, "nobody.example.").await;
        assert_eq!(nobody, (ResponseCode::NXDomain, vec![]));
    });
}

#[test]
fn headless_services_and_their_endpoints_have_names_without_a_control_plane() {
    namespace::inside("capture::headless_services_and_their_endpoints_have_names_without_a_control_plane", || async {
        resolver();
        let mut shop = shop().await;
        let installed = Installed::start(&shop.east).await;
        installed.done(&["capture", "install"]).await;
        let endpoint = |hostname: &str, address: &str, ready: bool| HeadlessEndpoint {
            hostname: hostname.to_owned(),
            addresses: vec![address.to_owned()],
            ready,
            ..HeadlessEndpoint::default()
        };
        let part = |cluster: &str, headless: Vec<HeadlessEndpoint>| wire::Cluster {
            cluster: cluster.to_owned(),
            identities: vec![shop.east.identity("cart")],
            trust_domain: shop.east.state().trust_domain().to_string(),
            headless,
            ..wire::Cluster::default()
        };
        let east = part("east", vec![endpoint("db-0", "10.1.0.5", true), endpoint("db-1", "10.1.0.6", false)]);
        let west = part("west", vec![endpoint("db-0", "241.0.0.90", true)]);
        let service = wire::Service {
            name: "db".to_owned(),
            host: host("db"),
            vips: vec![],
            r#type: ServiceType::Headless.into(),
            ..shop.east.service(&[RAW], vec![east, west])
        };
        shop.east.state().set(&format!("service/{}", host("db")), Kind::Service(service));
        let mut stream = connect(RESOLVER, 53).await;
        let (code, mut all) = asked_by_tcp(&mut stream, &format!("{}.", host("db"))).await;
        all.sort_unstable();
        let ready = ["10.1.0.5".to_owned(), "241.0.0.90".to_owned()];
        assert_eq!((code, all.as_slice()), (ResponseCode::NoError, &ready[..]), "the ready ones of all clusters");
        shop.east.control_plane.stop().await;
        let one = asked_by_tcp(&mut stream, &format!("db-0.west.{}.", host("db"))).await;
        assert_eq!(one, (ResponseCode::NoError, vec!["241.0.0.90".to_owned()]));
        let other = asked_by_tcp(&mut stream, &format!("db-7.west.{}.", host("db"))).await;
        assert_eq!(other.0, ResponseCode::NXDomain);
    });
}
