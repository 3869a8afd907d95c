//! API server killed, control-plane killed, etcd compacted, while exports change: the end is what the last state asks for.

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::kubernetes::{KubernetesLab, READY};
use e2e::lab::wait;
use federation_resources::mcs::{ServiceExport, ServiceImport};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::objects::{imports, service};
use crate::with_lab;

const NAMESPACE: &str = "chaos";
const SERVICES: usize = 10;
const ROUNDS: usize = 12;
/// After the last fault.
const SETTLED: Duration = Duration::from_secs(90);

#[test]
fn after_faults_the_imports_are_those_of_the_exports_that_are_left() {
    with_lab(async |mut lab| {
        for cluster in &lab.clusters {
            for number in 0..SERVICES {
                service(&cluster.servers, NAMESPACE, &format!("s{number}"), 1, json!({})).await;
            }
        }
        let mut random = SmallRng::seed_from_u64(42);
        for round in 0..ROUNDS {
            let cluster = random.random_range(0..lab.clusters.len());
            for _ in 0..3 {
                let (cluster, number) = (random.random_range(0..2_usize), random.random_range(0..SERVICES));
                toggle(&lab, cluster, number).await;
            }
            let cluster = &mut lab.clusters[cluster];
            match round % 3 {
                0 => {
                    cluster.servers.api_server.kill().await.unwrap();
                    cluster.servers.api_server.restart().unwrap();
                }
                1 => {
                    cluster.control_plane.kill().await.unwrap();
                    cluster.control_plane.restart().unwrap();
                }
                _ => compact(&cluster.servers.etcd_endpoint()).await,
            }
        }
        let expected = expected(&lab).await;
        for cluster in &mut lab.clusters {
            // One that lost its Lease while the API server was down has ended: a node would start it again.
            if !cluster.control_plane.runs() {
                cluster.control_plane.restart().unwrap();
            }
            cluster.control_plane.ready(READY).await.unwrap();
        }
        for cluster in &lab.clusters {
            let api = imports(&cluster.servers, NAMESPACE);
            wait::until(&format!("{}: the imports are {expected:?}", cluster.name()), SETTLED, || async {
                let there = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
                let there: BTreeSet<_> = there.iter().map(described).collect();
                if there == expected { Ok(()) } else { Err(format!("{there:?}")) }
            })
            .await
            .unwrap();
        }
        for cluster in &lab.clusters {
            let exports: Api<ServiceExport> = Api::namespaced(cluster.servers.client.clone(), NAMESPACE);
            exports.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        }
    });
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
async fn toggle(lab: &KubernetesLab, cluster: usize, number: usize) {
    let cluster = &lab.clusters[cluster];
    let exports: Api<ServiceExport> = Api::namespaced(cluster.servers.client.clone(), NAMESPACE);
    let name = format!("s{number}");
    wait::until(&format!("{}: a change of {name}", cluster.name()), READY, || async {
        match exports.get_opt(&name).await? {
            Some(_) => exports.delete(&name, &DeleteParams::default()).await.map(|_| ()),
            None => {
                let export = ServiceExport::new(&name, Default::default());
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
