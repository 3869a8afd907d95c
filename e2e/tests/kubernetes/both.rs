//! One suite over both sources: the same objects as manifests of a directory and in a real API say the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use control_plane::kubernetes::{KubernetesConfig, connect};
use control_plane::reconciler::{Facts, Input, Now, Reconciler, Restored};
use control_plane::snapshot::Snapshot;
use control_plane::source::{FileSource, KubernetesSource, Source};
use control_plane::vips::{SavedVips, VipAllocator};
use e2e::kubernetes::{ACCOUNT, ApiServers};
use federation::ServiceId;
use spiffe_identity::Bundle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::objects::SOON;
use crate::with_lab;

/// Objects of every kind; `a` and `b` are the lab's nodes.
const BEFORE: &str = include_str!("both/before.yaml");

/// What is changed, and what is gone after it.
const AFTER: &str = include_str!("both/after.yaml");
const GONE: [&str; 2] = ["serviceexport/unexported", "pod/cart-1"];

/// By service: conditions, then the import.
fn expected_before() -> BTreeMap<&'static str, Vec<&'static str>> {
    let none: Vec<&str> = Vec::new();
    BTreeMap::from([
        (
            "cart",
            vec![
                "Valid=True Valid",
                "Conflict=False NoConflicts",
                "ClusterSetIP http/TCP/80 metrics/UDP/9090",
                "affinity 3h families [IPv4] Local PreferClose",
                "labels team=shop annotations note=x",
                "capacity /easta 1/1 /eastb 0/1 without sidecar 1",
                "1 address",
            ],
        ),
        (
            "db",
            vec![
                "Valid=True Valid",
                "Conflict=False NoConflicts",
                "Headless pg/TCP/5432",
                "affinity none families [IPv4] Cluster ",
                "labels  annotations ",
                "capacity /easta 1/1 without sidecar 0",
                "0 address",
            ],
        ),
        ("alias", vec!["Valid=False InvalidServiceType", "no import"]),
        ("nothing", vec!["Valid=False NoService", "no import"]),
        (
            "unexported",
            vec![
                "Valid=True Valid",
                "Conflict=False NoConflicts",
                "ClusterSetIP /TCP/80",
                "affinity none families [IPv4] Cluster ",
                "labels  annotations ",
                "capacity without sidecar 0",
                "1 address",
            ],
        ),
        ("private", none),
    ])
}

fn expected_after() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut expected = expected_before();
    expected.insert("unexported", Vec::new());
    let cart = expected.get_mut("cart").unwrap();
    cart[2] = "ClusterSetIP http/TCP/81";
    cart[4] = "labels team=other annotations ";
    // The pod that is gone has a slice still: it counts as one without a sidecar.
    cart[5] = "capacity /easta 0/1 without sidecar 2";
    expected
}

/// One source with an owner of its own behind it.
struct Observed {
    inputs: mpsc::Receiver<Input>,
    reconciler: Reconciler,
    snapshot: std::sync::Arc<Snapshot>,
    _task: tokio::task::JoinHandle<()>,
}

impl Observed {
    fn new(source: impl Source) -> Self {
        let (sender, inputs) = mpsc::channel(64);
        let task = tokio::spawn(source.run(sender));
        let facts = Facts {
            cluster: "east".parse().unwrap(),
            federation: "mesh.example".parse().unwrap(),
            trust_domain: "east.mesh.example".to_owned(),
            bundle: Bundle {
                trust_domain: "east.mesh.example".parse().unwrap(),
                x509_authorities: Vec::new(),
                sequence: 1,
                refresh_hint: None,
            },
            spread: 0.0,
        };
        let vips = VipAllocator::new("241.7.0.0/16".parse().unwrap(), None, SavedVips::default());
        let reconciler = Reconciler::new(facts, vips, Restored::default(), None, Now::read());
        Self { inputs, reconciler, snapshot: std::sync::Arc::default(), _task: task }
    }

    /// Waits until every service is as it should be.
    async fn until(&mut self, name: &str, expected: &BTreeMap<&'static str, Vec<&'static str>>) {
        let deadline = Instant::now() + SOON;
        loop {
            let all: BTreeMap<_, _> =
                expected.keys().map(|service| (*service, describe(&self.snapshot, service))).collect();
            let same = |(service, lines): (&&str, &Vec<String>)| expected[service] == *lines;
            if all.iter().all(same) {
                return;
            }
            match timeout_at(deadline, self.inputs.recv()).await {
                Ok(Some(input)) => self.reconciler.handle(input, Now::read()),
                Ok(None) => panic!("{name}: the source has ended"),
                Err(_) => panic!("{name}: {all:#?}\nis not\n{expected:#?}"),
            }
            if let Some(snapshot) = self.reconciler.flush(Now::read()).snapshot {
                self.snapshot = snapshot;
            }
        }
    }
}

/// What a snapshot says of a service of the suite.
fn describe(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let id: ServiceId = format!("both/{service}").parse().unwrap();
    let Some(export) = snapshot.exports.get(&id) else { return Vec::new() };
    let of_interest = export.conditions.iter().filter(|condition| condition.kind != "Ready");
    let mut lines: Vec<_> = of_interest
        .filter(|condition| condition.status != "Unknown")
        .map(|condition| format!("{}={} {}", condition.kind, condition.status, condition.reason))
        .collect();
    assert!(export.created <= SystemTime::now());
    let Some(view) = snapshot.services.get(&id) else {
        lines.retain(|line| line.starts_with("Valid"));
        lines.push("no import".to_owned());
        return lines;
    };
    let import = &view.import;
    let ports =
        import.ports.iter().map(|port| format!(" {}/{}/{}", port.port.name, port.port.protocol, port.port.port));
    let affinity = import.client_ip_affinity.map_or("none".to_owned(), |time| format!("{}h", time.as_secs() / 3600));
    let pairs = |pairs: &BTreeMap<String, String>| {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    };
    let zones = export.zones.iter().map(|zone| format!("/{} {}/{} ", zone.locality.zone, zone.ready, zone.total));
    lines.push(format!("{:?}{}", import.service_type, ports.collect::<String>()));
    lines.push(format!(
        "affinity {affinity} families {:?} {} {}",
        import.ip_families, import.internal_traffic_policy, import.traffic_distribution
    ));
    lines.push(format!("labels {} annotations {}", pairs(&import.labels), pairs(&import.annotations)));
    lines.push(format!("capacity {}without sidecar {}", zones.collect::<String>(), export.without_sidecar));
    lines.push(format!("{} address", view.vips.len()));
    lines
}

async fn apply(servers: &ApiServers, manifests: &Path) {
    servers
        .kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &manifests.display().to_string()])
        .await
        .unwrap();
}

/// Writes manifests as whoever deploys them would: whole or not at all.
fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let (path, part) = (directory.join(name), directory.join(format!(".{name}.part")));
    std::fs::write(&part, text).unwrap();
    std::fs::rename(part, &path).unwrap();
    path
}

#[test]
fn a_directory_and_an_api_of_the_same_objects_say_the_same() {
    with_lab(async |lab| {
        let servers = &lab.clusters[0].servers;
        let directory = tempfile::tempdir().unwrap();
        let file = write(directory.path(), "objects.yaml", BEFORE);
        apply(servers, &file).await;
        let kubeconfig = Some(servers.account_kubeconfig(ACCOUNT.0, ACCOUNT.1).await.unwrap());
        let client = connect(&KubernetesConfig { kubeconfig, ..KubernetesConfig::default() }).await.unwrap();
        let rescan = std::time::Duration::from_millis(500);
        let mut files = Observed::new(FileSource::new(directory.path().to_owned(), rescan));
        let mut api = Observed::new(KubernetesSource::new(client));
        files.until("files", &expected_before()).await;
        api.until("API", &expected_before()).await;

        let file = write(directory.path(), "objects.yaml", AFTER);
        apply(servers, &file).await;
        for object in GONE {
            servers.kubectl(&["delete", "-n", "both", object, "--grace-period=0", "--force"]).await.unwrap();
        }
        files.until("files", &expected_after()).await;
        api.until("API", &expected_after()).await;
        servers.kubectl(&["delete", "-n", "both", "serviceexports", "--all"]).await.unwrap();
    });
}
