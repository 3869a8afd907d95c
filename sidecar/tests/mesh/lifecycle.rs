//! How a sidecar ends: gracefully, in time, and with an exit code that a native sidecar's supervisor understands.

use std::net::{SocketAddr, TcpListener};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::applications::Application;
use crate::client::{self, Client};
use crate::cluster::{Cluster, HTTP, PATIENCE, Pod, RAW, eventually, host};

/// A server's sidecar as a process, and a client that has a raw connection through it.
struct Shop {
    _east: Cluster,
    client: Pod,
    web: Application,
    _redis: Application,
    _directory: TempDir,
    server: Child,
    health: SocketAddr,
}

impl Shop {
    async fn open(drain_deadline: &str) -> Self {
        let east = Cluster::start("east").await;
        let (web, redis) = (Application::http1("web").await, Application::echo("redis").await);
        east.workload("cart-1", "cart", &[(HTTP, web.port()), (RAW, redis.port())]);
        let directory = tempfile::tempdir().unwrap();
        let [mesh, health, admin] = free();
        let from = east.config("cart-1", "cart");
        let discovery = &from.discovery;
        let config = format!(
            "runtime: {{ admin: \"{admin}\", health: \"{health}\", drainDeadline: {drain_deadline} }}
workload: {{ name: cart-1, addresses: [127.0.0.1] }}
discovery:
  addresses: [\"{}\"]
  trustDomain: {}
  rootFile: {}
  tokenFile: {}
listeners: {{ outbound: [\"127.0.0.1:0\"], inbound: [\"{mesh}\"] }}
stateDirectory: {}/state
",
            discovery.addresses[0],
            discovery.trust_domain,
            discovery.root_file.display(),
            discovery.token_file.display(),
            directory.path().display(),
        );
        let file = directory.path().join("sidecar.yaml");
        std::fs::write(&file, config).unwrap();
        let program = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_sidecar"));
            command.args(arguments).arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
            command.kill_on_drop(true);
            command
        };
        let server = program(&[]).spawn().unwrap();
        assert!(program(&["wait", "--timeout", "20s"]).status().await.unwrap().success());
        let endpoint = east.endpoint_at("cart-1", mesh, "cart");
        east.imports(&[HTTP, RAW], vec![east.local(vec![endpoint], &[HTTP, RAW])]);
        let client = east.pod("frontend-1", "frontend", &[]).await;
        Self { _east: east, client, web, _redis: redis, _directory: directory, server, health }
    }

    /// A raw connection to the application, greeted by it.
    async fn connected(&self) -> TcpStream {
        let (code, mut stream) = client::connect(self.client.proxy(), &format!("{}:6379", host("cart"))).await;
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!((code, &greeting), (200, b"redis"));
        stream
    }

    /// SIGTERM, and the wait until the sidecar says that it is draining.
    async fn terminate(&self) {
        let pid = self.server.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = Client::connect(self.health).await.call(Method::GET, "/readyz", "", &[("host", "x")]).await;
            if said.status == StatusCode::SERVICE_UNAVAILABLE && said.body.contains("draining") {
                return;
            }
            assert!(Instant::now() < deadline, "never draining: {said:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ended(mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.server.wait()).await.unwrap().unwrap()
    }
}

/// Addresses that nobody listens on.
fn free<const COUNT: usize>() -> [SocketAddr; COUNT] {
    let held = [(); COUNT].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

async fn echoes(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).await.unwrap();
    let mut echoed = vec![0; word.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(echoed, word);
}

#[tokio::test]
async fn a_terminated_sidecar_lets_open_streams_finish_and_exits_with_0() {
    let shop = Shop::open("60s").await;
    let mut stream = shop.connected().await;
    let slow = client::get(shop.client.proxy(), "http://cart.shop.svc.clusterset.local/slow");
    let drain = async {
        eventually("the request is under way", || shop.web.requests() == 1).await;
        shop.terminate().await;
    };
    let (slow, ()) = tokio::join!(slow, drain);
    assert_eq!(slow.status, StatusCode::OK, "what was under way is answered");
    for _ in 0..10 {
        echoes(&mut stream, b"still here").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Newcomers are told that it goes away, and there is nobody else.
    let late = client::get(shop.client.proxy(), "http://cart.shop.svc.clusterset.local/").await;
    assert_eq!(late.status, StatusCode::SERVICE_UNAVAILABLE);
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, ";100", "to its very end");
    assert_eq!(shop.ended().await.code(), Some(0), "long before the deadline");
}

#[tokio::test]
async fn streams_that_outlive_the_deadline_are_cut_off_and_the_exit_code_is_still_0() {
    let shop = Shop::open("1s").await;
    let mut stream = shop.connected().await;
    let begun = Instant::now();
    shop.terminate().await;
    while begun.elapsed() < Duration::from_millis(700) {
        echoes(&mut stream, b"x").await;
    }
    assert_eq!(shop.ended().await.code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(1), "the deadline was waited for");
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn a_draining_sidecar_tells_its_own_application_to_close_connections() {
    let east = Cluster::start("east").await;
    let web = Application::http1("web").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, web.port())]).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let mut connection = Client::connect(client.proxy()).await;
    let uri = |path: &str| format!("http://{}{path}", host("cart"));
    let before = connection.get(&uri("/")).await;
    assert_eq!((before.status, before.header("connection")), (StatusCode::OK, ""));
    let uri = uri("/slow");
    let slow = connection.get(&uri);
    let drain = async {
        eventually("the request is under way", || web.requests() == 2).await;
        client.process.trigger_drain();
    };
    let (answer, ()) = tokio::join!(slow, drain);
    assert_eq!((answer.status, answer.header("connection")), (StatusCode::OK, "close"));
}
