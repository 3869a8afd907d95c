//! What is exported, and what is said of it.

use super::*;

#[test]
fn an_exported_service_is_published_with_the_capacity_of_its_sidecars() {
    let world = World::shop();
    let export = world.exported();
    assert_eq!(export.service_accounts, ["cart"]);
    let zones: Vec<_> = export.zones.iter().map(|it| (it.locality.zone.as_str(), it.total, it.ready)).collect();
    assert_eq!(zones, [("eu-a", 1, 1)], "an endpoint without a sidecar is no capacity");
    assert!(matches!(world.said("heads").unwrap().payload, Payload::Heads(heads) if heads.len() == 1));
    assert!(world.said("gateways").is_none());
    let view = &world.snapshot.exports[&"shop/cart".parse().unwrap()];
    assert_eq!(view.without_sidecar, 1);
    let import = &world.snapshot.services[&"shop/cart".parse().unwrap()];
    assert_eq!(import.vips.len(), 1);
    assert_eq!(import.clusters[0].identities, ["spiffe://east.mesh.example/ns/shop/sa/cart"]);
    assert_eq!(import.clusters[0].endpoints[0].id, "east/shop/cart-0");
}

#[test]
fn a_service_without_an_export_is_neither_published_nor_imported_nor_routed() {
    let mut world = World::shop();
    world.delete(Kind::ServiceExport, "cart");
    assert_eq!(world.said("exports/shop/cart").unwrap().payload, Payload::Withdrawal);
    assert!(matches!(world.said("heads").unwrap().payload, Payload::Heads(heads) if heads.is_empty()));
    assert!(world.imports().is_empty() && world.snapshot.routes.is_empty() && world.snapshot.exports.is_empty());
}

#[test]
fn conditions_follow_the_service_and_the_federators_answer() {
    let mut world = World::shop();
    assert!(is(world.condition("Valid"), "True", "Valid"));
    assert!(is(world.condition("Ready"), "False", "Pending"));
    assert!(is(world.condition("Conflict"), "False", "NoConflicts"));
    let said = world.said("exports/shop/cart").unwrap();
    let answer = |refusal| {
        let key = said.key.to_string();
        vec![PublishResult { key, sequence: said.sequence, revision: 1, refusal }]
    };
    world.tell(Input::Session(SessionInput::Published(answer(None))));
    assert!(is(world.condition("Ready"), "True", "Ready"));
    let refusal =
        Refusal { reason: Reason::NotDelegated.into(), detail: "namespace shop".to_owned(), ..Refusal::default() };
    world.tell(Input::Session(SessionInput::Published(answer(Some(refusal)))));
    assert!(is(world.condition("Ready"), "False", "Failed"));
    world.delete(Kind::Service, "cart");
    assert!(is(world.condition("Valid"), "False", "NoService"));
    world.apply("apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {type: ExternalName, externalName: a.b}\n");
    assert!(is(world.condition("Valid"), "False", "InvalidServiceType"));
    assert!(world.imports().is_empty());
}

#[test]
fn endpoint_churn_within_a_step_is_not_told_and_zero_is_told_at_once() {
    let mut world = World::shop();
    let slice = |count: usize, ready: usize| {
        let endpoint = |index: usize| {
            let ready = index < ready;
            format!(
                "- {{addresses: [127.1.1.{index}], conditions: {{ready: {ready}}}, nodeName: n1, targetRef: {{kind: Pod, name: p-{index}}}}}\n"
            )
        };
        let pods: String = (0..count).map(|index| format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p-{index}, namespace: shop, annotations: {{isthmus.dev/sidecar: \"true\"}}}}\nspec: {{serviceAccountName: cart, nodeName: n1, containers: []}}\n"
        )).collect();
        let endpoints: String = (0..count).map(endpoint).collect();
        format!(
            "{pods}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: cart-x, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}\naddressType: IPv4\nports: [{{name: grpc, port: 17070}}]\nendpoints:\n{endpoints}"
        )
    };
    world.now.instant += Duration::from_secs(10);
    world.apply(&slice(50, 50));
    world.now.instant += Duration::from_secs(10);
    world.flush();
    assert_eq!(world.exported().ready(), 50);
    let before = world.published.len();
    world.now.instant += Duration::from_secs(10);
    world.apply(&slice(50, 48));
    assert_eq!(world.published.len(), before, "4 % is no step");
    let view = &world.snapshot.services[&"shop/cart".parse().unwrap()];
    assert_eq!(view.clusters[0].zones[0].ready, 48, "the own cluster sees its endpoints as they are");
    world.apply(&slice(50, 0));
    assert_eq!(world.exported().ready(), 0);
}

#[test]
fn a_conflict_stands_on_our_export_with_the_exact_reasons() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    world.trust(&[&west], Vec::new(), None);
    let record = west.export("shop/cart", |export| {
        export.ports = vec![port("grpc", 7071)];
        export.labels.insert("team".to_owned(), "x".to_owned());
    });
    world.changes(vec![record]);
    assert!(is(world.condition("Conflict"), "True", "PortConflict,LabelsConflict"));
}

#[test]
fn a_cluster_that_has_not_joined_serves_itself() {
    let mut world = World::new(false);
    world.apply(SHOP);
    assert!(world.snapshot.synced && world.published.is_empty());
    assert_eq!(world.imports(), ["shop/cart"]);
    assert_eq!(world.snapshot.generation, None);
    let joined = world.own.joined(&world.root);
    world.tell(Input::Joined(Box::new(joined)));
    assert!(!world.snapshot.synced, "nothing is said to be absent before the federation's first full state");
    assert!(world.said("exports/shop/cart").is_some());
    world.snapshot_complete();
    assert!(world.snapshot.synced);
}
