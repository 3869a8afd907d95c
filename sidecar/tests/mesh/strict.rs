//! Strict policies: plaintext from outside is refused; the mesh and a kubelet's probes still come in.

use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use federation_api::discovery::v1::access_policy::Action;
use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::discovery::v1::{AccessPolicy, Binding, Workload};
use federation_api::record::v1::{Port, Protocol};
use http::StatusCode;
use sidecar::Config;
use sidecar::capture;
use sidecar::config::CaptureConfig;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::client;
use crate::cluster::{Cluster, HTTP, PATIENCE, host, ready};
use crate::namespace::{self, HOME, HOME6, run, said};

/// A machine somewhere else.
const STRANGER: &str = "10.99.0.2";
const STRANGER6: &str = "fd99::2";
/// Where the kubelet's probes come from.
const NODE: &str = "10.99.0.3";
const NODE6: &str = "fd99::3";
/// Nobody special.
const USER: u32 = 1337;
const APPLICATION: u16 = 8080;

/// The other end of the link, in a namespace of its own that ends with its only process.
struct Outside(Child);

impl Drop for Outside {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Outside {
    fn link() -> Self {
        let mut command = std::process::Command::new("unshare");
        let outside = Self(command.args(["--net", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap());
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while namespace(&outside.pid()) == namespace("self") {
            assert!(Instant::now() < deadline, "no namespace was made");
            std::thread::sleep(Duration::from_millis(5));
        }
        run("ip", &["link", "set", "away", "netns", &outside.pid()]);
        let inside = |arguments: &[&str]| {
            run("nsenter", &[&["-t", &outside.pid(), "-n", "ip"], arguments].concat());
        };
        for address in [STRANGER, NODE] {
            inside(&["address", "add", &format!("{address}/24"), "dev", "away"]);
        }
        for address in [STRANGER6, NODE6] {
            inside(&["address", "add", &format!("{address}/64"), "dev", "away", "nodad"]);
        }
        inside(&["link", "set", "away", "up"]);
        outside
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid(), "-n", program]).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// What `curl` says, headers included.
    async fn curl(&self, from: &str) -> String {
        let home = if from.contains(':') { format!("[{HOME6}]") } else { HOME.to_owned() };
        let url = format!("http://{home}:{APPLICATION}/healthz");
        let output = self.command("curl").args(["-s", "-i", "--max-time", "5", "--interface", from, &url]).output();
        String::from_utf8(output.await.unwrap().stdout).unwrap()
    }

    async fn until(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.curl(STRANGER).await;
            if said.contains(what) {
                return;
            }
            assert!(Instant::now() < deadline, "never {what:?}: {said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a script with a plaintext connection to the application as descriptor 3.
    async fn connected(&self, script: &str) -> Output {
        let script = format!("exec 3<>/dev/tcp/{HOME}/{APPLICATION}; {script}");
        let output = self.command("bash").args(["-c", &script]).output();
        tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap()
    }
}

/// Answers plain HTTP on every address, with the address that it was called from.
async fn application() {
    let listener = TcpListener::bind(("::", APPLICATION)).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, peer) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    request.push(byte);
                }
                let body = format!("ok {}", peer.ip().to_canonical());
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length";
                // A client that went away has no use for it.
                let _ = stream.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
            });
        }
    });
}

fn set(east: &Cluster, policies: Vec<AccessPolicy>) {
    let port = Port {
        port: HTTP.port.into(),
        protocol: Protocol::Tcp.into(),
        app_protocol: HTTP.app_protocol.to_owned(),
        ..Port::default()
    };
    let binding = Binding { host: host("cart"), port: Some(port), target_port: APPLICATION.into() };
    let workload = Workload {
        endpoint: "east/shop/cart-1".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "cart".to_owned(),
        bindings: vec![binding],
        policies,
        ..Workload::default()
    };
    east.state().set("workload@cart-1", Kind::Workload(workload));
}

fn strict(ports: &[u16]) -> AccessPolicy {
    AccessPolicy {
        name: "shop/strict".to_owned(),
        action: Action::Deny.into(),
        strict: true,
        ports: ports.iter().map(|port| u32::from(*port)).collect(),
        ..AccessPolicy::default()
    }
}

#[test]
fn plaintext_to_a_strict_port_is_refused_while_the_mesh_and_probes_come_in() {
    namespace::inside("strict::plaintext_to_a_strict_port_is_refused_while_the_mesh_and_probes_come_in", || async {
        let outside = Outside::link();
        application().await;
        let east = Cluster::start("east").await;
        set(&east, vec![]);
        let config = config(&east, 0);
        capture::install(&config).unwrap();
        let server = east.pod_with(config.clone(), "cart").await;
        ready(&server.process).await;
        east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
        let client = east.pod("frontend-1", "frontend", &[]).await;
        let meshed = || client::get(client.proxy(), "http://cart.shop.svc.clusterset.local/");

        // Without a strict policy nothing comes in between: the application sees who called.
        outside.until(&format!("ok {STRANGER}")).await;
        let talking = outside.connected("while printf x >&3; do sleep 0.05; done");
        let making_strict = async {
            set(&east, vec![strict(&[APPLICATION])]);
            outside.until("HTTP/1.1 403 Forbidden").await;
        };
        let (cut, ()) = tokio::join!(talking, making_strict);
        assert!(said(&cut).contains("reset") || said(&cut).contains("Broken pipe"), "open before: {}", said(&cut));
        outside.until("plaintext is denied by shop/strict").await;
        let refused = outside.curl(STRANGER6).await;
        assert!(refused.contains("403") && refused.contains("plaintext is denied by shop/strict"), "{refused}");
        for node in [NODE, NODE6] {
            let answer = outside.curl(node).await;
            assert!(answer.ends_with(&format!("ok {node}")), "the kubelet's probes: {answer}");
        }
        assert_eq!(meshed().await.status, StatusCode::OK);
        let raw = outside.connected("printf 'PING\\r\\n' >&3; cat <&3").await;
        assert!(!raw.status.success() && said(&raw).contains("reset"), "what is not HTTP: {}", said(&raw));

        // Installing again forgets nothing, and every port is strict where a policy names none.
        capture::install(&config).unwrap();
        assert!(outside.curl(STRANGER).await.contains("403"));
        set(&east, vec![strict(&[])]);
        outside.until("403").await;
        let shown = async || capture::show().unwrap().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !shown().await.contains("1-65535") {
            assert!(Instant::now() < deadline, "never all ports: {}", shown().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(meshed().await.status, StatusCode::OK, "15008 is never strict");
        assert!(outside.curl(STRANGER).await.contains("403"));

        // A dry run is not strict.
        set(&east, vec![AccessPolicy { dry_run: true, ..strict(&[APPLICATION]) }]);
        outside.until(&format!("ok {STRANGER}")).await;
        assert!(outside.curl(STRANGER6).await.ends_with(&format!("ok {STRANGER6}")));
    });
}

/// A sidecar whose strict listeners take both families.
fn config(east: &Cluster, user: u32) -> Config {
    let mut config = east.config("cart-1", "cart");
    config.listeners.inbound = vec!["127.0.0.1:15008".parse().unwrap()];
    config.listeners.strict = ["0.0.0.0:15006", "[::]:15006"].map(|address| address.parse().unwrap()).into();
    config.capture = Some(CaptureConfig {
        excluded_users: vec![user],
        probe_sources: [format!("{NODE}/32"), format!("{NODE6}/128")].map(|range| range.parse().unwrap()).into(),
        ..CaptureConfig::default()
    });
    config
}

/// The program as a user with no privilege but one, ended with the test.
struct Unprivileged {
    child: Child,
    _files: TempDir,
}

impl Unprivileged {
    fn start(config: &Config) -> Self {
        let files = tempfile::tempdir().unwrap();
        let copied = |from: &Path, name: &str| std::fs::copy(from, files.path().join(name)).unwrap();
        copied(Path::new(env!("CARGO_BIN_EXE_sidecar")), "sidecar");
        copied(&config.discovery.root_file, "root.crt");
        copied(&config.discovery.token_file, "token");
        let at = files.path().display().to_string();
        let yaml = format!(
            "runtime: {{ admin: \"127.0.0.1:15020\", health: \"127.0.0.1:15021\" }}
workload: {{ name: cart-1, addresses: [127.0.0.1] }}
discovery:
  addresses: [\"{}\"]
  trustDomain: {}
  rootFile: {at}/root.crt
  tokenFile: {at}/token
listeners:
  outbound: [\"127.0.0.1:15001\"]
  inbound: [\"127.0.0.1:15008\"]
  strict: [\"0.0.0.0:15006\", \"[::]:15006\"]
capture: {{ excludedUsers: [{USER}], probeSources: [{NODE}/32, \"{NODE6}/128\"] }}
stateDirectory: {at}/state
",
            config.discovery.addresses[0], config.discovery.trust_domain
        );
        std::fs::write(files.path().join("sidecar.yaml"), yaml).unwrap();
        let user = USER.to_string();
        run("chown", &["-R", &format!("{user}:{user}"), &at]);
        let child = std::process::Command::new("setpriv")
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"])
            .args(["--inh-caps", "-all,+net_admin", "--ambient-caps", "-all,+net_admin"])
            .args([&format!("{at}/sidecar"), "--config", &format!("{at}/sidecar.yaml")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, _files: files }
    }
}

impl Drop for Unprivileged {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_user_without_privileges_but_the_one_capability_keeps_strict_ports() {
    namespace::inside("strict::a_user_without_privileges_but_the_one_capability_keeps_strict_ports", || async {
        let outside = Outside::link();
        application().await;
        let east = Cluster::start("east").await;
        set(&east, vec![]);
        let config = config(&east, USER);
        capture::install(&config).unwrap();
        let _sidecar = Unprivileged::start(&config);
        outside.until(&format!("ok {STRANGER}")).await;
        set(&east, vec![strict(&[APPLICATION])]);
        outside.until("plaintext is denied by shop/strict").await;
        assert!(outside.curl(STRANGER6).await.contains("plaintext is denied by shop/strict"));
        assert!(outside.curl(NODE).await.ends_with(&format!("ok {NODE}")));
        set(&east, vec![]);
        outside.until(&format!("ok {STRANGER}")).await;
    });
}
