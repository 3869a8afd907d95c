//! Restarts and a second replica.

use std::time::Duration;

use e2e::kubernetes::{ApiServers, READY};
use e2e::lab::wait;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::objects::{SOON, condition, export, import, imports, no_import, service, unexport, written};
use crate::with_lab;

/// Longer than a Lease that nobody renews.
const TAKEOVER: Duration = Duration::from_secs(60);

#[test]
fn a_restart_writes_nothing_that_is_right_and_a_second_replica_takes_over() {
    with_lab(async |mut lab| {
        let names: Vec<_> = (0..20).map(|number| format!("s{number}")).collect();
        let east = &lab.clusters[0].servers;
        for name in &names {
            service(east, "many", name, 1, json!({})).await;
            export(east, "many", name).await;
        }
        for name in &names {
            condition(east, "many", name, "Ready", "True").await;
            import(east, "many", name, |it| it.status.is_some() && !it.spec.ips.is_empty()).await;
        }
        let client = east.client.clone();
        let before = settled(&client).await;
        assert!(before.len() >= 3 * names.len(), "imports, exports and slices: {before:?}");

        let cluster = &mut lab.clusters[0];
        cluster.control_plane.kill().await.unwrap();
        cluster.control_plane.restart().unwrap();
        cluster.control_plane.ready(READY).await.unwrap();
        assert_eq!(settled(&client).await, before, "a restart wrote again what was right");

        // The second waits while the first leads, and leads when it is gone.
        let first = holder(&client).await.unwrap();
        let mut second = cluster.second_replica().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(holder(&client).await.as_deref(), Ok(first.as_str()));
        assert!(second.ready(Duration::from_secs(1)).await.is_err(), "it opened its state beside the leader");
        cluster.control_plane.kill().await.unwrap();
        wait::until("a new leader", TAKEOVER, || async {
            let now = holder(&client).await?;
            if now == first { Err("the old one".to_owned()) } else { Ok(()) }
        })
        .await
        .unwrap();
        second.ready(READY).await.unwrap();
        assert_eq!(settled(&client).await, before, "the second replica wrote again what was right");
        unexport(&cluster.servers, "many", "s0").await;
        no_import(&cluster.servers, "many", "s0").await;

        // It gives the Lease back when it is told to end: no waiting for the Lease's own end.
        second.stop().await;
        assert!(holder(&client).await.is_err_and(|error| error.contains("nobody")));
        cluster.control_plane.restart().unwrap();
        cluster.control_plane.ready(READY).await.unwrap();
        for name in &names[1..] {
            unexport(&cluster.servers, "many", name).await;
        }
        for name in &names[1..] {
            no_import(&cluster.servers, "many", name).await;
        }
    });
}

#[test]
fn addresses_outlive_the_state_of_the_control_plane() {
    with_lab(async |mut lab| {
        let state = lab.directory().join("east/state/local.json");
        let cluster = &mut lab.clusters[0];
        service(&cluster.servers, "lost", "cart", 1, json!({})).await;
        export(&cluster.servers, "lost", "cart").await;
        import(&cluster.servers, "lost", "cart", |it| !it.spec.ips.is_empty()).await;
        cluster.control_plane.stop().await;
        std::fs::remove_file(state).unwrap();
        // Not the address that the name alone would lead to.
        let other = "241.0.77.77";
        let change = kube::api::Patch::Merge(json!({"spec": {"ips": [other]}}));
        imports(&cluster.servers, "lost").patch("cart", &Default::default(), &change).await.unwrap();
        cluster.control_plane.restart().unwrap();
        cluster.control_plane.ready(READY).await.unwrap();
        let settled = settled(&cluster.servers.client).await;
        assert!(settled.keys().any(|key| key == "import lost/cart"), "{settled:?}");
        assert_eq!(imports(&cluster.servers, "lost").get("cart").await.unwrap().spec.ips, [other]);
        unexport(&cluster.servers, "lost", "cart").await;
        no_import(&cluster.servers, "lost", "cart").await;
    });
}

#[test]
fn the_address_of_a_remote_endpoint_outlives_the_state_of_the_control_plane() {
    with_lab(async |mut lab| {
        let state = lab.directory().join("east/state/local.json");
        let west = &lab.clusters[1].servers;
        stateful(west, "standing", "db").await;
        export(west, "standing", "db").await;
        let cluster = &mut lab.clusters[0];
        cluster.servers.namespace("standing").await.unwrap();
        let slices: Api<EndpointSlice> = Api::namespaced(cluster.servers.client.clone(), "standing");
        let first = stand_in(&slices).await;
        assert!(first.1.starts_with("241."), "{first:?}");
        cluster.control_plane.stop().await;
        std::fs::remove_file(state).unwrap();
        // Not the address that the name alone would lead to.
        let other = "241.0.88.88";
        let change = kube::api::Patch::Json::<()>(
            serde_json::from_value(json!([
                {"op": "replace", "path": "/endpoints/0/addresses/0", "value": other},
            ]))
            .unwrap(),
        );
        slices.patch(&first.0, &Default::default(), &change).await.unwrap();
        cluster.control_plane.restart().unwrap();
        cluster.control_plane.ready(READY).await.unwrap();
        settled(&cluster.servers.client).await;
        assert_eq!(stand_in(&slices).await.1, other);
    });
}

/// A headless Service with one named endpoint, whose pod has a sidecar.
async fn stateful(servers: &ApiServers, namespace: &str, name: &str) {
    servers.namespace(namespace).await.unwrap();
    let pod = json!({
        "metadata": {"name": format!("{name}-0"), "annotations": {"isthmus.dev/sidecar": "true"}},
        "spec": {"containers": [{"name": "app", "image": "none"}]},
    });
    let service = json!({
        "metadata": {"name": name}, "spec": {
            "clusterIP": "None", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "ports": [{"name": "sql", "port": 5432}],
        },
    });
    let slice = json!({
        "metadata": {"name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "sql", "port": 5432}],
        "endpoints": [{
            "addresses": ["10.9.0.1"], "hostname": format!("{name}-0"), "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{name}-0")},
        }],
    });
    create::<Pod>(servers, namespace, pod).await;
    create::<Service>(servers, namespace, service).await;
    create::<EndpointSlice>(servers, namespace, slice).await;
}

async fn create<K>(servers: &ApiServers, namespace: &str, object: serde_json::Value)
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Serialize + DeserializeOwned,
    K: std::fmt::Debug,
{
    let objects: Api<K> = Api::namespaced(servers.client.clone(), namespace);
    let object: K = serde_json::from_value(object).unwrap();
    // The account that pods have by default comes a moment after its namespace.
    let parameters = PostParams::default();
    wait::until("the API server takes it", SOON, || objects.create(&parameters, &object)).await.unwrap();
}

/// The slice that tells of west's only endpoint, and the address in it.
async fn stand_in(slices: &Api<EndpointSlice>) -> (String, String) {
    let labels = ListParams::default().labels("multicluster.kubernetes.io/source-cluster=west");
    wait::until("a slice of west's", SOON, || async {
        let listed = slices.list(&labels).await.map_err(|error| error.to_string())?;
        let slice = listed.items.first().ok_or("none")?;
        let endpoint = slice.endpoints.iter().flatten().next().ok_or("no endpoint")?;
        if endpoint.hostname.as_deref() != Some("db-0") {
            return Err(format!("{endpoint:?}"));
        }
        Ok((slice.metadata.name.clone().unwrap_or_default(), endpoint.addresses[0].clone()))
    })
    .await
    .unwrap()
}

async fn holder(client: &kube::Client) -> Result<String, String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "isthmus-system");
    let lease = leases.get("isthmus-control-plane").await.map_err(|error| error.to_string())?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity).filter(|holder| !holder.is_empty());
    holder.ok_or_else(|| "nobody holds it".to_owned())
}

/// Everything that is written, once it has not changed for two seconds.
async fn settled(client: &kube::Client) -> std::collections::BTreeMap<String, String> {
    let last = std::sync::Mutex::new((std::time::Instant::now(), written(client).await));
    wait::until("nothing is written any more", SOON, || async {
        let now = written(client).await;
        let mut last = last.lock().unwrap();
        if last.1 != now {
            *last = (std::time::Instant::now(), now);
        }
        if last.0.elapsed() > Duration::from_secs(2) { Ok(last.1.clone()) } else { Err("it changes") }
    })
    .await
    .unwrap()
}
