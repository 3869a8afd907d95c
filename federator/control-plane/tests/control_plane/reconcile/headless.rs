//! Endpoints of headless services: each has a host of its own, and an address in every other cluster.

use std::net::IpAddr;

use federation::export::IpFamily;
use federation::{HeadlessEndpoint, Locality, ServiceHost, ServiceType};
use federation_api::discovery::v1::resource::Resource as Content;
use federation_api::discovery::v1::{Route, Service};
use federation_api::payload::Slice;

use super::*;

const DATABASE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432, targetPort: 15432}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: db, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, annotations: {isthmus.dev/sidecar: "true"}}
spec: {serviceAccountName: db, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, annotations: {isthmus.dev/sidecar: "true"}}
spec: {serviceAccountName: other, containers: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 15432}]
endpoints:
- {addresses: [10.0.0.7], hostname: db-0, conditions: {ready: true}, targetRef: {kind: Pod, name: db-0}}
- {addresses: [10.0.0.8], conditions: {ready: true}, targetRef: {kind: Pod, name: other}}
"#;

fn endpoint(hostname: Option<&str>, address: &str) -> HeadlessEndpoint {
    HeadlessEndpoint {
        hostname: hostname.map(|hostname| hostname.parse().unwrap()),
        addresses: vec![address.parse().unwrap()],
        locality: Locality::new("eu", "eu-b"),
        ready: true,
        service_account: "db".to_owned(),
    }
}

/// West's word on its own part of `shop/db`.
fn say(west: &mut Peer, endpoints: Vec<HeadlessEndpoint>) -> Vec<Signed> {
    say_of("shop/db", west, endpoints)
}

fn say_of(service: &str, west: &mut Peer, endpoints: Vec<HeadlessEndpoint>) -> Vec<Signed> {
    let slice = Slice { service: service.parse().unwrap(), name: "db-y".to_owned(), endpoints };
    let key = RecordKey::Slice(slice.service.clone(), slice.name.clone());
    vec![west.export(service, headless), west.gateway("127.2.0.9", 15443), west.say(&key, &Payload::Slice(slice))]
}

fn headless(export: &mut Export) {
    export.service_type = ServiceType::Headless;
    export.ports = vec![port("sql", 5432)];
    export.service_accounts = vec!["db".to_owned(), "other".to_owned()];
}

fn joined() -> (World, Peer) {
    let mut world = World::new(true);
    world.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let mut west = Peer::new(&world.root, "west");
    let bundle = west.bundle();
    world.trust(&[&west], vec![bundle], None);
    (world, west)
}

fn host(label: &str) -> ServiceHost {
    format!("{label}.db.shop.svc.clusterset.local").parse().unwrap()
}

fn service(world: &World, label: &str) -> Service {
    let view = &world.snapshot.services[&"shop/db".parse().unwrap()];
    match &view.endpoints[&host(label)].resource {
        Some(Content::Service(service)) => service.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_endpoint_of_another_cluster_has_an_address_of_its_own_that_outlives_its_pod() {
    let (mut world, mut west) = joined();
    world.changes(say(&mut west, vec![endpoint(Some("db-0"), "10.0.0.7"), endpoint(None, "10.0.0.8")]));
    let (named, dashed) = (service(&world, "db-0.west"), service(&world, "10-0-0-8.west"));
    for it in [&named, &dashed] {
        assert!(it.vips.len() == 1 && it.vips[0].starts_with("241.7."), "{:?}", it.vips);
        assert_eq!(it.clusters.len(), 1);
        assert_eq!(it.clusters[0].identities, ["spiffe://west.mesh.example/ns/shop/sa/db"], "its own account alone");
        assert_eq!((it.clusters[0].gateways.len(), it.clusters[0].ports.clone()), (1, vec![5432]));
        assert_eq!(it.clusters[0].zones[0].ready, 1);
    }
    assert_eq!((named.host.as_str(), named.name.as_str()), ("db-0.west.db.shop.svc.clusterset.local", "db"));
    assert_ne!(named.vips, dashed.vips);
    let address: IpAddr = named.vips[0].parse().unwrap();
    assert_eq!(world.snapshot.by_vip[&address], host("db-0.west"));

    world.changes(say(&mut west, vec![endpoint(None, "10.0.0.8")]));
    let view = &world.snapshot.services[&"shop/db".parse().unwrap()];
    assert!(!view.endpoints.contains_key(&host("db-0.west")) && !world.snapshot.by_vip.contains_key(&address));
    assert_eq!(service(&world, "10-0-0-8.west"), dashed);

    let moved = HeadlessEndpoint { ready: false, ..endpoint(Some("db-0"), "10.0.9.9") };
    world.changes(say(&mut west, vec![moved, endpoint(None, "10.0.0.8")]));
    let back = service(&world, "db-0.west");
    assert_eq!(back.vips, named.vips, "wherever its pod is now");
    assert_eq!(back.clusters[0].zones[0].ready, 0);
}

#[test]
fn names_and_slices_tell_of_the_addresses_that_stand_for_endpoints() {
    let (mut world, mut west) = joined();
    world.changes(say(&mut west, vec![endpoint(Some("db-0"), "10.0.0.7")]));
    let view = &world.snapshot.services[&"shop/db".parse().unwrap()];
    let [told] = view.clusters[0].headless.as_slice() else { panic!("{:?}", view.clusters) };
    let stands_for = service(&world, "db-0.west").vips;
    assert_eq!(told.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), stands_for);
    let Some(Content::Service(whole)) = &view.resource.resource else { panic!("{:?}", view.resource) };
    assert_eq!((whole.clusters[0].headless[0].addresses.clone(), whole.vips.len()), (stands_for, 0));
}

#[test]
fn an_endpoint_without_an_address_is_told_with_the_import() {
    let (mut world, mut west) = joined();
    world.changes(say(&mut west, vec![endpoint(Some("db-0"), "10.0.0.7")]));
    let without = |world: &World| world.snapshot.services[&"shop/db".parse().unwrap()].without_vip.clone();
    assert_eq!(without(&world), None);
    let six = west.export("shop/db", |export| {
        headless(export);
        export.ip_families = vec![IpFamily::IPv6];
    });
    world.changes(vec![six]);
    assert_eq!(without(&world).as_deref(), Some("IP family IPv6 is not supported in this cluster"));
}

#[test]
fn an_endpoint_whose_host_no_server_name_could_carry_is_left_out() {
    let mut world = World::new(true);
    let (namespace, name) = ("n".repeat(63), "s".repeat(63));
    world.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n"));
    let mut far = Peer::new(&world.root, "europe-south-1");
    let bundle = far.bundle();
    world.trust(&[&far], vec![bundle], None);
    let endpoints = [46, 47].map(|bytes| endpoint(Some(&"e".repeat(bytes)), "10.0.0.7"));
    world.changes(say_of(&format!("{namespace}/{name}"), &mut far, endpoints.to_vec()));
    let [view] = world.snapshot.services.values().collect::<Vec<_>>()[..] else { panic!("one service") };
    let named: Vec<_> = view.endpoints.keys().map(|host| host.endpoint().unwrap().1.as_str().len()).collect();
    assert_eq!((named, world.snapshot.by_vip.len(), view.clusters[0].headless.len()), (vec![46], 1, 1));
}

#[test]
fn the_own_endpoints_are_routed_and_answered_one_by_one() {
    let mut world = World::new(true);
    world.apply(DATABASE);
    let route = |label: &str| match &world.snapshot.routes[&host(label)].resource {
        Some(Content::Route(Route { host, ports, endpoints, .. })) => {
            let endpoints: Vec<_> = endpoints.iter().map(|endpoint| endpoint.id.clone()).collect();
            (host.clone(), ports.clone(), endpoints)
        }
        other => panic!("{other:?}"),
    };
    let whole = world.snapshot.routes.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(whole.len(), 3, "{whole:?}");
    let only = |label: &str, pod: &str| (host(label).to_string(), vec![5432], vec![format!("east/shop/{pod}")]);
    assert_eq!(route("db-0.east"), only("db-0.east", "db-0"));
    assert_eq!(route("10-0-0-8.east"), only("10-0-0-8.east", "other"));

    let workloads = &world.snapshot.workloads["shop"];
    let found = workloads.find(&["10.0.0.7".parse().unwrap()], "db").unwrap();
    let bindings: Vec<_> = found.bindings.iter().map(|binding| (binding.host.to_string(), binding.target)).collect();
    let own = ["db.shop.svc.clusterset.local", "db-0.east.db.shop.svc.clusterset.local"];
    assert_eq!(bindings, own.map(|host| (host.to_owned(), 15432)), "and no other endpoint's");

    let called = service(&world, "10-0-0-8.east");
    assert!(called.vips.is_empty(), "it is dialled where it is");
    assert_eq!(called.clusters[0].endpoints.len(), 1);
    assert_eq!(called.clusters[0].identities, ["spiffe://east.mesh.example/ns/shop/sa/other"]);

    world.delete(Kind::ServiceExport, "db");
    assert!(world.snapshot.routes.is_empty());
}

#[test]
fn an_endpoint_of_a_cluster_that_is_shut_out_is_gone() {
    let (mut world, mut west) = joined();
    world.changes(say(&mut west, vec![endpoint(Some("db-0"), "10.0.0.7")]));
    assert_eq!(world.snapshot.by_vip.len(), 1);
    let mut list = DenyList::empty(federation());
    list.epoch = 2;
    list.clusters.insert(cluster("west"));
    world.trust(&[], Vec::new(), Some(&list));
    assert!(world.imports().is_empty() && world.snapshot.by_vip.is_empty());
}
