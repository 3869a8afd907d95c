//! Services of a namespace that has opted in: `ads.shop.svc.cluster.local`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use federation_api::discovery::v1::access_policy::Action;
use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::discovery::v1::{
    self as wire, AccessPolicy, AccessRule, Binding, Endpoint, LocalServices, Workload,
};
use federation_api::mesh::v1::verdict::Code;
use http::{Method, StatusCode};
use sidecar::capture;
use sidecar::config::CaptureConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::applications::Application;
use crate::client::{self, Client};
use crate::cluster::{Cluster, GRPC, HTTP, PATIENCE, Pod, RAW, TestPort, UNDECLARED, ready};
use crate::inbound::{self, Peer};
use crate::namespace::{self, run, said};

const HOST: &str = "ads.shop.svc.cluster.local";
const PORTS: [TestPort; 4] = [HTTP, GRPC, RAW, UNDECLARED];

/// An endpoint without a sidecar, which answers these ports at these applications.
fn plain(name: &str, ports: &[(TestPort, &Application)]) -> Endpoint {
    Endpoint {
        id: format!("east/shop/{name}"),
        address: "127.0.0.1".to_owned(),
        ready: true,
        targets: ports.iter().map(|(port, at)| (u32::from(port.port), u32::from(at.port()))).collect(),
        ..Endpoint::default()
    }
}

impl Cluster {
    /// Tells this cluster's clients about the service.
    fn has_ads(&self, endpoints: Vec<Endpoint>) {
        let service = wire::Service {
            name: "ads".to_owned(),
            host: HOST.to_owned(),
            vips: vec!["10.96.0.7".to_owned()],
            ..self.service(&PORTS, vec![self.local(endpoints, &PORTS)])
        };
        self.state().set(&format!("service/{HOST}"), Kind::Service(service));
        let addresses = vec!["10.96.0.7".to_owned()];
        self.state().set("local-services", Kind::LocalServices(LocalServices { addresses }));
    }

    /// Nobody has opted in any more.
    fn has_ads_no_more(&self) {
        let gone = ["local-services".to_owned(), format!("service/{HOST}")];
        self.state().resources.lock().unwrap().retain(|name, _| !gone.contains(name));
        self.state().revision.send_modify(|revision| *revision += 1);
    }

    /// A workload with a sidecar that answers the service's ports.
    async fn ads_pod(&self, ports: &[(TestPort, &Application)], policies: Vec<AccessPolicy>) -> Pod {
        let binding = |(port, at): &(TestPort, &Application)| Binding {
            host: HOST.to_owned(),
            port: Some(port.wire()),
            target_port: at.port().into(),
        };
        let workload = Workload {
            endpoint: "east/shop/ads-mesh".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "ads".to_owned(),
            bindings: ports.iter().map(binding).collect(),
            policies,
            ..Workload::default()
        };
        self.state().set("workload@ads-mesh", Kind::Workload(workload));
        let pod = self.pod_with(self.config("ads-mesh", "ads"), "ads").await;
        ready(&pod.process).await;
        pod
    }
}

/// How many answers came from whom.
async fn answers(proxy: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut client = Client::connect(proxy).await;
    let mut answers = BTreeMap::new();
    for _ in 0..requests {
        let answer = client.get(&format!("http://{HOST}/")).await;
        let from = answer.body.split(' ').next().unwrap_or_default().to_owned();
        *answers.entry(format!("{} {from}", answer.status.as_u16())).or_default() += 1;
    }
    answers
}

#[tokio::test]
async fn calls_are_balanced_over_endpoints_without_sidecars_and_leave_those_that_die() {
    let east = Cluster::start("east").await;
    let (one, two) = (Application::http1("one").await, Application::http1("two").await);
    east.has_ads(vec![plain("ads-1", &[(HTTP, &one)]), plain("ads-2", &[(HTTP, &two)])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    // How often each is asked depends on how fast it was.
    let both = answers(client.proxy(), 100).await;
    assert!(both.keys().eq(["200 one", "200 two"]), "{both:?}");
    let spoofed =
        [("x-forwarded-client-cert", "URI=spiffe://east.mesh.example/ns/shop/sa/admin"), ("isthmus-trace", "1")];
    let mut connection = Client::connect(client.proxy()).await;
    let answer = connection.call(Method::POST, &format!("http://{HOST}/x"), "body", &spoofed).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body.ends_with(" POST /x body"), "{}", answer.body);
    assert_eq!((answer.header("echo-host"), answer.header("echo-x-forwarded-client-cert")), (HOST, ""));
    let path = answer.header("isthmus-path");
    assert!(path.contains("server=-; cluster=east; gateway=-; endpoint=east/shop/ads-"), "{path}");
    one.kill().await;
    // None fails, POSTs among them: the dead one has seen nothing of them.
    for _ in 0..30 {
        let answer = connection.call(Method::POST, &format!("http://{HOST}/x"), "body", &[]).await;
        assert!(answer.status == StatusCode::OK && answer.body.starts_with("two "), "{answer:?}");
    }
    assert_eq!(answers(client.proxy(), 30).await, BTreeMap::from([("200 two".to_owned(), 30)]));
}

#[tokio::test]
async fn without_a_sidecar_every_protocol_arrives_as_the_application_speaks_it() {
    let east = Cluster::start("east").await;
    let (grpc, redis) = (Application::http2("grpc").await, Application::echo("redis").await);
    let upgrading = Application::upgrading().await;
    east.has_ads(vec![plain("ads-1", &[(HTTP, &upgrading), (GRPC, &grpc), (RAW, &redis)])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let (code, mut raw) = client::connect(client.proxy(), &format!("{HOST}:6379")).await;
    assert_eq!(code, 200);
    raw.write_all(b"PING").await.unwrap();
    raw.shutdown().await.unwrap();
    let mut said = String::new();
    tokio::time::timeout(PATIENCE, raw.read_to_string(&mut said)).await.unwrap().unwrap();
    assert_eq!(said, "redisPING;4");

    let (_, tunnel) = client::connect(client.proxy(), &format!("{HOST}:50051")).await;
    let mut sender = client::http2(tunnel).await;
    let call =
        client::request(Method::POST, &format!("http://{HOST}:50051/shop.Ads/Get"), "frames", &[("te", "trailers")]);
    let answer = client::Answer::read(sender.send_request(call).await.unwrap()).await.unwrap();
    assert_eq!(
        (answer.body.as_str(), answer.header("echo-name"), answer.header("echo-te")),
        ("frames", "grpc", "trailers")
    );
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");

    let (_, mut upgraded) = client::connect(client.proxy(), &format!("{HOST}:80")).await;
    let asked = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n");
    upgraded.write_all(asked.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\nchat") {
        head.push(tokio::time::timeout(PATIENCE, upgraded.read_u8()).await.unwrap().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    upgraded.write_all(b"bytes").await.unwrap();
    let mut bytes = [0; 5];
    tokio::time::timeout(PATIENCE, upgraded.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"bytes");
}

#[tokio::test]
async fn where_the_endpoint_has_a_sidecar_the_way_is_mutual_tls_and_the_application_learns_who_calls() {
    let east = Cluster::start("east").await;
    let (secure, bare, redis) =
        (Application::http1("secure").await, Application::http1("bare").await, Application::echo("redis").await);
    let server = east.ads_pod(&[(HTTP, &secure), (RAW, &redis)], vec![]).await;
    let mesh = east.endpoint_at("ads-mesh", server.mesh(), "ads");
    let without = Endpoint { locality: mesh.locality.clone(), ..plain("ads-1", &[(HTTP, &bare)]) };
    east.has_ads(vec![mesh, without]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let mut connection = Client::connect(client.proxy()).await;
    let (mut asked, deadline) = (BTreeSet::new(), Instant::now() + PATIENCE);
    // Each is asked before it is known how fast it is; from then on the faster one is asked more.
    while asked.len() < 2 {
        assert!(Instant::now() < deadline, "only {asked:?}");
        let answer = connection.call(Method::GET, &format!("http://{HOST}/"), "", &[("isthmus-trace", "1")]).await;
        let (caller, path) = (answer.header("echo-x-forwarded-client-cert"), answer.header("isthmus-path"));
        let secured = answer.body.starts_with("secure");
        if secured {
            assert!(caller.contains(&format!("URI={}", east.identity("frontend"))), "{caller}");
            assert!(path.contains(&format!("server={}; ", east.identity("ads"))), "{path}");
        } else {
            assert_eq!((answer.body.split(' ').next(), caller), (Some("bare"), ""), "{answer:?}");
        }
        asked.insert(secured);
    }
    let (code, mut raw) = client::connect(client.proxy(), &format!("{HOST}:6379")).await;
    let mut name = [0; 5];
    tokio::time::timeout(PATIENCE, raw.read_exact(&mut name)).await.unwrap().unwrap();
    assert_eq!((code, &name), (200, b"redis"));
}

#[tokio::test]
async fn another_clusters_identity_is_refused_whatever_policies_allow() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    east.trusts(&west);
    let (web, redis) = (Application::http1("web").await, Application::echo("redis").await);
    let everybody = AccessPolicy {
        name: "shop/everybody".to_owned(),
        action: Action::Allow.into(),
        rules: vec![AccessRule::default()],
        ..AccessPolicy::default()
    };
    let server = east.ads_pod(&[(HTTP, &web), (RAW, &redis)], vec![everybody]).await;
    let peer = |cluster: &Cluster| Peer {
        identity: Some(cluster.state().identity("shop", "frontend")),
        trust: east.state().own_trust(),
        server: east.identity("ads"),
    };
    let sni = |port: u16, subset: &str| format!("outbound_.{port}_.{subset}_.{HOST}");
    for subset in ["", "c-east"] {
        assert_eq!(peer(&west).verdict(server.mesh(), &sni(6379, subset), b"isthmus-tcp").await, Code::Denied);
        assert_eq!(peer(&east).verdict(server.mesh(), &sni(6379, subset), b"isthmus-tcp").await, Code::Ok);
    }
    for (cluster, expected) in [(&west, StatusCode::FORBIDDEN), (&east, StatusCode::OK)] {
        let (stream, _) = peer(cluster).dial(server.mesh(), &sni(80, "c-east"), b"isthmus-h2").await.unwrap();
        let mut sender = inbound::session(stream).await;
        // By whatever name its own cluster calls it, but for another service's.
        for (uri, status) in [
            (format!("http://{HOST}/"), expected),
            ("http://ads/".to_owned(), expected),
            ("http://10.96.0.7:80/".to_owned(), expected),
            ("http://cart.shop.svc.cluster.local/".to_owned(), StatusCode::MISDIRECTED_REQUEST),
            ("http://ads.shop.svc.clusterset.local/".to_owned(), StatusCode::MISDIRECTED_REQUEST),
        ] {
            let request = client::request(Method::GET, &uri, "", &[]);
            assert_eq!(sender.send_request(request).await.unwrap().status(), status, "{uri}");
        }
    }
    // The clusterset's name is bound by an export alone.
    let clusterset = "outbound_.80_.c-east_.ads.shop.svc.clusterset.local";
    assert_eq!(peer(&east).verdict(server.mesh(), clusterset, b"isthmus-h2").await, Code::UnknownService);
}

#[tokio::test]
async fn other_clusters_are_never_tried_and_who_has_not_opted_in_is_refused_by_the_proxy() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let there = Application::http1("there").await;
    let service = wire::Service {
        name: "ads".to_owned(),
        host: HOST.to_owned(),
        ..east.service(&PORTS, vec![west.remote(1, &[("gw-1", there.address)], &PORTS)])
    };
    east.state().set(&format!("service/{HOST}"), Kind::Service(service));
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let answer = client::get(client.proxy(), &format!("http://{HOST}/")).await;
    assert_eq!((answer.status, answer.header("isthmus-error")), (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint"));
    assert_eq!(there.requests(), 0);
    let answer = client::get(client.proxy(), "http://other.shop.svc.cluster.local/").await;
    assert_eq!((answer.status, answer.header("isthmus-error")), (StatusCode::FORBIDDEN, "not-opted-in"));
}

/// A client that is not the sidecar's user, from a port of its own; what it says is what the server sent.
async fn outsider(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--", program]).args(arguments);
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

async fn curl(arguments: &[&str]) -> String {
    outsider("curl", &[&["--silent", "--show-error", "--max-time", "10"], arguments].concat()).await
}

/// What would answer without any mesh: says the port that it was called from, whatever comes.
async fn original(address: &str, port: u16) {
    let listener = TcpListener::bind((address, port)).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, peer) = listener.accept().await.unwrap();
            let body = format!("original {}", peer.port());
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            // Before anything was read: a server that speaks first.
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
}

async fn until_shown(text: &str, shown: bool) {
    let deadline = Instant::now() + PATIENCE;
    while capture::show().unwrap().unwrap().contains(text) != shown {
        assert!(Instant::now() < deadline, "never {shown}: {text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn what_is_sent_to_cluster_ips_is_captured_while_its_namespace_has_opted_in_and_nothing_else_is() {
    namespace::inside(
        "local_services::what_is_sent_to_cluster_ips_is_captured_while_its_namespace_has_opted_in_and_nothing_else_is",
        || async {
            for address in ["10.96.0.7/32", "10.96.0.8/32"] {
                run("ip", &["address", "add", address, "dev", "home"]);
            }
            for (address, port) in [("10.96.0.7", 80), ("10.96.0.7", 8081), ("10.96.0.8", 80)] {
                original(address, port).await;
            }
            let east = Cluster::start("east").await;
            let (web, greeting) = (Application::http1("web").await, Application::echo("greeting").await);
            let endpoint = plain("ads-1", &[(HTTP, &web), (UNDECLARED, &greeting)]);
            let mut config = east.config("frontend-1", "frontend");
            config.listeners.outbound = vec!["127.0.0.1:15001".parse().unwrap()];
            config.capture = Some(CaptureConfig { excluded_users: vec![0], ..CaptureConfig::default() });
            east.workload("frontend-1", "frontend", &[]);
            capture::install(&config).unwrap();
            let client = east.pod_with(config.clone(), "frontend").await;
            ready(&client.process).await;
            // The very connection: it comes from the port that the client has bound.
            let untouched = async |url: &str, port: &str| {
                let page = curl(&["--local-port", port, url]).await;
                assert_eq!(page, format!("original {port}"), "{url}");
            };
            untouched("http://10.96.0.7/", "41001").await;

            east.has_ads(vec![endpoint]);
            until_shown("10.96.0.7", true).await;
            assert_eq!(curl(&["http://10.96.0.7/hello"]).await, "web GET /hello ");
            let named = curl(&["-i", "-H", "host: ads", "http://10.96.0.7/"]).await;
            assert!(named.contains("echo-host: ads\r\n"), "the application's own affair: {named}");
            let wrong = curl(&["-i", "-H", "host: cart.shop.svc.cluster.local", "http://10.96.0.7/"]).await;
            assert!(wrong.starts_with("HTTP/1.1 421 "), "{wrong}");
            let spoken = outsider("bash", &["-c", "exec 3<>/dev/tcp/10.96.0.7/9000; head -c 8 <&3"]).await;
            assert_eq!(spoken, "greeting", "a server that speaks first");
            untouched("http://10.96.0.8/", "41002").await;
            // A port that the service does not have goes where it would have gone, through this sidecar.
            assert!(curl(&["http://10.96.0.7:8081/"]).await.starts_with("original "));
            // The sidecar's own user is left alone: nothing comes back to it.
            let own = Command::new("curl").args(["--silent", "http://10.96.0.7/"]).output().await.unwrap();
            assert!(said(&own).contains("original "), "{}", said(&own));
            capture::install(&config).unwrap();
            assert!(capture::show().unwrap().unwrap().contains("10.96.0.7"), "installing again forgets nothing");

            east.has_ads_no_more();
            until_shown("10.96.0.7", false).await;
            untouched("http://10.96.0.7/", "41003").await;
        },
    );
}
