//! The objects of the bench: made, changed, exported.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::IntervalStream;

use super::watch::until_imported;
use crate::kubernetes::KubernetesLab;

/// Requests at the same time while objects are made, and exports of the burst.
const CONCURRENCY: usize = 64;

/// How many of everything.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) services: usize,
    /// The first so many services.
    pub(super) exported: usize,
    /// Of each service.
    pub(super) endpoints: usize,
    /// Exports at once, of the services after the exported ones.
    pub(super) burst: usize,
    namespaces: usize,
}

impl Sizes {
    pub(super) const fn full() -> Self {
        Self { services: 5_000, exported: 500, endpoints: 10, burst: 1_000, namespaces: 20 }
    }

    pub(super) const fn quick() -> Self {
        Self { services: 50, exported: 5, endpoints: 10, burst: 10, namespaces: 2 }
    }
}

/// The objects of the first cluster.
pub(super) struct World {
    client: Client,
    sizes: Sizes,
}

/// When a burst was where.
pub(super) struct Burst {
    /// When the API had taken the last export.
    pub(super) created: Duration,
    /// When the last import was there, by cluster.
    pub(super) imported: Vec<(String, Duration)>,
}

impl World {
    /// Makes everything in the first cluster, and the namespaces in all.
    pub(super) async fn make(lab: &KubernetesLab, sizes: &Sizes) -> anyhow::Result<Self> {
        for cluster in &lab.clusters {
            for number in 0..sizes.namespaces {
                cluster.servers.namespace(&format!("ns{number}")).await?;
            }
        }
        let world = Self { client: lab.clusters[0].servers.client.clone(), sizes: *sizes };
        stream::iter(0..sizes.services)
            .map(|number| world.service(number))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await?;
        Ok(world)
    }

    /// Waits until every cluster has the imports of so many services.
    pub(super) async fn imported(&self, lab: &KubernetesLab, count: usize, patience: Duration) -> anyhow::Result<()> {
        let all = lab.clusters.iter().map(|cluster| until_imported(&cluster.servers.client, count, patience));
        try_join_all(all).await.map(|_| ())
    }

    /// Endpoints that come back under other addresses, at a rate; how many did.
    pub(super) async fn churn(&self, rate: u32, time: Duration) -> anyhow::Result<u32> {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let ticks = IntervalStream::new(ticks).take_until(tokio::time::sleep(time));
        let changes = ticks.zip(stream::iter(0_u32..)).map(|(_, number)| number);
        let changed = changes.map(|number| self.change(number)).buffer_unordered(CONCURRENCY);
        changed.try_fold(0, async |done, ()| Ok(done + 1)).await
    }

    /// Exports many services at once.
    pub(super) async fn burst(&self, lab: &KubernetesLab, patience: Duration) -> anyhow::Result<Burst> {
        let Sizes { exported, burst, .. } = self.sizes;
        let begun = Instant::now();
        let others = try_join_all(lab.clusters[1..].iter().map(async |cluster| {
            until_imported(&cluster.servers.client, exported + burst, patience).await?;
            anyhow::Ok((cluster.name().to_owned(), begun.elapsed()))
        }));
        let exports = stream::iter(exported..exported + burst).map(|number| self.export(number));
        let exporting = async {
            exports.buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
            anyhow::Ok(begun.elapsed())
        };
        let (created, imported) = tokio::try_join!(exporting, others)?;
        Ok(Burst { created, imported })
    }

    fn namespace(&self, service: usize) -> String {
        format!("ns{}", service % self.sizes.namespaces)
    }

    async fn service(&self, number: usize) -> anyhow::Result<()> {
        let (namespace, name) = (self.namespace(number), format!("svc{number}"));
        let with_pods = number < self.sizes.exported;
        let service = json!({
            "metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        });
        create::<Service>(&self.client, &namespace, service).await?;
        if with_pods {
            for endpoint in 0..self.sizes.endpoints {
                let pod = json!({
                    "metadata": {"name": format!("{name}-{endpoint}"), "annotations": {"isthmus.dev/sidecar": "true"}},
                    "spec": {"nodeName": node(endpoint), "containers": [{"name": "app", "image": "none"}]},
                });
                create::<Pod>(&self.client, &namespace, pod).await?;
            }
            self.export(number).await?;
        }
        let endpoints = (0..self.sizes.endpoints).map(|endpoint| endpoint_of(&name, number, endpoint, 0));
        let slice = json!({
            "metadata": {"name": name, "labels": {
                "kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "bench",
            }},
            "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        create::<EndpointSlice>(&self.client, &namespace, slice).await
    }

    async fn export(&self, number: usize) -> anyhow::Result<()> {
        let kind = GroupVersionKind::gvk("multicluster.x-k8s.io", "v1beta1", "ServiceExport");
        let resource = ApiResource::from_gvk_with_plural(&kind, "serviceexports");
        let exports: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace(number), &resource);
        exports.create(&PostParams::default(), &DynamicObject::new(&format!("svc{number}"), &resource)).await?;
        Ok(())
    }

    /// One endpoint of a service, an exported one every other time, has another address.
    async fn change(&self, number: u32) -> anyhow::Result<()> {
        let turn = usize::try_from(number / 2)?;
        let service = match number % 2 {
            0 => turn % self.sizes.exported,
            _ => self.sizes.exported + turn % (self.sizes.services - self.sizes.exported),
        };
        let name = format!("svc{service}");
        let endpoints: Vec<Value> = (0..self.sizes.endpoints)
            .map(|endpoint| endpoint_of(&name, service, endpoint, if endpoint == 0 { number + 1 } else { 0 }))
            .collect();
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace(service));
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        slices.patch(&name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

fn node(endpoint: usize) -> &'static str {
    if endpoint.is_multiple_of(2) { "node-a" } else { "node-b" }
}

/// `life`: how often it came back.
fn endpoint_of(service: &str, number: usize, endpoint: usize, life: u32) -> Value {
    let [_, _, high, low] = u32::try_from(number * 10 + endpoint).unwrap_or_default().to_be_bytes();
    let [_, _, second, third] = life.to_be_bytes();
    let first = if life == 0 { format!("10.100.{high}.{low}") } else { format!("11.{second}.{third}.{low}") };
    json!({
        "addresses": [first], "conditions": {"ready": true}, "nodeName": node(endpoint),
        "targetRef": {"kind": "Pod", "name": format!("{service}-{endpoint}")},
    })
}

async fn create<K>(client: &Client, namespace: &str, object: Value) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}
