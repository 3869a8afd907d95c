//! What nodes would do: binds pods, gives them addresses, says they run, and ends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;

/// Pods that are worked on at the same time.
const CONCURRENCY: usize = 16;
/// Zones of every cluster, one node in each.
const ZONES: [&str; 2] = ["a", "b"];

/// Stands in for the nodes of a cluster, the scheduler and the injector. It ends with its owner.
#[derive(Debug)]
pub struct Kubelet {
    task: JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kubelet {
    /// Makes two nodes, in the zones `<region>a` and `<region>b`, and looks after every pod from now on. Pods get addresses
    /// of 10.`net`.0.0/16 and fd00:10:`net`::/48, and the mark of a sidecar.
    ///
    /// # Errors
    /// A node cannot be made.
    pub async fn start(client: Client, region: &str, net: u8) -> anyhow::Result<Self> {
        let nodes: Api<Node> = Api::all(client.clone());
        for zone in ZONES {
            let labels = BTreeMap::from([
                ("topology.kubernetes.io/region".to_owned(), region.to_owned()),
                ("topology.kubernetes.io/zone".to_owned(), format!("{region}{zone}")),
            ]);
            let metadata = ObjectMeta { name: Some(node(zone)), labels: Some(labels), ..ObjectMeta::default() };
            match nodes.create(&PostParams::default(), &Node { metadata, ..Node::default() }).await {
                Err(error) if !super::already_there(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let next = Arc::new(AtomicU32::new(0));
        let task = tokio::spawn(async move {
            let pods: Api<Pod> = Api::all(client.clone());
            let events = watcher(pods, watcher::Config::default().timeout(25)).default_backoff().applied_objects();
            events
                .map_ok(|pod| attend(client.clone(), pod, net, Arc::clone(&next)))
                .for_each_concurrent(CONCURRENCY, |work| async {
                    if let Ok(work) = work {
                        // What goes wrong, such as a conflict, comes again with the pod's next event.
                        let _ = work.await;
                    }
                })
                .await;
        });
        Ok(Self { task })
    }
}

fn node(zone: &str) -> String {
    format!("node-{zone}")
}

async fn attend(client: Client, pod: Pod, net: u8, next: Arc<AtomicU32>) -> Result<(), kube::Error> {
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
    if pod.metadata.deletion_timestamp.is_some() {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        return pods.delete(&name, &now).await.map(|_| ());
    }
    if pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()) {
        return Ok(());
    }
    let number = next.fetch_add(1, Ordering::Relaxed) + 1;
    if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) {
        let target = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node(ZONES[number as usize % ZONES.len()])),
            ..ObjectReference::default()
        };
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let binding = Binding { metadata, target };
        let _: serde_json::Value = pods.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
    }
    let mark = json!({"metadata": {"annotations": {"isthmus.dev/sidecar": "true"}}});
    let parameters = PatchParams::default();
    if pod.annotations().get("isthmus.dev/sidecar").is_none() {
        pods.patch(&name, &parameters, &Patch::Merge(mark)).await?;
    }
    let addresses =
        (format!("10.{net}.{}.{}", (number >> 8) & 255, number & 255), format!("fd00:10:{net:x}::{number:x}"));
    let status = json!({"status": {
        "phase": "Running", "podIP": addresses.0, "podIPs": [{"ip": addresses.0}, {"ip": addresses.1}],
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
    }});
    pods.patch_status(&name, &parameters, &Patch::Strategic(status)).await.map(|_| ())
}
