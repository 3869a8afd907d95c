//! Inputs to effects, pure: exports, imports, conditions, and what must never happen.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use control_plane::reconciler::{Effects, Facts, Input, Now, Reconciler, Restored, SessionInput, SourceUpdate};
use control_plane::snapshot::Snapshot;
use control_plane::vips::VipAllocator;
use federation::{Export, RecordKey};
use federation_api::client::federation::SessionCursor;
use federation_api::federation::v1::{ClusterLiveness, PublishResult, Refusal, refusal::Reason};
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::signing::MembershipRoot;
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{DenyList, VerifiedStatement};
use federation_resources::{Change, Kind, ResourceKey, read_text};
use spiffe_identity::Bundle;

use crate::member::{Peer, cluster, export, federation, port};

const SHOP: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-a}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  ports: [{name: grpc, port: 7070, targetPort: grpc-port}]
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: cart, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-0, namespace: shop, annotations: {isthmus.dev/sidecar: "true"}}
spec: {serviceAccountName: cart, nodeName: n1, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop}
spec: {serviceAccountName: cart, nodeName: n1, containers: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-x, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports: [{name: grpc, port: 17070}]
endpoints:
- {addresses: [127.1.0.7], conditions: {ready: true}, nodeName: n1, targetRef: {kind: Pod, name: cart-0}}
- {addresses: [127.1.0.8], conditions: {ready: true}, nodeName: n1, targetRef: {kind: Pod, name: cart-1}}
"#;

struct World {
    reconciler: Reconciler,
    root: MembershipRoot,
    own: Peer,
    now: Now,
    files: BTreeMap<&'static str, Vec<u8>>,
    published: Vec<Signed>,
    snapshot: Arc<Snapshot>,
}

impl World {
    fn new(joined: bool) -> Self {
        let root = MembershipRoot::generate().unwrap();
        let own = Peer::new(&root, "east");
        let now = Now::read();
        let reconciler = reconciler(&root, &own, Restored::default(), joined, now);
        let mut world = Self {
            reconciler,
            root,
            own,
            now,
            files: BTreeMap::new(),
            published: Vec::new(),
            snapshot: Arc::default(),
        };
        world.flush();
        world
    }

    fn shop() -> Self {
        let mut world = Self::new(true);
        world.apply(SHOP);
        world
    }

    fn tell(&mut self, input: Input) -> Effects {
        self.reconciler.handle(input, self.now);
        self.flush()
    }

    fn flush(&mut self) -> Effects {
        let mut effects = self.reconciler.flush(self.now);
        self.files.extend(std::mem::take(&mut effects.files));
        self.published.extend(effects.publish.iter().cloned());
        if let Some(snapshot) = &effects.snapshot {
            self.snapshot = Arc::clone(snapshot);
        }
        effects
    }

    fn apply(&mut self, manifests: &str) -> Effects {
        let reading = read_text(Path::new("m.yaml"), manifests);
        assert_eq!(reading.problems, []);
        let changes = reading.objects.into_iter().map(|(_, resource)| Change::Applied(resource)).collect();
        self.tell(Input::Source(SourceUpdate { changes, synced: true, ..SourceUpdate::default() }))
    }

    fn delete(&mut self, kind: Kind, name: &str) -> Effects {
        let key = ResourceKey { kind, namespace: Some("shop".parse().unwrap()), name: name.to_owned() };
        let changes = vec![Change::Deleted(key)];
        self.tell(Input::Source(SourceUpdate { changes, synced: true, ..SourceUpdate::default() }))
    }

    fn trust(&mut self, members: &[&Peer], bundles: Vec<Signed>, denied: Option<&DenyList>) -> Effects {
        self.tell(Input::Trust(Box::new(WatchResponse {
            version: 1,
            incarnation: "i".to_owned(),
            epoch: 1,
            full: true,
            members: members.iter().map(|peer| peer.member.clone()).collect(),
            bundles,
            deny_list: denied.map(|list| self.root.deny(&list.to_wire())),
            ..WatchResponse::default()
        })))
    }

    fn changes(&mut self, records: Vec<Signed>) -> Effects {
        self.tell(Input::Session(SessionInput::Changes(records, SessionCursor::default())))
    }

    fn snapshot_complete(&mut self) -> Effects {
        let namespaces = vec!["shop".parse().unwrap(), "default".parse().unwrap()];
        self.tell(Input::Session(SessionInput::SnapshotComplete(namespaces, SessionCursor::default())))
    }

    /// The newest of the own records on a key, verified as a receiver would.
    fn said(&self, key: &str) -> Option<VerifiedStatement> {
        let verified = self.published.iter().map(|signed| self.own.verified.verify(signed).unwrap());
        verified.filter(|statement| statement.key.to_string() == key).max_by_key(|statement| statement.sequence)
    }

    fn exported(&self) -> Export {
        match self.said("exports/shop/cart").unwrap().payload {
            Payload::Export(export) => *export,
            other => panic!("{other:?}"),
        }
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let view = &self.snapshot.exports[&"shop/cart".parse().unwrap()];
        let condition = view.conditions.iter().find(|condition| condition.kind == kind).unwrap();
        (condition.status.to_owned(), condition.reason.clone())
    }

    fn imports(&self) -> Vec<String> {
        self.snapshot.services.keys().map(ToString::to_string).collect()
    }
}

fn reconciler(root: &MembershipRoot, own: &Peer, restored: Restored, joined: bool, now: Now) -> Reconciler {
    let facts = Facts {
        cluster: cluster("east"),
        federation: federation(),
        trust_domain: "east.mesh.example".to_owned(),
        bundle: Bundle {
            trust_domain: own.authority.trust_domain().clone(),
            x509_authorities: vec![own.authority.root()],
            sequence: 1,
            refresh_hint: None,
        },
        spread: 0.0,
    };
    let vips = VipAllocator::new("241.7.0.0/16".parse().unwrap(), None, restored.vips.clone());
    Reconciler::new(facts, vips, restored, joined.then(|| own.joined(root)), now)
}

fn is(pair: (String, String), status: &str, reason: &str) -> bool {
    (pair.0.as_str(), pair.1.as_str()) == (status, reason)
}

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
fn nothing_happens_before_the_own_objects_were_read() {
    let root = MembershipRoot::generate().unwrap();
    let own = Peer::new(&root, "east");
    let now = Now::read();
    let mut world = World::shop();
    let published = world.published.clone();
    let restored = Restored { published: published.clone(), ..Restored::default() };
    let mut again = reconciler(&world.root, &world.own, restored, true, now);
    again.handle(Input::Session(SessionInput::Connected { incarnation: "x".to_owned(), resumed: false }), now);
    let effects = again.flush(now);
    assert!(effects.publish.is_empty() && effects.snapshot.is_none(), "no withdrawal of what is not read yet");
    again.handle(Input::Source(SourceUpdate { synced: true, ..SourceUpdate::default() }), now);
    assert!(
        again
            .flush(now)
            .publish
            .iter()
            .any(|signed| { world.own.verified.verify(signed).unwrap().payload == Payload::Withdrawal })
    );
    drop((own, world.flush()));
}

#[test]
fn a_restart_takes_up_everything_and_signs_nothing_anew() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    let bundle = west.bundle();
    world.trust(&[&west], vec![bundle], None);
    let cursor = SessionCursor { incarnation: "i".to_owned(), revision: 7, ..SessionCursor::default() };
    let records = vec![west.export("shop/cart", |_| {})];
    world.tell(Input::Session(SessionInput::Changes(records, cursor.clone())));
    world.tell(Input::Session(SessionInput::SnapshotComplete(vec!["shop".parse().unwrap()], cursor)));
    let directory = tempfile::tempdir().unwrap();
    let state = control_plane::state::StateDirectory::open(directory.path()).unwrap();
    for (name, bytes) in &world.files {
        state.write(name, bytes).unwrap();
    }
    let restored = Restored::read(&state).unwrap();
    assert_eq!(restored.session_cursor.revision, 7);
    let before = Arc::clone(&world.snapshot);
    world.now = Now { instant: Instant::now(), system: SystemTime::now() + Duration::from_secs(100) };
    world.reconciler = reconciler(&world.root, &world.own, restored, true, world.now);
    world.published.clear();
    world.apply(SHOP);
    assert!(world.snapshot.synced);
    let id = "shop/cart".parse().unwrap();
    assert_eq!(world.snapshot.services[&id].resource, before.services[&id].resource);
    assert_eq!(world.snapshot.exports[&id].created, before.exports[&id].created);
    let latest = world.published.iter().map(|signed| world.own.verified.verify(signed).unwrap().issued).max();
    assert!(
        latest.unwrap() < SystemTime::now() + Duration::from_secs(50),
        "what is said again is what was signed before"
    );
}

#[test]
fn records_that_are_not_all_there_are_asked_for_again() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    world.trust(&[&west], Vec::new(), None);
    let cursor = SessionCursor { incarnation: "i".to_owned(), revision: 7, ..SessionCursor::default() };
    let records = vec![west.export("shop/cart", |_| {}), west.export("shop/ads", |_| {})];
    world.tell(Input::Session(SessionInput::Changes(records, cursor.clone())));
    world.tell(Input::Session(SessionInput::SnapshotComplete(vec!["shop".parse().unwrap()], cursor)));
    // Written without news of the session: the cursor goes with it all the same.
    world.trust(&[&west], Vec::new(), None);
    let directory = tempfile::tempdir().unwrap();
    let state = control_plane::state::StateDirectory::open(directory.path()).unwrap();
    let write = || world.files.iter().for_each(|(name, bytes)| state.write(name, bytes).unwrap());
    let read = || Restored::read(&state).unwrap();
    write();
    assert!(read().peers_synced && read().session_cursor.revision == 7 && !read().published.is_empty());
    let peers = &world.files["peers.bin"];
    let damages: [Option<&[u8]>; 4] = [None, Some(&[]), Some(&peers[..peers.len() / 2]), Some(&peers[..40])];
    for damage in damages {
        for name in ["peers.bin", "peers.json", "published.bin"] {
            write();
            match damage {
                Some(bytes) => state.write(name, bytes).unwrap(),
                None => std::fs::remove_file(state.path(name)).unwrap(),
            }
            let restored = read();
            if name == "published.bin" {
                assert!(restored.published.is_empty() && restored.peers_synced);
                continue;
            }
            assert!(!restored.peers_synced && restored.session_cursor == SessionCursor::default(), "{name}");
            let mut again = reconciler(&world.root, &world.own, restored, true, world.now);
            again.handle(Input::Source(SourceUpdate { synced: true, ..SourceUpdate::default() }), world.now);
            assert!(!again.flush(world.now).snapshot.unwrap().synced);
        }
    }
}

#[test]
fn what_is_refused_for_something_newer_is_signed_again_once_a_second() {
    let mut world = World::shop();
    let refuse = |world: &mut World, reason: Reason| {
        let said = world.said("exports/shop/cart").unwrap();
        let refusal = Some(Refusal { reason: reason.into(), ..Refusal::default() });
        let result = PublishResult { key: said.key.to_string(), sequence: said.sequence, revision: 0, refusal };
        let effects = world.tell(Input::Session(SessionInput::Published(vec![result])));
        (said, effects.publish)
    };
    for reason in [Reason::Stale, Reason::Equivocation] {
        world.now.instant += Duration::from_secs(2);
        let (before, published) = refuse(&mut world, reason);
        let keys: Vec<_> = published.iter().map(|it| world.own.verified.verify(it).unwrap().key.to_string()).collect();
        assert_eq!(keys, ["exports/shop/cart", "heads"]);
        let after = world.said("exports/shop/cart").unwrap();
        assert!(after.sequence > before.sequence && after.payload == before.payload);
        assert!(world.flush().publish.is_empty(), "once for each refusal");
    }
    let (_, published) = refuse(&mut world, Reason::Stale);
    assert!(published.is_empty() && world.reconciler.next_due().is_some(), "once a second");
    world.now.instant += Duration::from_secs(1);
    assert_eq!(world.flush().publish.len(), 2);
    world.now.instant += Duration::from_secs(2);
    assert!(refuse(&mut world, Reason::NotDelegated).1.is_empty(), "another signature changes nothing there");
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

#[test]
fn workloads_learn_what_they_answer_by_their_address_and_account() {
    let world = World::shop();
    let workloads = &world.snapshot.workloads[&"shop".parse::<federation::Namespace>().unwrap()];
    let found = workloads.find(&["127.1.0.7".parse().unwrap()], "cart").unwrap();
    assert_eq!((found.id.as_str(), found.locality.zone.as_str()), ("east/shop/cart-0", "eu-a"));
    let binding = &found.bindings[0];
    assert_eq!((binding.service.to_string().as_str(), binding.port.port, binding.target), ("shop/cart", 7070, 17070));
    assert!(workloads.find(&["127.1.0.7".parse().unwrap()], "frontend").is_none());
    assert!(workloads.find(&["127.1.0.8".parse().unwrap()], "cart").is_none(), "it has no sidecar");
}

#[test]
fn proxies_are_told_the_failover_policy_of_an_import_as_it_changes() {
    use federation_api::discovery::v1::resource::Resource as Content;
    let mut world = World::shop();
    let told = |world: &World| match &world.snapshot.services[&"shop/cart".parse().unwrap()].resource.resource {
        Some(Content::Service(service)) => service.failover.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&world), None);
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: isthmus.dev/v1alpha1\nkind: FailoverPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    world.apply(&policy("all", "{localOnly: true}"));
    let everything = told(&world).unwrap();
    assert_eq!((everything.name.as_str(), everything.local_only), ("shop/all", true));
    let spec = "{service: cart, prefer: [zone], targets: [{from: [east], mode: Only, to: [west, north]}], \
                ejection: {consecutiveFailures: 3, baseTime: 2s}, retries: {perTryTimeout: 1500ms}}";
    world.apply(&policy("cart", spec));
    let own = told(&world).unwrap();
    assert_eq!((own.name.as_str(), own.prefer.len(), own.local_only), ("shop/cart", 1, false), "its own comes first");
    assert_eq!(own.targets[0].to, ["west", "north"]);
    assert_eq!(
        (own.consecutive_failures, own.base_ejection_ms, own.per_try_timeout_ms),
        (Some(3), Some(2000), Some(1500))
    );
    world.apply(&policy("other", "{service: redis, localOnly: true}"));
    world.delete(Kind::FailoverPolicy, "cart");
    assert_eq!(told(&world).unwrap().name, "shop/all");
    world.delete(Kind::FailoverPolicy, "all");
    assert_eq!(told(&world), None, "another service's is not this one's");
}

#[test]
fn workloads_are_told_the_access_policies_of_their_service_account() {
    use federation_api::discovery::v1::access_policy::Action;
    use federation_api::discovery::v1::resource::Resource as Content;
    let mut world = World::shop();
    let told = |world: &World, account: &str| {
        let workloads = &world.snapshot.workloads[&"shop".parse::<federation::Namespace>().unwrap()];
        let resource = control_plane::resources::workload("shop", account, None, workloads.policies(account));
        match resource.resource {
            Some(Content::Workload(workload)) => workload.policies,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(&world, "cart"), []);
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: isthmus.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let spec = "{serviceAccounts: [cart], action: Deny, dryRun: true, ports: [17070], \
                rules: [{clusters: [west], methods: [POST], paths: [/admin*]}]}";
    world.apply(&policy("cart", spec));
    let own = told(&world, "cart");
    assert_eq!((own.len(), own[0].name.as_str(), own[0].action()), (1, "shop/cart", Action::Deny));
    assert_eq!((own[0].dry_run, own[0].ports.as_slice()), (true, [17070].as_slice()));
    let rule = &own[0].rules[0];
    assert_eq!(
        (rule.clusters[0].as_str(), rule.methods[0].as_str(), rule.paths[0].as_str()),
        ("west", "POST", "/admin*")
    );
    assert_eq!(told(&world, "redis"), [], "it is another service account's");
    world.apply(&policy("all", "{action: Allow, rules: [{namespaces: [shop]}]}"));
    assert_eq!(told(&world, "redis").len(), 1);
    world.delete(Kind::AccessPolicy, "cart");
    assert_eq!(told(&world, "cart")[0].name, "shop/all");
}
