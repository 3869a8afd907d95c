//! From a ServiceExport in one cluster to the ServiceImport in every other.

use e2e::kubernetes::ApiServers;
use e2e::lab::wait;
use federation_resources::about::ClusterProperty;
use federation_resources::isthmus::Cluster;
use federation_resources::mcs::{EndpointSliceObjects, ImportType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::objects::{SOON, condition, export, exports, import, imports, no_import, service, unexport};
use crate::with_lab;

/// The slices of an import, by source cluster.
async fn slices(servers: &ApiServers, namespace: &str, name: &str, source: &str) -> Vec<EndpointSlice> {
    let labels =
        format!("multicluster.kubernetes.io/service-name={name},multicluster.kubernetes.io/source-cluster={source}");
    let api: Api<EndpointSlice> = Api::namespaced(servers.client.clone(), namespace);
    api.list(&ListParams::default().labels(&labels)).await.unwrap().items
}

#[test]
fn an_export_is_imported_everywhere_and_goes_with_its_last_exporter() {
    with_lab(async |lab| {
        let [east, west] = lab.clusters.as_slice() else { panic!("two clusters") };
        let (east, west) = (&east.servers, &west.servers);
        west.namespace("shop").await.unwrap();
        service(east, "shop", "cart", 2, json!({"sessionAffinity": "ClientIP"})).await;
        export(east, "shop", "cart").await;
        assert_eq!(condition(east, "shop", "cart", "Valid", "True").await, "Valid");
        assert_eq!(condition(east, "shop", "cart", "Ready", "True").await, "Ready");
        assert_eq!(condition(east, "shop", "cart", "Conflict", "False").await, "NoConflicts");
        for servers in [east, west] {
            let found = import(servers, "shop", "cart", |import| {
                let status = import.status.clone().unwrap_or_default();
                status.clusters.len() == 1 && status.endpoint_slice_objects == Some(EndpointSliceObjects::Present)
            })
            .await;
            assert_eq!(found.spec.type_, ImportType::ClusterSetIP);
            assert_eq!((found.spec.ips.len(), found.spec.ip_families.as_slice()), (1, ["IPv4".to_owned()].as_slice()));
            assert_eq!(found.spec.ports.len(), 2);
            assert_eq!(found.spec.session_affinity.as_deref(), Some("ClientIP"));
            let labels = found.metadata.labels.unwrap();
            assert_eq!(labels.get("team").map(String::as_str), Some("shop"));
        }
        // The exporter's own pods, and what stands for them elsewhere.
        wait::until("slices of both pods", SOON, || async {
            let own = slices(east, "shop", "cart", "east").await;
            let ready = own.iter().flat_map(|slice| slice.endpoints.iter().flatten());
            let ready: Vec<_> =
                ready.filter(|it| it.conditions.as_ref().and_then(|it| it.ready) == Some(true)).collect();
            if ready.len() == 2 && ready.iter().all(|it| it.zone.is_some()) { Ok(()) } else { Err(format!("{own:?}")) }
        })
        .await
        .unwrap();
        let remote = slices(west, "shop", "cart", "east").await;
        let address = imports(west, "shop").get("cart").await.unwrap().spec.ips.remove(0);
        assert_eq!(remote.len(), 1);
        assert_eq!(remote[0].endpoints.iter().flatten().next().unwrap().addresses, [address]);
        assert_eq!(remote[0].metadata.owner_references.as_ref().unwrap()[0].kind, "ServiceImport");

        service(west, "shop", "cart", 1, json!({"sessionAffinity": "ClientIP"})).await;
        export(west, "shop", "cart").await;
        import(east, "shop", "cart", |it| it.status.as_ref().is_some_and(|it| it.clusters.len() == 2)).await;
        unexport(east, "shop", "cart").await;
        import(west, "shop", "cart", |it| it.status.as_ref().is_some_and(|it| it.clusters.len() == 1)).await;
        unexport(west, "shop", "cart").await;
        for servers in [east, west] {
            no_import(servers, "shop", "cart").await;
            wait::until("no slices", SOON, || async {
                let left =
                    [slices(servers, "shop", "cart", "east").await, slices(servers, "shop", "cart", "west").await];
                if left.iter().all(Vec::is_empty) { Ok(()) } else { Err(format!("{left:?}")) }
            })
            .await
            .unwrap();
        }
    });
}

#[test]
fn a_service_of_two_families_is_imported_with_an_address_of_each() {
    with_lab(async |lab| {
        let [east, west] = lab.clusters.as_slice() else { panic!("two clusters") };
        west.servers.namespace("dual").await.unwrap();
        service(&east.servers, "dual", "cart", 1, json!({"ipFamilyPolicy": "RequireDualStack"})).await;
        service(&east.servers, "dual", "six", 1, json!({"ipFamilies": ["IPv6"]})).await;
        for name in ["cart", "six"] {
            export(&east.servers, "dual", name).await;
        }
        for cluster in [east, west] {
            let found = import(&cluster.servers, "dual", "cart", |it| it.spec.ips.len() == 2).await;
            assert_eq!(found.spec.ip_families, ["IPv4", "IPv6"]);
            let families: Vec<bool> =
                found.spec.ips.iter().map(|ip| ip.parse::<std::net::IpAddr>().unwrap().is_ipv4()).collect();
            assert_eq!(families, [true, false], "in the order of the families");
            let six = import(&cluster.servers, "dual", "six", |it| it.spec.ips.len() == 1).await;
            assert_eq!(six.spec.ip_families, ["IPv6"]);
            assert!(six.spec.ips[0].parse::<std::net::Ipv6Addr>().is_ok());
        }
        for name in ["cart", "six"] {
            unexport(&east.servers, "dual", name).await;
            no_import(&west.servers, "dual", name).await;
        }
    });
}

#[test]
fn kubectl_shows_exports_and_imports_as_people_read_them() {
    with_lab(async |lab| {
        let east = &lab.clusters[0].servers;
        service(east, "people", "cart", 1, json!({})).await;
        export(east, "people", "cart").await;
        condition(east, "people", "cart", "Ready", "True").await;
        let address = import(east, "people", "cart", |it| !it.spec.ips.is_empty()).await.spec.ips.remove(0);
        let transcript = east.kubectl(&["get", "svcex,svcim", "-A"]).await.unwrap();
        let rows: Vec<Vec<&str>> = transcript.lines().map(|line| line.split_whitespace().collect()).collect();
        let has = |row: &[&str]| rows.iter().any(|there| there.starts_with(row));
        assert!(has(&["NAMESPACE", "NAME", "READY", "CONFLICT", "AGE"]), "{transcript}");
        assert!(has(&["people", "serviceexport.multicluster.x-k8s.io/cart", "True", "False"]), "{transcript}");
        assert!(has(&["NAMESPACE", "NAME", "TYPE", "IP", "AGE"]), "{transcript}");
        let ips = format!("[\"{address}\"]");
        assert!(has(&["people", "serviceimport.multicluster.x-k8s.io/cart", "ClusterSetIP", &ips]), "{transcript}");
        unexport(east, "people", "cart").await;
        no_import(east, "people", "cart").await;
    });
}

#[test]
fn conflicts_are_on_every_exporter_and_events_tell_of_them() {
    with_lab(async |lab| {
        let [east, west] = lab.clusters.as_slice() else { panic!("two clusters") };
        let (east, west) = (&east.servers, &west.servers);
        service(east, "conflict", "api", 1, json!({"clusterIP": "None"})).await;
        export(east, "conflict", "api").await;
        import(east, "conflict", "api", |it| it.spec.type_ == ImportType::Headless && it.spec.ips.is_empty()).await;
        // Creation times have whole seconds.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        service(west, "conflict", "api", 1, json!({})).await;
        export(west, "conflict", "api").await;
        for servers in [east, west] {
            assert!(condition(servers, "conflict", "api", "Conflict", "True").await.contains("TypeConflict"));
            import(servers, "conflict", "api", |it| it.spec.type_ == ImportType::Headless).await;
        }
        let events: Api<Event> = Api::namespaced(west.client.clone(), "conflict");
        wait::until("an event of the conflict", SOON, || async {
            let all = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let told =
                all.iter().any(|it| it.reason.as_deref() == Some("Conflict") && it.type_.as_deref() == Some("Warning"));
            if told { Ok(()) } else { Err(format!("{} events", all.items.len())) }
        })
        .await
        .unwrap();
        service(west, "conflict", "alias", 0, json!({"type": "ExternalName", "externalName": "example.com"})).await;
        export(west, "conflict", "alias").await;
        assert_eq!(condition(west, "conflict", "alias", "Valid", "False").await, "InvalidServiceType");
        export(west, "conflict", "nothing").await;
        assert_eq!(condition(west, "conflict", "nothing", "Valid", "False").await, "NoService");
        no_import(west, "conflict", "alias").await;
        for (servers, name) in [(east, "api"), (west, "api"), (west, "alias"), (west, "nothing")] {
            unexport(servers, "conflict", name).await;
        }
        no_import(east, "conflict", "api").await;
    });
}

#[test]
fn what_somebody_else_changes_in_an_import_is_put_right() {
    with_lab(async |lab| {
        let east = &lab.clusters[0].servers;
        service(east, "tamper", "cart", 1, json!({})).await;
        export(east, "tamper", "cart").await;
        let before = import(east, "tamper", "cart", |it| !it.spec.ips.is_empty()).await;
        let api = imports(east, "tamper");
        let other = json!({"spec": {"ips": ["241.9.9.9"]}, "metadata": {"labels": {"team": "other", "mine": "stays"}}});
        api.patch("cart", &PatchParams::default(), &Patch::Merge(other)).await.unwrap();
        let after = import(east, "tamper", "cart", |it| it.spec == before.spec).await;
        let labels = import(east, "tamper", "cart", |it| {
            it.metadata.labels.as_ref().is_some_and(|labels| labels.get("team").is_some_and(|team| team == "shop"))
        })
        .await
        .metadata
        .labels
        .unwrap();
        assert_eq!(labels.get("mine").map(String::as_str), Some("stays"));
        api.delete("cart", &DeleteParams::default()).await.unwrap();
        let again = import(east, "tamper", "cart", |it| it.metadata.uid != after.metadata.uid).await;
        assert_eq!(again.spec.ips, before.spec.ips);
        unexport(east, "tamper", "cart").await;
        no_import(east, "tamper", "cart").await;
    });
}

#[test]
fn what_is_exported_no_more_goes_from_an_import_that_is_there() {
    with_lab(async |lab| {
        let [east, west] = lab.clusters.as_slice() else { panic!("two clusters") };
        let (east, west) = (&east.servers, &west.servers);
        west.namespace("labels").await.unwrap();
        service(east, "labels", "cart", 1, json!({})).await;
        export(east, "labels", "cart").await;
        for (label, ports) in [("team", 2), ("tier", 1)] {
            let labels = json!({"team": null, "tier": null, label: "shop"});
            let patch = Patch::Merge(json!({"spec": {"exportedLabels": labels}}));
            exports(east, "labels").patch("cart", &PatchParams::default(), &patch).await.unwrap();
            let both = [
                json!({"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}),
                json!({"name": "metrics", "port": 9090, "protocol": "UDP"}),
            ];
            let patch = json!({"spec": {"ports": both[..ports]}});
            let services: Api<Service> = Api::namespaced(east.client.clone(), "labels");
            services.patch("cart", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            for servers in [east, west] {
                let found = import(servers, "labels", "cart", |it| {
                    let labels = it.metadata.labels.as_ref();
                    let exported = |name| labels.is_some_and(|labels| labels.contains_key(name));
                    ["team", "tier"].into_iter().all(|name| exported(name) == (name == label))
                        && it.spec.ports.len() == ports
                })
                .await;
                let owners = found.metadata.managed_fields.unwrap();
                let spec = owners.iter().filter(|owner| owner.subresource.is_none());
                assert_eq!(spec.count(), 1, "{owners:?}");
            }
        }
        unexport(east, "labels", "cart").await;
        no_import(west, "labels", "cart").await;
    });
}

#[test]
fn the_cluster_says_who_it_is_and_whom_it_knows() {
    with_lab(async |lab| {
        for (cluster, other) in [(0, "west"), (1, "east")] {
            let cluster = &lab.clusters[cluster];
            let properties: Api<ClusterProperty> = Api::all(cluster.servers.client.clone());
            let name = properties.get("cluster.clusterset.k8s.io").await.unwrap().spec.value;
            assert_eq!(name, cluster.name());
            assert_eq!(properties.get("clusterset.k8s.io").await.unwrap().spec.value, "mesh.example");
            let members: Api<Cluster> = Api::all(cluster.servers.client.clone());
            wait::until(&format!("{other} is known"), SOON, || async {
                let member = members.get(other).await.map_err(|error| error.to_string())?;
                let conditions = member.status.unwrap_or_default().conditions;
                let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
                if ready { Ok(()) } else { Err(format!("{conditions:?}")) }
            })
            .await
            .unwrap();
        }
    });
}
