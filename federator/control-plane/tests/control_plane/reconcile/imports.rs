//! What others' records make.

use super::*;

#[test]
fn an_export_of_a_peer_becomes_an_import_that_outlives_ours() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    let bundle = west.bundle();
    world.trust(&[&west], vec![bundle], None);
    let records =
        vec![west.export("shop/cart", |_| {}), west.export("other/thing", |_| {}), west.gateway("127.2.0.9", 15443)];
    world.changes(records);
    assert_eq!(world.imports(), ["shop/cart"], "a namespace that is not here is not imported");
    let view = Arc::clone(&world.snapshot.services[&"shop/cart".parse().unwrap()]);
    let exporters: Vec<_> = view.clusters.iter().map(|it| (it.cluster.as_str(), it.local, it.trusted)).collect();
    assert_eq!(exporters, [("east", true, true), ("west", false, true)]);
    assert_eq!(view.clusters[1].identities, ["spiffe://west.mesh.example/ns/shop/sa/cart"]);
    assert_eq!(view.clusters[1].gateways[0].port, 15443);
    world.delete(Kind::ServiceExport, "cart");
    let alone = &world.snapshot.services[&"shop/cart".parse().unwrap()];
    assert_eq!(alone.vips, view.vips);
    let withdrawal = west.say(&RecordKey::Export("shop/cart".parse().unwrap()), &Payload::Withdrawal);
    world.changes(vec![withdrawal]);
    assert!(world.imports().is_empty());
}

#[test]
fn gateways_are_told_where_other_clusters_are_and_sidecars_their_way_out() {
    use federation_api::discovery::v1::resource::Resource as Content;
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    let bundle = west.bundle();
    world.trust(&[&west], vec![bundle.clone()], None);
    world.changes(vec![west.gateway("127.2.0.9", 15443)]);
    let remote = world.snapshot.remotes.values().next().unwrap();
    assert_eq!(remote.name, "remote/west");
    let Some(Content::Remote(remote)) = &remote.resource else { panic!("{remote:?}") };
    assert_eq!((remote.gateways[0].address.as_str(), remote.gateways[0].port), ("127.2.0.9", 15443));
    let way_out = |world: &World| match &world.snapshot.mesh.resource {
        Some(Content::Mesh(mesh)) => mesh.egress_gateways.iter().map(|gateway| gateway.port).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert!(way_out(&world).is_empty());
    let own = federation::Gateway {
        name: "gw-0".to_owned(),
        address: federation::GatewayAddress::Ip("127.1.0.9".parse().unwrap()),
        port: 15444,
        locality: federation::Locality::default(),
        draining: false,
    };
    world.tell(Input::EgressGateways(vec![own]));
    assert_eq!(way_out(&world), [15444]);
    let mut denied = DenyList::empty(federation());
    denied.epoch = 2;
    denied.clusters.insert(cluster("west"));
    world.trust(&[&west], vec![bundle], Some(&denied));
    assert!(world.snapshot.remotes.is_empty(), "a cluster that is shut out is not reached");
}

#[test]
fn an_export_without_a_bundle_is_imported_but_not_offered_to_proxies() {
    use federation_api::discovery::v1::resource::Resource as Content;
    let mut world = World::new(true);
    world.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let mut west = Peer::new(&world.root, "west");
    world.trust(&[&west], Vec::new(), None);
    world.changes(vec![west.export("shop/cart", |_| {})]);
    let offered = |world: &World| match &world.snapshot.services[&"shop/cart".parse().unwrap()].resource.resource {
        Some(Content::Service(service)) => service.clusters.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(offered(&world), 0);
    let bundle = west.bundle();
    world.trust(&[&west], vec![bundle], None);
    assert_eq!(offered(&world), 1);
}

#[test]
fn quarantine_takes_a_cluster_out_and_its_release_brings_it_back() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    let bundle = west.bundle();
    world.trust(&[&west], vec![bundle], None);
    world.changes(vec![west.export("shop/cart", |_| {})]);
    let mut list = DenyList::empty(federation());
    list.epoch = 2;
    list.clusters.insert(cluster("west"));
    let effects = world.trust(&[], Vec::new(), Some(&list));
    assert!(effects.trust.unwrap().denied.trust_domains.iter().any(|it| it.as_str() == "west.mesh.example"));
    let view = |world: &World| world.snapshot.services[&"shop/cart".parse().unwrap()].clusters.len();
    assert_eq!(view(&world), 1);
    assert!(!world.snapshot.trust.contains_key("west.mesh.example"));
    let mut stale = DenyList::empty(federation());
    stale.epoch = 1;
    world.trust(&[], Vec::new(), Some(&stale));
    assert_eq!(view(&world), 1, "an older list lifts nothing");
    let mut newest = DenyList::empty(federation());
    newest.epoch = 9;
    let forged = MembershipRoot::generate().unwrap().deny(&newest.to_wire());
    world.tell(Input::Trust(Box::new(WatchResponse { deny_list: Some(forged), ..WatchResponse::default() })));
    assert_eq!(view(&world), 1, "nor does one that the operator did not sign");
    list.epoch = 3;
    list.clusters.clear();
    world.trust(&[], Vec::new(), Some(&list));
    assert_eq!(view(&world), 2);
}

#[test]
fn records_of_strangers_forgers_and_the_past_change_nothing() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    let (old, new) = (west.export("shop/cart", |_| {}), west.export("shop/cart", |export| export.zones[0].ready = 1));
    let mut impostor = Peer::new(&MembershipRoot::generate().unwrap(), "west");
    world.trust(&[&west], Vec::new(), None);
    world.changes(vec![new, old, impostor.export("shop/cart", |export| export.zones[0].ready = 7)]);
    let view = &world.snapshot.services[&"shop/cart".parse().unwrap()];
    assert_eq!(view.clusters[1].zones[0].ready, 1);
}

#[test]
fn records_that_come_before_their_membership_are_taken_when_it_does() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    world.changes(vec![west.export("shop/cart", |_| {})]);
    assert_eq!(world.snapshot.services[&"shop/cart".parse().unwrap()].clusters.len(), 1);
    world.trust(&[&west], Vec::new(), None);
    assert_eq!(world.snapshot.services[&"shop/cart".parse().unwrap()].clusters.len(), 2);
}

#[test]
fn suspicion_marks_and_disconnection_deletes_nothing() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    world.trust(&[&west], Vec::new(), None);
    world.changes(vec![west.export("shop/cart", |_| {})]);
    let lost = ClusterLiveness { cluster: "west".to_owned(), connected: false, since_ms: 5, applied_revision: 3 };
    world.tell(Input::Session(SessionInput::Liveness(vec![lost])));
    assert!(world.snapshot.services[&"shop/cart".parse().unwrap()].clusters[1].suspect);
    world.tell(Input::Session(SessionInput::Disconnected("gone".to_owned())));
    world.tell(Input::TrustLink(Err("gone".to_owned())));
    assert_eq!(world.snapshot.services[&"shop/cart".parse().unwrap()].clusters.len(), 2);
    assert_eq!(world.snapshot.federator.problem.as_deref(), Some("gone"));
}

#[test]
fn equivocation_and_withholding_raise_alarms() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    world.trust(&[&west], Vec::new(), None);
    let first = west.export("shop/cart", |_| {});
    let key = RecordKey::Export("shop/cart".parse().unwrap());
    let second = west.equivocate(&key, &Payload::Export(Box::new(Export { zones: Vec::new(), ..export("shop/cart") })));
    world.changes(vec![first, second]);
    let kinds = |world: &World| -> Vec<String> {
        world.snapshot.clusters[&cluster("west")].alarms.iter().map(|alarm| alarm.kind.to_string()).collect()
    };
    world.flush();
    world.snapshot_complete();
    assert_eq!(kinds(&world), ["equivocation"]);
    west.export("shop/kept-back", |_| {});
    let heads = west.heads();
    world.changes(vec![heads]);
    world.tell(Input::Session(SessionInput::Heartbeat(9)));
    assert_eq!(kinds(&world), ["equivocation"], "records may lag behind their heads for a while");
    world.now.system += Duration::from_secs(60);
    world.tell(Input::Session(SessionInput::Heartbeat(9)));
    assert_eq!(kinds(&world), ["equivocation", "withheld"]);
}

#[test]
fn a_snapshot_that_lacks_a_record_takes_it_away_only_with_its_owners_heads() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    world.trust(&[&west], Vec::new(), None);
    let (cart, ads) = (west.export("shop/cart", |_| {}), west.export("shop/ads", |_| {}));
    world.changes(vec![cart.clone(), ads]);
    let connected = || SessionInput::Connected { incarnation: "x".to_owned(), resumed: false };
    world.tell(Input::Session(connected()));
    world.changes(vec![cart.clone()]);
    world.snapshot_complete();
    assert_eq!(world.imports(), ["shop/ads", "shop/cart"]);
    west.say(&RecordKey::Export("shop/ads".parse().unwrap()), &Payload::Withdrawal);
    let heads = west.heads();
    world.tell(Input::Session(connected()));
    world.changes(vec![cart, heads]);
    world.snapshot_complete();
    assert_eq!(world.imports(), ["shop/cart"]);
}

#[test]
fn proxies_are_told_in_steps_when_the_trust_state_was_confirmed() {
    let mut world = World::shop();
    let told = |world: &World| match &world.snapshot.mesh.resource {
        Some(federation_api::discovery::v1::resource::Resource::Mesh(mesh)) => mesh.trust_confirmed_at_ms,
        other => panic!("{other:?}"),
    };
    world.tell(Input::TrustConfirmed);
    let at = world.snapshot.trust_bundle.last_applied.unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at = i64::try_from(at.as_millis()).unwrap();
    assert!(told(&world) > 0 && told(&world) % 10_000 == 0 && (0..10_000).contains(&(at - told(&world))));
    let before = told(&world);
    world.tell(Input::TrustLink(Err("gone".to_owned())));
    assert_eq!(told(&world), before, "a loss confirms nothing and takes nothing back");
}
