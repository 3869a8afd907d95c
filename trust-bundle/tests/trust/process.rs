//! The program as an operator runs it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use federation_api::client::trust::{TrustCursor, join};
use federation_api::signing::MembershipRoot;
use federation_api::token::JoinToken;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use svid_issuer::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::{Attempt, Cluster};
use crate::plane::{DOMAIN, PATIENCE, channel, token_request, trust_domain, watch, within};

const PROGRAM: &str = env!("CARGO_BIN_EXE_trust-bundle");

/// A loopback address that no other test process has.
fn own_address() -> IpAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 128 | (high & 0x7f), middle, low.max(1)))
}

fn run_init(directory: &Path, federation: &str) -> Output {
    Command::new(PROGRAM)
        .args(["init", "--federation", federation, "--trust-bundle-address", "127.0.0.1:15012"])
        .args(["--federator-address", "127.0.0.1:15012", "--dir"])
        .arg(directory)
        .output()
        .unwrap()
}

/// A running service; killed when dropped.
struct Service {
    child: Child,
    address: IpAddr,
}

impl Service {
    async fn start(directory: &Path) -> Self {
        let address = own_address();
        let config = directory.join("config.yaml");
        let text = json!({
            "runtime": { "admin": format!("{address}:15020"), "health": format!("{address}:15021") },
            "listen": format!("{address}:15012"),
            "serviceDirectory": directory.join("service"),
            "store": { "embedded": { "file": directory.join("trust.redb") } },
        });
        std::fs::write(&config, text.to_string()).unwrap();
        let child = Command::new(PROGRAM).arg("--config").arg(config).stderr(Stdio::null()).spawn().unwrap();
        let service = Self { child, address };
        within("readiness", async {
            while !service.http(15021, "/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        service
    }

    async fn http(&self, port: u16, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect((self.address, port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn debug(&self) -> Value {
        let answer = self.http(15020, "/debug/trust").await.unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Waits until `/debug/trust` shows watchers that satisfy.
    async fn until_watchers(&self, what: &str, satisfies: impl Fn(&[Value]) -> bool) -> Value {
        within(what, async {
            loop {
                let debug = self.debug().await;
                if satisfies(debug["watchers"].as_array().unwrap()) {
                    return debug;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    fn listen(&self) -> SocketAddr {
        (self.address, 15012).into()
    }

    /// SIGTERM, and what became of it.
    fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < deadline, "still running"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn init_says_what_is_wrong_and_fails() {
    let directory = tempfile::tempdir().unwrap();
    assert!(!run_init(directory.path(), "Not A Domain").status.success());
    let made = run_init(directory.path(), DOMAIN);
    assert!(made.status.success(), "{made:?}");
    let again = run_init(directory.path(), DOMAIN);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr).unwrap().contains("a federation was made here before"));
    let without = Command::new(PROGRAM).output().unwrap();
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8(without.stderr).unwrap().contains("--config"));
}

#[tokio::test]
async fn the_program_shows_how_far_its_watchers_are_and_keeps_its_members() {
    let directory = tempfile::tempdir().unwrap();
    assert!(run_init(directory.path(), DOMAIN).status.success());
    let service = Service::start(directory.path()).await;
    let authority = Authority::open(&directory.path().join("service/authority"), &trust_domain()).unwrap();
    let root = std::fs::read_to_string(directory.path().join("operator/membership-root.key")).unwrap();
    let root = MembershipRoot::from_pem(&root).unwrap();
    let attempt = Attempt::new(&JoinToken::create(&root, token_request("east", SystemTime::now())).unwrap());
    let (member, csr, bundle) = (attempt.member.clone(), attempt.csr.clone(), attempt.bundle.clone());
    let response = join(channel(service.listen(), &authority, None), member, csr, bundle).await.unwrap();
    let east = Cluster::joined(attempt, response);

    let mut watcher = watch(channel(service.listen(), &authority, Some(&east.identity)), TrustCursor::default());
    let update = watcher.update().await;
    let debug = service.until_watchers("a watcher", |watchers| watchers.len() == 1).await;
    assert_eq!(debug["watchers"][0]["peer"], "spiffe://mesh.example/cluster/east/control-plane");
    assert_eq!((&debug["watchers"][0]["told"], &debug["watchers"][0]["epoch"]), (&json!(update.epoch), &json!(0)));
    assert_eq!((&debug["members"], &debug["bundles"]), (&json!(["east"]), &json!(["east.mesh.example"])));
    watcher.acks.applied(update.cursor(), vec!["cart-7".to_owned()], 3);
    let acknowledged = |watchers: &[Value]| watchers.iter().any(|watcher| watcher["epoch"] == update.epoch);
    let debug = service.until_watchers("the acknowledgement", acknowledged).await;
    let shown = &debug["watchers"][0];
    assert_eq!(
        (&shown["pendingProxies"], &shown["pending"], &shown["connected"]),
        (&json!(["cart-7"]), &json!(1), &json!(3))
    );
    let metrics = service.http(15020, "/metrics").await.unwrap();
    for line in ["isthmus_trust_bundle_members 1\n", "isthmus_trust_bundle_watchers 1\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    drop(watcher);
    service.until_watchers("nobody left", <[Value]>::is_empty).await;

    // A watch is open when the program is told to end.
    let mut watcher = watch(channel(service.listen(), &authority, Some(&east.identity)), TrustCursor::default());
    let cursor = watcher.update().await.cursor();
    watcher.acks.applied(cursor, Vec::new(), 0);
    assert_eq!(service.terminate().code(), Some(0));
    let service = Service::start(directory.path()).await;
    watcher.end().await;
    assert_eq!(watcher.update_again().await.members, [], "resumed where it was");
    let again = watch(channel(service.listen(), &authority, Some(&east.identity)), TrustCursor::default());
    assert_eq!({ again }.update().await, update);
}
