//! Objects that tests make, and what they wait for.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::kubernetes::{ApiServers, not_there};
use e2e::lab::wait;
use federation_resources::mcs::{ServiceExport, ServiceImport};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;

/// How long anything may take to get from one cluster's API to another's.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A Service of two ports with a Deployment of `replicas` pods.
pub(crate) async fn service(servers: &ApiServers, namespace: &str, name: &str, replicas: u32, spec: serde_json::Value) {
    servers.namespace(namespace).await.unwrap();
    let labels = json!({"app": name});
    let deployment = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": "none"}]}},
        },
    });
    let deployment: Deployment = serde_json::from_value(deployment).unwrap();
    let deployments: Api<Deployment> = Api::namespaced(servers.client.clone(), namespace);
    deployments.create(&PostParams::default(), &deployment).await.unwrap();
    let mut service = json!({
        "metadata": {"name": name},
        "spec": {"selector": labels, "ports": [
            {"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"},
            {"name": "metrics", "port": 9090, "protocol": "UDP"},
        ]},
    });
    if let (Some(whole), Some(part)) = (service["spec"].as_object_mut(), spec.as_object()) {
        whole.extend(part.clone());
    }
    let service: Service = serde_json::from_value(service).unwrap();
    let services: Api<Service> = Api::namespaced(servers.client.clone(), namespace);
    services.create(&PostParams::default(), &service).await.unwrap();
}

pub(crate) fn exports(servers: &ApiServers, namespace: &str) -> Api<ServiceExport> {
    Api::namespaced(servers.client.clone(), namespace)
}

pub(crate) fn imports(servers: &ApiServers, namespace: &str) -> Api<ServiceImport> {
    Api::namespaced(servers.client.clone(), namespace)
}

pub(crate) async fn export(servers: &ApiServers, namespace: &str, name: &str) {
    let mut export = ServiceExport::new(name, Default::default());
    export.spec.exported_labels = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
    exports(servers, namespace).create(&PostParams::default(), &export).await.unwrap();
}

pub(crate) async fn unexport(servers: &ApiServers, namespace: &str, name: &str) {
    exports(servers, namespace).delete(name, &DeleteParams::default()).await.unwrap();
}

/// Waits for an import that is as it should be.
pub(crate) async fn import(
    servers: &ApiServers,
    namespace: &str,
    name: &str,
    check: impl Fn(&ServiceImport) -> bool,
) -> ServiceImport {
    let api = imports(servers, namespace);
    wait::until(&format!("{}: import {namespace}/{name}", servers.name()), SOON, || async {
        let import = api.get(name).await.map_err(|error| error.to_string())?;
        if check(&import) { Ok(import) } else { Err(format!("{import:?}")) }
    })
    .await
    .unwrap()
}

pub(crate) async fn no_import(servers: &ApiServers, namespace: &str, name: &str) {
    let api = imports(servers, namespace);
    wait::until(&format!("{}: no import {namespace}/{name}", servers.name()), SOON, || async {
        match api.get(name).await {
            Err(error) if not_there(&error) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}

/// Waits until an export's condition has a status; returns its reason.
pub(crate) async fn condition(servers: &ApiServers, namespace: &str, name: &str, kind: &str, status: &str) -> String {
    let api = exports(servers, namespace);
    wait::until(&format!("{}: {kind}={status} of {namespace}/{name}", servers.name()), SOON, || async {
        let export = api.get(name).await.map_err(|error| error.to_string())?;
        let conditions = export.status.unwrap_or_default().conditions;
        let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == status);
        found.map(|condition| condition.reason.clone()).ok_or_else(|| format!("{conditions:?}"))
    })
    .await
    .unwrap()
}

/// Names and versions of every object that the control-plane writes.
pub(crate) async fn written(client: &Client) -> BTreeMap<String, String> {
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use kube::ResourceExt as _;
    use kube::api::ListParams;
    let everything = ListParams::default();
    let own = ListParams::default().labels("endpointslice.kubernetes.io/managed-by=isthmus.dev");
    let imports: Api<ServiceImport> = Api::all(client.clone());
    let exports: Api<ServiceExport> = Api::all(client.clone());
    let slices: Api<EndpointSlice> = Api::all(client.clone());
    let mut all = BTreeMap::new();
    let mut add = |kind: &str, object: &dyn Fn() -> (Option<String>, String, Option<String>)| {
        let (namespace, name, version) = object();
        all.insert(format!("{kind} {}/{name}", namespace.unwrap_or_default()), version.unwrap_or_default());
    };
    for it in imports.list(&everything).await.unwrap() {
        add("import", &|| (it.namespace(), it.name_any(), it.resource_version()));
    }
    for it in exports.list(&everything).await.unwrap() {
        add("export", &|| (it.namespace(), it.name_any(), it.resource_version()));
    }
    for it in slices.list(&own).await.unwrap() {
        add("slice", &|| (it.namespace(), it.name_any(), it.resource_version()));
    }
    all
}

/// What the objects of a namespace say that the control-plane writes, without times and versions.
pub(crate) async fn said(servers: &ApiServers, namespace: &str) -> Result<BTreeMap<String, String>, kube::Error> {
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use kube::ResourceExt as _;
    use kube::api::ListParams;
    let everything = ListParams::default();
    let timeless = |conditions: &[Condition]| {
        let texts = conditions.iter().map(|it| format!("{}={} {}: {}", it.type_, it.status, it.reason, it.message));
        texts.collect::<Vec<_>>()
    };
    let mut all = BTreeMap::new();
    for it in imports(servers, namespace).list(&everything).await? {
        let status = it.status.clone().unwrap_or_default();
        let conditions = timeless(&status.conditions);
        let (clusters, slices) = (&status.clusters, &status.endpoint_slice_objects);
        let text = format!("{:?} {:?} {clusters:?} {slices:?} {conditions:?}", it.labels(), it.spec);
        all.insert(format!("import {}", it.name_any()), text);
    }
    for it in exports(servers, namespace).list(&everything).await? {
        let conditions = timeless(&it.status.clone().unwrap_or_default().conditions);
        all.insert(format!("export {}", it.name_any()), format!("{conditions:?}"));
    }
    let own = ListParams::default().labels("endpointslice.kubernetes.io/managed-by=isthmus.dev");
    let slices: Api<EndpointSlice> = Api::namespaced(servers.client.clone(), namespace);
    for it in slices.list(&own).await? {
        let text = format!("{:?} {} {:?} {:?}", it.labels(), it.address_type, it.endpoints, it.ports);
        all.insert(format!("slice {}", it.name_any()), text);
    }
    Ok(all)
}
