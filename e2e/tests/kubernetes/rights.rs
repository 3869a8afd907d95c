//! The control-plane's role, and whom it believes.

use e2e::kubernetes::ACCOUNT;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use svid_issuer::{AttestError, Attestor as _};

use crate::objects::exports;
use crate::with_lab;

#[test]
fn the_role_lets_it_do_nothing_else() {
    with_lab(async |lab| {
        let servers = &lab.clusters[0].servers;
        let client = servers.account_client(ACCOUNT.0, ACCOUNT.1).await.unwrap();
        let everything = ListParams::default();
        let forbidden = |outcome: Result<(), kube::Error>| {
            assert!(matches!(&outcome, Err(kube::Error::Api(status)) if status.is_forbidden()), "{outcome:?}");
        };
        forbidden(Api::<Secret>::all(client.clone()).list(&everything).await.map(|_| ()));
        let own: Api<Secret> = Api::namespaced(client.clone(), ACCOUNT.0);
        forbidden(own.list(&everything).await.map(|_| ()));
        forbidden(Api::<ConfigMap>::all(client.clone()).list(&everything).await.map(|_| ()));
        let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
        forbidden(pods.delete("any", &DeleteParams::default()).await.map(|_| ()));
        let patch = Patch::Merge(json!({"spec": {"exportedLabels": {"a": "b"}}}));
        let spec: Api<federation_resources::mcs::ServiceExport> = Api::namespaced(client.clone(), "default");
        forbidden(spec.patch("any", &PatchParams::default(), &patch).await.map(|_| ()));
        let accounts: Api<ServiceAccount> = Api::namespaced(client, ACCOUNT.0);
        let request = TokenRequest::default();
        forbidden(accounts.create_token_request("default", &PostParams::default(), &request).await.map(|_| ()));
        // The administrator may all of that: the test would notice an API server without rules.
        exports(servers, "default").list(&everything).await.unwrap();
    });
}

#[test]
fn a_token_names_its_workload_while_its_pod_lives_and_only_for_this_audience() {
    with_lab(async |lab| {
        let servers = &lab.clusters[0].servers;
        let client = servers.account_client(ACCOUNT.0, ACCOUNT.1).await.unwrap();
        let reviewer = control_plane::kubernetes::Reviewer::new(client);
        let token = servers.token("default", "default", Some("isthmus")).await.unwrap();
        let workload = reviewer.attest(&token).await.unwrap();
        assert_eq!((workload.namespace.as_str(), workload.service_account.as_str()), ("default", "default"));
        assert_eq!(workload.pod, None);
        let refused = async |token: &str| {
            let answer = reviewer.attest(token).await;
            assert!(matches!(answer, Err(AttestError::Refused(_))), "{answer:?}");
        };
        refused(&servers.token("default", "default", None).await.unwrap()).await;
        refused(&servers.token("default", "default", Some("other")).await.unwrap()).await;
        refused("nonsense").await;
        refused(&"x".repeat(20_000)).await;

        let pods: Api<Pod> = Api::namespaced(servers.client.clone(), "default");
        let pod = json!({"metadata": {"name": "bound"}, "spec": {"containers": [{"name": "app", "image": "none"}]}});
        let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let bound = BoundObjectReference {
            kind: Some("Pod".to_owned()),
            api_version: Some("v1".to_owned()),
            name: Some("bound".to_owned()),
            uid: pod.metadata.uid,
        };
        let spec = TokenRequestSpec {
            audiences: Some(vec!["isthmus".to_owned()]),
            bound_object_ref: Some(bound),
            expiration_seconds: Some(600),
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(servers.client.clone(), "default");
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request("default", &PostParams::default(), &request).await.unwrap();
        let token = answer.status.unwrap().token.unwrap();
        assert_eq!(reviewer.attest(&token).await.unwrap().pod.as_deref(), Some("bound"));
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete("bound", &at_once).await.unwrap();
        refused(&token).await;
    });
}
