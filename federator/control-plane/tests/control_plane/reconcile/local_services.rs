//! Namespaces that have opted their own Services in, and those that have not.

use std::net::IpAddr;

use federation::MeshHost;
use federation_api::discovery::v1::resource::Resource as Content;
use federation_api::discovery::v1::{Endpoint, Service};

use super::*;

const OPTED_IN: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {isthmus.dev/local-services: enabled}}
";

/// A service that nobody exports, with and without sidecars behind it, and a headless one.
const INTERNAL: &str = "
apiVersion: v1
kind: Service
metadata: {name: ads, namespace: shop}
spec:
  clusterIPs: [10.96.0.7, 'fd00:96::7']
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ads-x, namespace: shop, labels: {kubernetes.io/service-name: ads}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]
endpoints:
- {addresses: [127.1.0.7], conditions: {ready: true}, nodeName: n1, targetRef: {kind: Pod, name: cart-0}}
- {addresses: [127.1.0.8], conditions: {ready: true}, nodeName: n1, targetRef: {kind: Pod, name: cart-1}}
- {addresses: [192.0.2.9], conditions: {ready: false}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{port: 5432}]}
";

impl World {
    fn local(&self, name: &str) -> Option<Service> {
        let resource = self.snapshot.local_services.get(&format!("shop/{name}").parse().unwrap())?;
        match resource.resource.clone() {
            Some(Content::Service(service)) => Some(service),
            other => panic!("{other:?}"),
        }
    }

    /// What sidecars capture.
    fn captured(&self) -> Vec<String> {
        match self.snapshot.local_addresses.as_ref().and_then(|resource| resource.resource.clone()) {
            Some(Content::LocalServices(local)) => local.addresses,
            None => vec![],
            other => panic!("{other:?}"),
        }
    }

    fn bound(&self) -> Vec<String> {
        let workloads = &self.snapshot.workloads[&"shop".parse::<federation::Namespace>().unwrap()];
        let found = workloads.find(&["127.1.0.7".parse().unwrap()], "cart").unwrap();
        found
            .bindings
            .iter()
            .map(|binding| format!("{}:{} {}", binding.host, binding.port.port, binding.target))
            .collect()
    }
}

#[test]
fn services_of_a_namespace_that_opted_in_are_told_to_sidecars_of_the_cluster_and_to_nobody_else() {
    let mut world = World::shop();
    world.apply(INTERNAL);
    assert_eq!((world.local("ads"), world.captured()), (None, vec![]), "nobody has asked for it");
    assert_eq!(world.bound(), ["cart.shop.svc.clusterset.local:7070 17070"]);
    let said = world.published.len();

    world.apply(OPTED_IN);
    let ads = world.local("ads").unwrap();
    assert_eq!(
        (ads.host.as_str(), ads.vips.as_slice()),
        ("ads.shop.svc.cluster.local", ["10.96.0.7", "fd00:96::7"].map(str::to_owned).as_slice())
    );
    let [own] = ads.clusters.as_slice() else { panic!("{ads:?}") };
    assert_eq!((own.cluster.as_str(), own.gateways.len()), ("east", 0));
    assert_eq!(own.identities, ["spiffe://east.mesh.example/ns/shop/sa/cart"]);
    let [sidecar, outside, plain]: &[Endpoint; 3] = own.endpoints.as_slice().try_into().unwrap();
    assert_eq!((sidecar.id.as_str(), sidecar.mesh_port, sidecar.targets.len()), ("east/shop/cart-0", 15008, 0));
    assert_eq!(
        (outside.id.as_str(), outside.address.as_str(), outside.ready),
        ("east/shop/192.0.2.9", "192.0.2.9", false)
    );
    assert_eq!((plain.id.as_str(), plain.address.as_str(), plain.mesh_port), ("east/shop/cart-1", "127.1.0.8", 0));
    assert_eq!((plain.identity.as_str(), &plain.targets), ("", &[(80, 8080)].into()), "TCP only");
    assert_eq!(plain.locality.as_ref().map(|locality| locality.zone.as_str()), Some("eu-a"));

    assert_eq!(world.captured(), ["10.96.0.7", "fd00:96::7"]);
    let by_address = &world.snapshot.by_cluster_ip[&"10.96.0.7".parse::<IpAddr>().unwrap()];
    assert_eq!(by_address.to_string(), "shop/ads");
    assert!(world.local("cart").is_some(), "an exported one too");
    assert!(world.local("db").is_none(), "a headless one has no address");
    let bound = world.bound();
    for expected in [
        "ads.shop.svc.cluster.local:80 8080",
        "cart.shop.svc.clusterset.local:7070 17070",
        "cart.shop.svc.cluster.local:7070 17070",
    ] {
        assert!(bound.contains(&expected.to_owned()), "{expected}: {bound:?}");
    }

    assert_eq!(world.published.len(), said, "the federation hears nothing of it");
    assert_eq!(world.imports(), ["shop/cart"]);
    let routes: Vec<_> = world.snapshot.routes.values().map(|route| route.name.clone()).collect();
    assert_eq!(routes, ["route/cart.shop.svc.clusterset.local"], "nor do gateways");
    assert!(world.snapshot.routes.values().all(|route| match &route.resource {
        Some(Content::Route(route)) => route.endpoints.iter().all(|endpoint| endpoint.mesh_port > 0),
        _ => false,
    }));
}

#[test]
fn a_namespace_that_has_opted_out_again_leaves_nothing_behind() {
    let mut world = World::shop();
    world.apply(INTERNAL);
    for out in [OPTED_IN.replace("enabled", "disabled"), OPTED_IN.replace("isthmus.dev/local-services: enabled", "")] {
        world.apply(OPTED_IN);
        assert!(world.local("ads").is_some());
        world.apply(&out);
        assert_eq!((world.local("ads"), world.captured()), (None, vec![]));
        assert_eq!(world.bound(), ["cart.shop.svc.clusterset.local:7070 17070"]);
    }
    world.apply(OPTED_IN);
    let key = ResourceKey { kind: Kind::Namespace, namespace: None, name: "shop".to_owned() };
    let changes = vec![Change::Deleted(key)];
    world.tell(Input::Source(SourceUpdate { changes, synced: true, ..SourceUpdate::default() }));
    assert_eq!(world.local("ads"), None, "its declaration is gone");
}

#[test]
fn what_happens_to_endpoints_is_told_and_a_sidecar_that_comes_makes_the_way_to_it_secure() {
    let mut world = World::shop();
    world.apply(&format!("{OPTED_IN}---{INTERNAL}"));
    let with_sidecar = "
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, annotations: {isthmus.dev/sidecar: 'true'}}
spec: {serviceAccountName: ads, nodeName: n1, containers: []}
";
    world.apply(with_sidecar);
    let own = world.local("ads").unwrap().clusters.remove(0);
    let mesh: Vec<_> = own.endpoints.iter().filter(|endpoint| endpoint.mesh_port > 0).collect();
    assert_eq!(mesh.len(), 2);
    assert_eq!(own.identities.len(), 2, "{:?}", own.identities);
    world.delete(Kind::Service, "ads");
    assert_eq!((world.local("ads"), world.captured()), (None, vec![]));
}

#[test]
fn a_host_of_the_cluster_is_never_one_of_the_clusterset() {
    let id: federation::ServiceId = "shop/cart".parse().unwrap();
    assert_ne!(id.local_host(), MeshHost::from(id.host()));
    let mut world = World::new(true);
    world.apply(&format!("{OPTED_IN}---{INTERNAL}"));
    assert!(world.snapshot.services.is_empty() && world.snapshot.by_vip.is_empty());
    assert!(world.said("exports/shop/ads").is_none() && world.said("exports/shop/cart").is_none());
}
