//! Tests in a network namespace of their own: the test's program runs once more inside of it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Set for the run inside.
const INSIDE: &str = "ISTHMUS_TEST_NAMESPACE";

/// The namespace's own address on a link that leads nowhere, over which the default route goes.
pub(crate) const HOME: &str = "10.99.0.1";
/// Its address of the other family.
pub(crate) const HOME6: &str = "fd99::1";
/// Where the namespace's resolver is.
pub(crate) const RESOLVER: &str = "10.99.0.53";

/// Removed with its files.
struct Namespace {
    name: String,
    files: PathBuf,
}

impl Namespace {
    fn create() -> Self {
        let name = format!("sidecar-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let files = Path::new("/etc/netns").join(&name);
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("resolv.conf"), format!("nameserver {RESOLVER}\n")).unwrap();
        run("ip", &["netns", "add", &name]);
        Self { name, files }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The test has its verdict; what cannot be removed is only litter.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

/// Runs a test's body inside a new namespace. `test` is the test's own path, as the test program lists it. Needs root.
pub(crate) fn inside<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        link();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(body());
        return;
    }
    let namespace = Namespace::create();
    let program = std::env::current_exe().unwrap();
    let output = Command::new("ip")
        .args(["netns", "exec", &namespace.name])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, &namespace.name)
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success() && said.contains("1 passed"), "inside {}: {said}", namespace.name);
}

fn link() {
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["link", "add", "home", "type", "veth", "peer", "name", "away"]);
    for address in [format!("{HOME}/24"), format!("{RESOLVER}/24")] {
        run("ip", &["address", "add", &address, "dev", "home"]);
    }
    run("ip", &["address", "add", &format!("{HOME6}/64"), "dev", "home", "nodad"]);
    run("ip", &["link", "set", "away", "up"]);
    run("ip", &["link", "set", "home", "up"]);
    run("ip", &["route", "add", "default", "dev", "home"]);
    run("ip", &["-6", "route", "add", "default", "dev", "home"]);
}

/// Runs a command that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command wrote.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
