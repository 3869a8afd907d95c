//! API server killed, control-plane killed, etcd compacted, while exports change: the end is what the last state asks for,
//! and what control-planes that have forgotten everything compute.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use e2e::kubernetes::{ApiServers, Deployed, KubernetesLab, READY};
use e2e::lab::wait;
use federation_resources::mcs::{ServiceExport, ServiceImport};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::objects::{exports, imports, said, service};
use crate::with_lab;

#[derive(Clone, Copy)]
enum Fault {
    ApiServer,
    ControlPlane,
    Compaction,
}

const FAULTS: [Fault; 3] = [Fault::ApiServer, Fault::ControlPlane, Fault::Compaction];

const NAMESPACE: &str = "chaos";
const SERVICES: usize = 10;
/// The first so many.
const HEADLESS: usize = 3;
const ROUNDS: usize = 12;
/// Of each round, while its fault strikes.
const CHANGES: usize = 3;
/// Nothing has changed for so long: more than any step of the way takes.
const UNCHANGED: Duration = Duration::from_secs(2);
/// After the last fault.
const SETTLED: Duration = Duration::from_secs(90);

/// What a control-plane computes from the API's objects and the federation's records. Addresses that were given out are no
/// such thing: they stay.
const COMPUTED: [&str; 3] = ["peers.bin", "peers.json", "published.bin"];

#[test]
fn after_faults_the_end_is_what_is_computed_from_scratch() {
    with_lab(async |mut lab| {
        for cluster in &lab.clusters {
            for number in 0..SERVICES {
                let headless = if number < HEADLESS { json!({"clusterIP": "None"}) } else { json!({}) };
                service(&cluster.servers, NAMESPACE, &format!("s{number}"), 1, headless).await;
            }
        }
        let mut random = SmallRng::seed_from_u64(42);
        let mut faults: Vec<_> = (0..ROUNDS).map(|round| FAULTS[round % FAULTS.len()]).collect();
        faults.shuffle(&mut random);
        for fault in faults {
            let changes: Vec<_> =
                (0..CHANGES).map(|_| (random.random_range(0..2_usize), random.random_range(0..SERVICES))).collect();
            let all: Vec<_> = lab.clusters.iter().map(|it| exports(&it.servers, NAMESPACE)).collect();
            let cluster = &mut lab.clusters[random.random_range(0..2_usize)];
            let delay = Duration::from_millis(random.random_range(0..200));
            let changing = async {
                for (cluster, number) in changes {
                    toggle(&all[cluster], &format!("s{number}")).await;
                }
            };
            let failing = async {
                tokio::time::sleep(delay).await;
                strike(cluster, fault).await;
            };
            tokio::join!(changing, failing);
        }
        for cluster in &mut lab.clusters {
            // One that lost its Lease while the API server was down has ended: a node would start it again.
            if !cluster.control_plane.runs() {
                cluster.control_plane.restart().unwrap();
            }
            cluster.control_plane.ready(READY).await.unwrap();
        }
        let expected = expected(&lab).await;
        assert!(!expected.is_empty());
        until_imported(&lab, &expected).await;
        let mut before = Vec::new();
        for cluster in &lab.clusters {
            before.push(settled(&cluster.servers).await);
        }
        forget(&mut lab).await;
        until_imported(&lab, &expected).await;
        for (cluster, before) in lab.clusters.iter().zip(&before) {
            wait::until(&format!("{}: the same from scratch", cluster.name()), SETTLED, || async {
                let now = said(&cluster.servers, NAMESPACE).await.map_err(|error| error.to_string())?;
                let differing: Vec<_> =
                    before.iter().chain(&now).filter(|(key, _)| before.get(*key) != now.get(*key)).collect();
                if differing.is_empty() { Ok(()) } else { Err(format!("{differing:#?}")) }
            })
            .await
            .unwrap();
        }
        for cluster in &lab.clusters {
            let exports = exports(&cluster.servers, NAMESPACE);
            exports.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        }
    });
}

async fn strike(cluster: &mut Deployed, fault: Fault) {
    match fault {
        Fault::ApiServer => {
            cluster.servers.api_server.kill().await.unwrap();
            cluster.servers.api_server.restart().unwrap();
        }
        Fault::ControlPlane => {
            cluster.control_plane.kill().await.unwrap();
            cluster.control_plane.restart().unwrap();
        }
        Fault::Compaction => compact(&cluster.servers.etcd_endpoint()).await,
    }
}

/// Takes away what the control-planes have computed and written, on disk and in the API.
async fn forget(lab: &mut KubernetesLab) {
    let directory = lab.directory().to_owned();
    for cluster in &mut lab.clusters {
        cluster.control_plane.stop().await;
        for file in COMPUTED {
            std::fs::remove_file(directory.join(cluster.name()).join("state").join(file)).unwrap();
        }
        let everything = ListParams::default();
        let own = ListParams::default().labels("endpointslice.kubernetes.io/managed-by=isthmus.dev");
        let slices: Api<EndpointSlice> = Api::namespaced(cluster.servers.client.clone(), NAMESPACE);
        imports(&cluster.servers, NAMESPACE).delete_collection(&DeleteParams::default(), &everything).await.unwrap();
        slices.delete_collection(&DeleteParams::default(), &own).await.unwrap();
        let left = imports(&cluster.servers, NAMESPACE).list(&everything).await.unwrap().items;
        assert!(left.is_empty(), "{left:?}");
    }
    for cluster in &mut lab.clusters {
        cluster.control_plane.restart().unwrap();
        cluster.control_plane.ready(READY).await.unwrap();
    }
}

async fn until_imported(lab: &KubernetesLab, expected: &BTreeSet<(String, BTreeSet<String>)>) {
    for cluster in &lab.clusters {
        let api = imports(&cluster.servers, NAMESPACE);
        wait::until(&format!("{}: the imports are {expected:?}", cluster.name()), SETTLED, || async {
            let there = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let there: BTreeSet<_> = there.iter().map(described).collect();
            if there == *expected { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await
        .unwrap();
    }
}

/// What everything says, once it has said the same for a while.
async fn settled(servers: &ApiServers) -> BTreeMap<String, String> {
    let last = std::sync::Mutex::new((Instant::now(), BTreeMap::new()));
    wait::until("nothing changes any more", SETTLED, || async {
        let now = said(servers, NAMESPACE).await.map_err(|error| error.to_string())?;
        let mut last = last.lock().unwrap();
        if last.1 != now {
            *last = (Instant::now(), now);
        }
        if last.0.elapsed() > UNCHANGED { Ok(last.1.clone()) } else { Err("it changes".to_owned()) }
    })
    .await
    .unwrap()
}

/// An import's name and who exports it.
fn described(import: &ServiceImport) -> (String, BTreeSet<String>) {
    let clusters = import.status.iter().flat_map(|status| status.clusters.iter().map(|it| it.cluster.clone()));
    (import.metadata.name.clone().unwrap_or_default(), clusters.collect())
}

/// Computed from the exports alone.
async fn expected(lab: &KubernetesLab) -> BTreeSet<(String, BTreeSet<String>)> {
    let mut all = std::collections::BTreeMap::<String, BTreeSet<String>>::new();
    for cluster in &lab.clusters {
        let exports: Api<ServiceExport> = Api::namespaced(cluster.servers.client.clone(), NAMESPACE);
        let there = wait::until("the API server is back", READY, || exports.list_all()).await.unwrap();
        for name in there {
            all.entry(name).or_default().insert(cluster.name().to_owned());
        }
    }
    all.into_iter().collect()
}

trait ListAll {
    async fn list_all(&self) -> Result<Vec<String>, kube::Error>;
}

impl ListAll for Api<ServiceExport> {
    async fn list_all(&self) -> Result<Vec<String>, kube::Error> {
        let all = self.list(&ListParams::default()).await?;
        Ok(all.items.into_iter().filter_map(|export| export.metadata.name).collect())
    }
}

/// Exports a service that is not exported, or withdraws it.
async fn toggle(exports: &Api<ServiceExport>, name: &str) {
    wait::until(&format!("a change of {name}"), READY, || async {
        match exports.get_opt(name).await? {
            Some(_) => exports.delete(name, &DeleteParams::default()).await.map(|_| ()),
            None => {
                let export = ServiceExport::new(name, Default::default());
                exports.create(&PostParams::default(), &export).await.map(|_| ())
            }
        }
    })
    .await
    .unwrap();
}

/// Every revision but the last goes.
async fn compact(endpoint: &str) {
    let etcdctl = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("etcdctl");
        let command = command.env("ETCDCTL_API", "3").args(["--endpoints", endpoint]).args(arguments);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let status: serde_json::Value =
        serde_json::from_slice(&etcdctl(&["endpoint", "status", "-w", "json"]).await).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].as_u64().unwrap();
    etcdctl(&["compact", &revision.to_string()]).await;
}
