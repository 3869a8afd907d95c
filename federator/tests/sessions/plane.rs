//! A federation plane in one process: authority, membership root, members, the service on a loopback port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation::delegation::NamespaceSet;
use federation::export::IpFamily;
use federation::{ClusterName, Export, FederationDomain, RecordKey, ServiceId, ServiceType};
use federation_api::client::Events;
use federation_api::client::federation::{Session, SessionCursor, SessionEvent, SessionOptions};
use federation_api::federation::v1::Welcome;
use federation_api::federation::v1::federation_server::FederationServer;
use federation_api::federation::v1::refusal::Reason;
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, Signed};
use federation_api::signing::{MembershipRoot, PublishKey, Speaker};
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::DenyList;
use federation_store::EmbeddedStore;
use federator::cache::Cache;
use federator::config::Quota;
use federator::liveness::Liveness;
use federator::members::Members;
use federator::publish::Publisher;
use federator::rpc::FederationService;
use federator::session::Shared;
use mesh_runtime::Process;
use mesh_tls::rpc::{self, AcceptLimits, ChannelOptions};
use mesh_tls::{ClientAuth, ExpectedPeer, Identity, TrustStore, client_config, new_key_and_csr, server_config};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::until;

const DOMAIN: &str = "mesh.example";
const HOUR: Duration = Duration::from_secs(3600);

/// What survives a restart of the service.
struct Kept {
    directory: TempDir,
    authority: Authority,
    root: MembershipRoot,
    speakers: BTreeMap<String, Speaker>,
    members: watch::Sender<Arc<Members>>,
}

pub(crate) struct Plane {
    kept: Kept,
    address: SocketAddr,
    tasks: JoinSet<()>,
    _process: Process,
}

impl Plane {
    /// east, west and north are members, delegated the namespaces shop and other.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(directory.path(), &trust_domain(), SystemTime::now()).unwrap();
        let root = MembershipRoot::generate().unwrap();
        let mut members = Members::new(root.public(), domain());
        let mut speakers = BTreeMap::new();
        for name in ["east", "west", "north"] {
            let (speaker, member) = join(&root, &authority, name);
            speakers.insert(name.to_owned(), speaker);
            members.apply(&WatchResponse { members: vec![member], ..WatchResponse::default() });
        }
        let (members, _) = watch::channel(Arc::new(members));
        let store = EmbeddedStore::open(directory.path().join("exports.redb")).await.unwrap();
        Self::serve(Kept { directory, authority, root, speakers, members }, store).await
    }

    async fn serve(kept: Kept, store: EmbeddedStore) -> Self {
        let cache = Cache::load(&store).await.unwrap();
        let (liveness, process) = (Liveness::new(), Process::for_tests());
        let shared = Shared {
            cache: cache.clone(),
            publisher: Publisher::new(store.clone(), cache.clone(), Quota::default()),
            liveness: liveness.clone(),
            members: kept.members.subscribe(),
            heartbeat: Duration::from_millis(200),
            drain: process.drain(),
        };
        let service = FederationService::new(shared, trust_domain(), "test".to_owned(), Default::default());
        let (identity, trust) = kept.identity(&SpiffeId::service(&trust_domain(), "federator").unwrap());
        let tls = server_config(&identity, &trust, ClientAuth::Required, &[rpc::ALPN]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = rpc::incoming(listener, tls, AcceptLimits::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let served = rpc::server().add_service(FederationServer::new(service)).serve_with_incoming(incoming);
            served.await.unwrap();
        });
        let followed = store.clone();
        tasks.spawn(async move { drop(cache.follow(followed).await) });
        tasks.spawn(async move { drop(liveness.follow(store).await) });
        Self { kept, address, tasks, _process: process }
    }

    /// The service ends; another one starts on the same store.
    pub(crate) async fn restart(mut self) -> Self {
        self.tasks.shutdown().await;
        let path = self.kept.directory.path().join("exports.redb");
        let reopened = async {
            loop {
                match EmbeddedStore::open(&path).await {
                    Ok(store) => return store,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let store = tokio::time::timeout(Duration::from_secs(10), reopened).await.unwrap();
        Self::serve(self.kept, store).await
    }

    pub(crate) fn sign(&self, cluster: &str, sequence: u64, key: &RecordKey, payload: &Payload) -> Signed {
        self.kept.speakers[cluster].sign(sequence, SystemTime::now(), key, payload).unwrap()
    }

    pub(crate) fn quarantine(&self, cluster: &str, epoch: u64) {
        let mut list = DenyList::empty(domain());
        list.epoch = epoch;
        list.clusters.insert(cluster.parse().unwrap());
        let deny_list = Some(self.kept.root.deny(&list.to_wire()));
        let update = WatchResponse { deny_list, ..WatchResponse::default() };
        self.kept.members.send_modify(|members| Arc::make_mut(members).apply(&update));
    }

    fn open(&self, cluster: &str, options: SessionOptions) -> (Session, Events<SessionEvent>) {
        let (identity, trust) = self.kept.identity(&SpiffeId::control_plane(&trust_domain(), cluster).unwrap());
        let expected = ExpectedPeer::AnyOf([SpiffeId::service(&trust_domain(), "federator").unwrap()].into());
        let config = client_config(Some(&identity), &trust, expected, &[rpc::ALPN]);
        Session::open(rpc::channel([self.address], config, ChannelOptions::default()), options)
    }

    /// An open session.
    pub(crate) async fn client(
        &self,
        cluster: &str,
        namespaces: &[&str],
        publisher: bool,
        cursor: SessionCursor,
    ) -> Client {
        let namespaces: BTreeSet<_> = namespaces.iter().map(|name| name.parse().unwrap()).collect();
        let options = SessionOptions { namespaces, publisher, cursor, ..SessionOptions::default() };
        let (session, events) = self.open(cluster, options);
        let mut client = Client {
            session,
            events,
            welcome: Welcome::default(),
            records: Vec::new(),
            cursor: SessionCursor::default(),
        };
        client.welcome = until(&mut client, "welcome", |event| match event {
            SessionEvent::Connected(welcome) => Some(welcome),
            _ => None,
        })
        .await;
        client
    }

    /// Why a cluster gets no session.
    pub(crate) async fn refused(&self, cluster: &str) -> String {
        let (_session, mut events) = self.open(cluster, SessionOptions::default());
        match tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap() {
            SessionEvent::Disconnected { reason, .. } => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

impl Kept {
    fn identity(&self, id: &SpiffeId) -> (Identity, TrustStore) {
        let (key, csr) = new_key_and_csr().unwrap();
        let svid = self.authority.issue(&csr, id, HOUR, SystemTime::now()).unwrap();
        let trust = TrustStore::new();
        let (x509_authorities, trust_domain) = (vec![self.authority.root()], trust_domain());
        trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
        (Identity::from_der(svid.chain, key).unwrap(), trust)
    }
}

fn join(root: &MembershipRoot, authority: &Authority, name: &str) -> (Speaker, Member) {
    let (cluster, now): (ClusterName, _) = (name.parse().unwrap(), SystemTime::now());
    let request = TokenRequest {
        federation: domain(),
        cluster: cluster.clone(),
        namespaces: NamespaceSet::Some(["shop", "other"].iter().map(|name| name.parse().unwrap()).collect()),
        address_ranges: Vec::new(),
        host_names: Vec::new(),
        federation_roots: vec![authority.root().to_vec()],
        trust_bundle_addresses: vec!["127.0.0.1:1".to_owned()],
        federator_addresses: vec!["127.0.0.1:1".to_owned()],
        created: now,
        lifetime: HOUR,
    };
    let token = JoinToken::create(root, request).unwrap();
    let key = PublishKey::generate().unwrap();
    let member = token.member(&key.public(), now);
    (Speaker { federation: domain(), cluster, generation: token.generation(), key }, member)
}

/// A control-plane's session.
pub(crate) struct Client {
    session: Session,
    pub(crate) events: Events<SessionEvent>,
    pub(crate) welcome: Welcome,
    records: Vec<Signed>,
    cursor: SessionCursor,
}

impl Client {
    /// Publishes one record and waits for what became of it.
    pub(crate) async fn publish(&mut self, signed: Signed) -> Result<(), Reason> {
        self.session.publish([signed]);
        let results = until(self, "a publish result", |event| match event {
            SessionEvent::Published(results) => Some(results),
            _ => None,
        });
        let result = results.await.remove(0);
        match result.refusal {
            None => {
                assert!(result.revision > 0);
                Ok(())
            }
            Some(refusal) => {
                assert!(!refusal.detail.is_empty());
                Err(refusal.reason())
            }
        }
    }

    /// The next record that is told.
    pub(crate) async fn next_record(&mut self) -> Signed {
        while self.records.is_empty() {
            self.records = until(self, "a record", |event| match event {
                SessionEvent::Changes { records, .. } => Some(records),
                _ => None,
            })
            .await;
        }
        self.records.remove(0)
    }

    /// Waits for the snapshot's marker; its cursor counts as applied.
    pub(crate) async fn until_complete(&mut self) -> SessionCursor {
        let cursor = until(self, "the snapshot's marker", |event| match event {
            SessionEvent::SnapshotComplete { cursor, .. } => Some(cursor),
            _ => None,
        });
        self.cursor = cursor.await;
        self.session.applied(self.cursor.clone());
        self.cursor.clone()
    }

    pub(crate) async fn until_liveness(&mut self, cluster: &str, connected: bool) {
        until(self, "liveness", |event| match event {
            SessionEvent::Liveness(clusters) => {
                clusters.iter().any(|state| state.cluster == cluster && state.connected == connected).then_some(())
            }
            _ => None,
        })
        .await;
    }

    pub(crate) async fn until_disconnected(&mut self) -> String {
        until(self, "the end", |event| match event {
            SessionEvent::Disconnected { reason, .. } => Some(reason.to_string()),
            _ => None,
        })
        .await
    }
}

fn domain() -> FederationDomain {
    DOMAIN.parse().unwrap()
}

fn trust_domain() -> TrustDomain {
    DOMAIN.parse().unwrap()
}

pub(crate) fn key(name: &str) -> RecordKey {
    RecordKey::Export(ServiceId::parse_parts("shop", name).unwrap())
}

pub(crate) fn export(name: &str) -> Payload {
    export_in("shop", name)
}

pub(crate) fn export_in(namespace: &str, name: &str) -> Payload {
    Payload::Export(Box::new(Export {
        service: ServiceId::parse_parts(namespace, name).unwrap(),
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        client_ip_affinity: None,
        ip_families: vec![IpFamily::IPv4],
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created: SystemTime::now(),
        service_accounts: vec![name.to_owned()],
        zones: Vec::new(),
    }))
}
