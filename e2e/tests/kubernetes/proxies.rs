//! Proxies that start with nothing but what their pods have: a token, and the ConfigMap of the cluster's roots.

use std::time::Duration;

use e2e::kubernetes::READY;
use e2e::lab::wait;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::objects::SOON;
use crate::with_lab;

/// Long enough for a proxy that is let in.
const REFUSED: Duration = Duration::from_secs(8);

/// A token as a pod's projected volume has it.
async fn token_of(client: &Client, pod: &Pod, account: &str) -> String {
    let namespace = pod.metadata.namespace.clone().unwrap();
    let bound = BoundObjectReference {
        kind: Some("Pod".to_owned()),
        api_version: Some("v1".to_owned()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    };
    let spec = TokenRequestSpec {
        audiences: Some(vec!["isthmus".to_owned()]),
        bound_object_ref: Some(bound),
        expiration_seconds: Some(3600),
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token.unwrap()
}

async fn pod(client: &Client, namespace: &str, name: &str, account: &str) -> Pod {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let made = serde_json::from_value(json!({"metadata": {"name": account}})).unwrap();
    let _ = accounts.create(&PostParams::default(), &made).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "none"}]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
}

#[test]
fn gateways_and_sidecars_start_with_their_pods_tokens_and_the_roots_of_the_config_map() {
    with_lab(async |lab| {
        let cluster = &lab.clusters[0];
        let client = &cluster.servers.client;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "isthmus-system");
        let roots = wait::until("the ConfigMap of the roots", SOON, || maps.get("isthmus-root")).await.unwrap();
        let roots = roots.data.unwrap()["root.crt"].clone();
        cluster.servers.namespace("proxies").await.unwrap();
        let gateway = pod(client, "isthmus-system", "gateway-0", "east-west-gateway").await;
        let web = pod(client, "proxies", "web-0", "web").await;
        let (of_gateway, of_web) =
            (token_of(client, &gateway, "east-west-gateway").await, token_of(client, &web, "web").await);

        let mut gateway = cluster.gateway("gateway-0", 20, &of_gateway, &roots).unwrap();
        gateway.ready(READY).await.unwrap();
        let mut sidecar = cluster.sidecar("web-0", 21, &of_web, &roots).unwrap();
        sidecar.ready(READY).await.unwrap();
        // A workload's token makes no gateway.
        let mut wrong = cluster.gateway("wrong", 22, &of_web, &roots).unwrap();
        assert!(wrong.ready(REFUSED).await.is_err());
        for proxy in [&mut gateway, &mut sidecar, &mut wrong] {
            proxy.stop().await;
        }
    });
}
