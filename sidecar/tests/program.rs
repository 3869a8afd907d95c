//! The program as it is started: its exit codes, its listeners, its pages.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address nobody listens on, and that no other test of this program was given.
fn free() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    loop {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        if GIVEN.lock().unwrap().insert(address) {
            return address;
        }
    }
}

fn start(config: &Path) -> Running {
    let command = Command::new(env!("CARGO_BIN_EXE_sidecar"))
        .arg("--config")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    Running(command.unwrap())
}

fn config(directory: &Path, admin: SocketAddr, health: SocketAddr) -> String {
    let directory = directory.display();
    format!(
        "runtime: {{ admin: \"{admin}\", health: \"{health}\" }}
workload: {{ name: cart-1, addresses: [127.0.0.1] }}
discovery:
  addresses: [\"127.0.0.1:1\"]
  trustDomain: east.mesh.example
  rootFile: {directory}/root.crt
  tokenFile: {directory}/token
listeners: {{ outbound: [\"127.0.0.1:0\"], inbound: [\"127.0.0.1:0\"] }}
stateDirectory: {directory}/state
"
    )
}

/// One request over a connection of its own: the status, and the body.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}

fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_problem_of_the_configuration_is_said_before_anything_is_bound() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sidecar.yaml");
    let text = "workload: { name: '', addresses: [] }
discovery: { addresses: [nowhere], trustDomain: 'East', rootFile: r, tokenFile: t }
listeners: { outbound: [], inbound: [] }
stateDirectory: /nonexistent/state
inbound: { connectTimeout: 0s }
";
    std::fs::write(&file, text).unwrap();
    let mut running = start(&file);
    assert_eq!(running.0.wait().unwrap().code(), Some(2));
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    for field in [
        "workload.name",
        "workload.addresses",
        "discovery.addresses",
        "discovery.trustDomain",
        "listeners.outbound",
        "listeners.inbound",
        "inbound.connectTimeout",
    ] {
        assert!(said.contains(field), "{field}: {said}");
    }
}

#[test]
fn without_an_identity_it_is_alive_and_not_ready_and_its_state_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sidecar.yaml");
    let (admin, health) = (free(), free());
    std::fs::write(&file, config(directory.path(), admin, health)).unwrap();
    let mut running = start(&file);
    eventually("it is alive", || get(health, "/livez").filter(|(status, _)| *status == 200));
    let (status, body) = get(health, "/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(body.contains("identity"), "{body}");
    let state = eventually("the state is shown", || get(admin, "/debug/state").filter(|(status, _)| *status == 200));
    let state: serde_json::Value = serde_json::from_str(state.1.trim()).unwrap();
    assert_eq!(state["identity"]["spiffeId"], serde_json::Value::Null);
    assert_eq!(state["services"], serde_json::json!({}));
    let (_, metrics) = get(admin, "/metrics").unwrap();
    assert!(metrics.contains("\nisthmus_sidecar_services 0\n"), "{metrics}");
    let signalled = Command::new("kill").arg("-TERM").arg(running.0.id().to_string()).status().unwrap();
    assert!(signalled.success());
    let code = eventually("it ends", || running.0.try_wait().unwrap());
    assert_eq!(code.code(), Some(0));
}

#[test]
fn a_second_sidecar_on_the_same_state_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first.yaml"), directory.path().join("second.yaml"));
    let (admin, health) = (free(), free());
    std::fs::write(&first, config(directory.path(), admin, health)).unwrap();
    let anywhere = "127.0.0.1:0".parse().unwrap();
    std::fs::write(&second, config(directory.path(), anywhere, anywhere)).unwrap();
    let mut running = start(&first);
    eventually("the first has begun", || directory.path().join("state/lock").exists().then_some(()));
    eventually("it is alive", || get(health, "/livez").filter(|(status, _)| *status == 200));
    let mut other = start(&second);
    assert_eq!(eventually("the second ends", || other.0.try_wait().unwrap()).code(), Some(1));
    let mut said = String::new();
    other.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("another sidecar works in"), "{said}");
    let signalled = Command::new("kill").arg("-TERM").arg(running.0.id().to_string()).status().unwrap();
    assert!(signalled.success());
    assert_eq!(eventually("the first ends", || running.0.try_wait().unwrap()).code(), Some(0));
}
