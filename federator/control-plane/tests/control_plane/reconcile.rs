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

mod exports;
mod headless;
mod imports;
mod local_services;
mod restart;
mod restored;
mod workloads;

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
