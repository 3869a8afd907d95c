//! The definitions, applied to a real API server: good objects go in, bad ones do not.

use e2e::kubernetes::ApiServers;
use e2e::lab::wait;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::objects::SOON;
use crate::with_lab;

async fn apply(servers: &ApiServers, version: &str, kind: &str, plural: &str, spec: Value) -> Result<(), String> {
    let (group, version) = version.split_once('/').unwrap();
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    let api: Api<DynamicObject> = Api::namespaced_with(servers.client.clone(), "default", &resource);
    let mut object = json!({"apiVersion": format!("{group}/{version}"), "kind": kind, "metadata": {"name": "probe"}});
    if !spec.is_null() {
        object["spec"] = spec;
    }
    let parameters = PatchParams {
        dry_run: true,
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply("test").force()
    };
    api.patch("probe", &parameters, &Patch::Apply(object)).await.map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn good_objects_go_in_and_bad_ones_do_not() {
    const OWN: &str = "isthmus.dev/v1alpha1";
    const MCS: [&str; 2] = ["multicluster.x-k8s.io/v1beta1", "multicluster.x-k8s.io/v1alpha1"];
    with_lab(async |lab| {
        let servers = &lab.clusters[0].servers;
        let failover = async |spec| apply(servers, OWN, "FailoverPolicy", "failoverpolicies", spec).await;
        let access = async |spec| apply(servers, OWN, "AccessPolicy", "accesspolicies", spec).await;
        for spec in [
            json!({}),
            json!({"service": "cart", "prefer": ["cluster", "zone"], "overprovisioningPercent": 120}),
            json!({"targets": [{"from": ["east"], "mode": "Only", "to": ["west"]}, {"mode": "None"}]}),
            json!({"distribute": [{"cluster": "east", "weight": 80}, {"cluster": "west", "weight": 20}]}),
            json!({"localOnly": true, "ejection": {"baseTime": "500ms", "maxTime": "1m"}, "retries": {"perTryTimeout": "2s"}}),
        ] {
            failover(spec.clone()).await.unwrap_or_else(|error| panic!("{spec}: {error}"));
        }
        for (spec, expected) in [
            (json!({"localOnly": true, "targets": [{"mode": "Any"}]}), "localOnly leaves no other cluster"),
            (json!({"targets": [{"mode": "Only"}]}), "to names clusters"),
            (json!({"targets": [{"mode": "Any", "to": ["west"]}]}), "to names clusters"),
            (json!({"prefer": ["zone", "zone"]}), "at most once"),
            (json!({"prefer": ["planet"]}), "Unsupported value"),
            (json!({"overprovisioningPercent": 99}), "greater than or equal to 100"),
            (json!({"ejection": {"baseTime": "2m", "maxTime": "1m"}}), "longer than maxTime"),
            (json!({"ejection": {"baseTime": "2d"}}), "Duration"),
            (json!({"distribute": [{"cluster": "east", "weight": 0}]}), "more than 0"),
            (json!({"distribute": [{"cluster": "a", "weight": 1}], "targets": [{"mode": "Any"}]}), "fixed shares"),
            (json!({"perfer": ["zone"]}), "perfer"),
        ] {
            let error = failover(spec.clone()).await.expect_err(&spec.to_string());
            assert!(error.contains(expected), "{spec}: {error}");
        }
        for spec in [
            json!({"action": "Allow"}),
            json!({"action": "Deny", "dryRun": true, "ports": [8080], "rules": [{"spiffeIds": ["spiffe://east.mesh.example/ns/shop/*"]}]}),
            json!({"action": "Allow", "strict": true, "rules": [{"clusters": ["west"], "methods": ["GET"], "paths": ["/api/*"]}]}),
        ] {
            access(spec.clone()).await.unwrap_or_else(|error| panic!("{spec}: {error}"));
        }
        for (spec, expected) in [
            (json!({}), "action"),
            (json!({"action": "Perhaps"}), "Unsupported value"),
            (json!({"action": "Allow", "rules": [{}]}), "what it matches"),
            (json!({"action": "Allow", "ports": [0]}), "greater than or equal to 1"),
            (json!({"action": "Allow", "rules": [{"spiffeIds": ["spiffe://*/ns/x"]}]}), "at its end"),
            (json!({"action": "Allow", "rules": [{"paths": ["api"]}]}), "a path"),
        ] {
            let error = access(spec.clone()).await.expect_err(&spec.to_string());
            assert!(error.contains(expected), "{spec}: {error}");
        }
        for version in MCS {
            let export = async |spec| apply(servers, version, "ServiceExport", "serviceexports", spec).await;
            export(Value::Null).await.unwrap();
            export(json!({"exportedLabels": {"a": "b"}})).await.unwrap();
            assert!(export(json!({"exportedLabels": {"a": 1}})).await.is_err());
            let import = async |spec| apply(servers, version, "ServiceImport", "serviceimports", spec).await;
            import(json!({"type": "ClusterSetIP", "ports": [{"port": 80}], "ips": ["241.0.0.1"]})).await.unwrap();
            for (bad, expected) in [
                (json!({"ports": []}), "type"),
                (json!({"type": "Other", "ports": []}), "Unsupported value"),
                (json!({"type": "Headless", "ports": [], "ips": ["a", "b", "c"]}), "at most 2 items"),
                (json!({"type": "Headless", "ports": [{"name": "x"}]}), "port"),
            ] {
                let error = import(bad.clone()).await.expect_err(&bad.to_string());
                assert!(error.contains(expected), "{version} {bad}: {error}");
            }
        }
    });
}

/// Waits until what is made now is younger than an object: creation times have whole seconds.
async fn in_a_later_second(servers: &ApiServers, resource: &ApiResource, name: &str) {
    let api: Api<DynamicObject> = Api::namespaced_with(servers.client.clone(), "policies", resource);
    let made = api.get(name).await.unwrap().metadata.creation_timestamp;
    let mut probe = DynamicObject::new("probe", resource);
    probe.data = json!({"spec": {}});
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    wait::until("a later second", SOON, || async {
        let now = api.create(&dry, &probe).await.map_err(|error| error.to_string())?.metadata.creation_timestamp;
        if now > made { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await
    .unwrap();
}

#[test]
fn policies_say_whether_they_apply() {
    with_lab(async |lab| {
        let servers = &lab.clusters[0].servers;
        servers.namespace("policies").await.unwrap();
        let resource = |kind, plural| {
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("isthmus.dev", "v1alpha1", kind), plural)
        };
        let failover = resource("FailoverPolicy", "failoverpolicies");
        let access = resource("AccessPolicy", "accesspolicies");
        let make = async |resource: &ApiResource, name: &str, spec: Value| {
            let api: Api<DynamicObject> = Api::namespaced_with(servers.client.clone(), "policies", resource);
            let mut object = DynamicObject::new(name, resource);
            object.data = json!({"spec": spec});
            api.create(&PostParams::default(), &object).await.unwrap();
        };
        make(&failover, "first", json!({"service": "cart"})).await;
        in_a_later_second(servers, &failover, "first").await;
        make(&failover, "another", json!({"service": "cart", "localOnly": true})).await;
        make(&failover, "namespace", json!({})).await;
        make(&access, "callers", json!({"action": "Allow"})).await;
        let rule = json!({"spiffeIds": ["spiffe://east.mesh.example/ns/shop/*"], "paths": ["/api/*"]});
        make(&access, "ruled", json!({"action": "Deny", "rules": [rule]})).await;
        // As far as the schema goes it could be a name.
        make(&failover, "unusable", json!({"service": "Not_A_Name"})).await;
        let reason = async |resource: &ApiResource, name: &str, expected: &str| {
            let api: Api<DynamicObject> = Api::namespaced_with(servers.client.clone(), "policies", resource);
            wait::until(&format!("{name} is {expected}"), SOON, || async {
                let status = api.get(name).await.map_err(|error| error.to_string())?.data["status"].clone();
                let there = status["conditions"][0]["reason"].as_str() == Some(expected);
                if there { Ok(status["conditions"][0].clone()) } else { Err(status.to_string()) }
            })
            .await
            .unwrap()
        };
        reason(&failover, "first", "Accepted").await;
        reason(&failover, "another", "Overridden").await;
        reason(&failover, "namespace", "Accepted").await;
        reason(&access, "callers", "Accepted").await;
        reason(&access, "ruled", "Accepted").await;
        let invalid = reason(&failover, "unusable", "Invalid").await;
        assert_eq!((&invalid["type"], &invalid["status"]), (&json!("Accepted"), &json!("False")));
        let message = invalid["message"].as_str().unwrap();
        assert!(message.contains("spec.service") && message.contains("Not_A_Name"), "{message}");
        // The one that stood in the way is gone.
        let api: Api<DynamicObject> = Api::namespaced_with(servers.client.clone(), "policies", &failover);
        api.delete("first", &Default::default()).await.unwrap();
        reason(&failover, "another", "Accepted").await;
        let mended = Patch::Merge(json!({"spec": {"service": "catalog"}}));
        api.patch("unusable", &PatchParams::default(), &mended).await.unwrap();
        reason(&failover, "unusable", "Accepted").await;
    });
}

#[test]
fn short_names_and_columns_are_those_of_the_api() {
    with_lab(async |lab| {
        let servers = &lab.clusters[0].servers;
        for kinds in ["svcex,svcim", "svcexport,svcimport", "fop,acp,icl", "isthmus"] {
            servers.kubectl(&["get", kinds, "-A"]).await.unwrap();
        }
        let stored = servers
            .kubectl(&["get", "crd", "serviceimports.multicluster.x-k8s.io", "-o", "jsonpath={.status.storedVersions}"])
            .await
            .unwrap();
        assert_eq!(stored.trim(), "[\"v1beta1\"]");
    });
}
