//! A federation plane in one process: authority, membership root, members, the service on a loopback port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation::delegation::NamespaceSet;
use federation::export::IpFamily;
use federation::{ClusterName, Export, FederationDomain, RecordKey, ServiceId, ServiceType};
use federation_api::client::Events;
use federation_api::client::federation::{Session, SessionCursor, SessionEvent, SessionOptions};
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::{PublishResult, Welcome};
use federation_api::payload::Payload;
use federation_api::publications::Publications;
use federation_api::record::v1::{Member, Signed};
use federation_api::signing::{MembershipRoot, PublishKey, Speaker};
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{DenyList, VerifiedMember};
use federation_store::backup::{self, BackupError};
use federation_store::{EmbeddedConfig, EmbeddedStore, StoreConfig};
use federator::members::Members;
use federator::quota::Quota;
use federator::replica::{Parts, Replica};
use mesh_runtime::Process;
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, new_key_and_csr};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::tight::Tight;
use super::until;

const DOMAIN: &str = "mesh.example";
const HOUR: Duration = Duration::from_secs(3600);

/// A federation plane: the clusters' keys, the store, and the replicas that serve it.
pub(crate) struct Plane {
    directory: TempDir,
    authority: Authority,
    root: MembershipRoot,
    speakers: BTreeMap<String, Speaker>,
    members: watch::Sender<Arc<Members>>,
    pub(crate) store: Tight,
    /// The store's, below the directory.
    file: &'static str,
    quota: Quota,
    replicas: Vec<Serving>,
}

/// A replica that runs.
pub(crate) struct Serving {
    address: SocketAddr,
    pub(crate) replica: Replica,
    pub(crate) process: Process,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Plane {
    /// east, west and north are members, delegated the namespaces shop and other.
    pub(crate) async fn start() -> Self {
        Self::with_quota(Quota::default()).await
    }

    pub(crate) async fn with_quota(quota: Quota) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(directory.path(), &trust_domain(), SystemTime::now()).unwrap();
        let root = MembershipRoot::generate().unwrap();
        let (members, _) = watch::channel(Arc::new(Members::new(root.public(), domain())));
        let file = "exports.redb";
        let store = Tight::new(EmbeddedStore::open(directory.path().join(file)).await.unwrap());
        let (speakers, replicas) = (BTreeMap::new(), Vec::new());
        let mut plane = Self { directory, authority, root, speakers, members, store, file, quota, replicas };
        ["east", "west", "north"].into_iter().for_each(|name| plane.join(name));
        plane.serve().await;
        plane
    }

    /// A new membership, of a higher generation when there was one.
    pub(crate) fn join(&mut self, name: &str) {
        let generation = self.speakers.get(name).map_or(0, |speaker| speaker.generation);
        let (speaker, member) = join(&self.root, &self.authority, name, generation);
        self.speakers.insert(name.to_owned(), speaker);
        self.tell(&WatchResponse { members: vec![member], ..WatchResponse::default() });
    }

    /// As trust-bundle does.
    pub(crate) fn tell(&self, update: &WatchResponse) {
        self.members.send_modify(|members| Arc::make_mut(members).apply(update));
    }

    /// One more replica on the same store.
    pub(crate) async fn serve(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let serving = self.serving(format!("federator-{}", self.replicas.len()), listener).await;
        self.replicas.push(serving);
    }

    async fn serving(&self, name: String, listener: TcpListener) -> Serving {
        let process = Process::for_tests();
        let (identity, trust) = self.identity(&SpiffeId::service(&trust_domain(), "federator").unwrap());
        let address = listener.local_addr().unwrap();
        let parts = Parts {
            name,
            store: self.store.clone(),
            members: self.members.subscribe(),
            identity,
            trust,
            trust_domain: trust_domain(),
            listener,
            heartbeat: Duration::from_millis(200),
            quota: self.quota,
            handshakes: 100,
            handshakes_per_source: 100,
        };
        let (replica, running) = Replica::start(parts, &process).await.unwrap();
        let task = tokio::spawn(async move { Box::pin(running).await.unwrap() });
        Serving { address, replica, process, task }
    }

    /// A replica drains, ends, and another one starts in its place: what an upgrade does to each in turn.
    pub(crate) async fn replace(&mut self, number: usize) {
        let old = &mut self.replicas[number];
        old.process.trigger_drain();
        tokio::time::timeout(Duration::from_secs(20), &mut old.task).await.unwrap().unwrap();
        let address = old.address;
        let listener = TcpListener::bind(address).await.unwrap();
        self.replicas[number] = self.serving(format!("federator-{number}-new"), listener).await;
    }

    pub(crate) fn replica(&self, number: usize) -> &Serving {
        &self.replicas[number]
    }

    /// All replicas end; another one starts on the same file.
    pub(crate) async fn restart(self) -> Self {
        let file = self.file;
        self.pause(file, async |_| Ok(())).await
    }

    /// All replicas end, the store is written to a file, and another replica starts on it.
    pub(crate) async fn export(self, to: &Path) -> Self {
        let same = self.file;
        let write = async |file| Box::pin(backup::export(embedded(file), "federator", to)).await.map(drop);
        Box::pin(self.pause(same, write)).await
    }

    /// All replicas end; another one starts on a store that was empty before the file was read into it.
    pub(crate) async fn import(self, from: &Path) -> Self {
        let imported = "imported.redb";
        let file = self.directory.path().join(imported);
        Box::pin(backup::import(embedded(file), "federator", from)).await.unwrap();
        Box::pin(self.pause(imported, async |_| Ok(()))).await
    }

    /// All replicas end, something is done to the closed file, and another replica starts on the `next` one.
    async fn pause(self, next: &'static str, between: impl AsyncFn(PathBuf) -> Result<(), BackupError>) -> Self {
        let Self { directory, authority, root, speakers, members, store, file, quota, mut replicas } = self;
        for serving in &mut replicas {
            // Sessions outlive the task that let them in, and end for the drain.
            serving.process.trigger_drain();
            serving.task.abort();
            let _ = (&mut serving.task).await;
        }
        drop((replicas, store));
        let (file, reopened) = (directory.path().join(file), directory.path().join(next));
        // The sessions let go of the file in their own time.
        let reopened = async {
            while between(file.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            loop {
                match EmbeddedStore::open(&reopened).await {
                    Ok(store) => return Tight::new(store),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let store = tokio::time::timeout(Duration::from_secs(10), reopened).await.unwrap();
        let replicas = Vec::new();
        let mut plane = Self { directory, authority, root, speakers, members, store, file: next, quota, replicas };
        plane.serve().await;
        plane
    }

    /// What a cluster's control-plane says, going on from what it had written down.
    pub(crate) fn publications(&self, cluster: &str, saved: Vec<Signed>) -> Publications {
        let speaker = &self.speakers[cluster];
        let speaker = Speaker {
            federation: speaker.federation.clone(),
            cluster: speaker.cluster.clone(),
            generation: speaker.generation,
            key: PublishKey::from_pkcs8(&speaker.key.to_pkcs8().unwrap()).unwrap(),
        };
        Publications::new(speaker, None, (*self.member(cluster)).clone(), saved, HOUR)
    }

    /// A membership as everybody knows it.
    pub(crate) fn member(&self, cluster: &str) -> Arc<VerifiedMember> {
        self.members.borrow().member(&cluster.parse().unwrap()).unwrap()
    }

    fn identity(&self, id: &SpiffeId) -> (Identity, TrustStore) {
        let (key, csr) = new_key_and_csr().unwrap();
        let svid = self.authority.issue(&csr, id, HOUR, SystemTime::now()).unwrap();
        let trust = TrustStore::new();
        let (x509_authorities, trust_domain) = (vec![self.authority.root()], trust_domain());
        trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
        (Identity::from_der(svid.chain, key).unwrap(), trust)
    }

    pub(crate) fn speaker(&self, cluster: &str) -> &Speaker {
        &self.speakers[cluster]
    }

    pub(crate) fn sign(&self, cluster: &str, sequence: u64, key: &RecordKey, payload: &Payload) -> Signed {
        self.speakers[cluster].sign(sequence, SystemTime::now(), key, payload).unwrap()
    }

    /// The operator's word on who is shut out: each list replaces the one before.
    pub(crate) fn deny(&self, epoch: u64, change: impl FnOnce(&mut DenyList)) {
        let mut list = DenyList::empty(domain());
        list.epoch = epoch;
        change(&mut list);
        let deny_list = Some(self.root.deny(&list.to_wire()));
        self.tell(&WatchResponse { deny_list, ..WatchResponse::default() });
    }

    pub(crate) fn quarantine(&self, cluster: &str, epoch: u64) {
        self.deny(epoch, |list| {
            list.clusters.insert(cluster.parse().unwrap());
        });
    }

    /// A channel as a cluster's control-plane has, to all replicas, the last one first.
    pub(crate) fn channel(&self, cluster: &str) -> Channel {
        let (identity, trust) = self.identity(&SpiffeId::control_plane(&trust_domain(), cluster).unwrap());
        let expected = ExpectedPeer::AnyOf([SpiffeId::service(&trust_domain(), "federator").unwrap()].into());
        let config = client_config(Some(&identity), &trust, expected, &[rpc::ALPN]);
        let addresses = self.replicas.iter().rev().map(|serving| serving.address);
        let options = ChannelOptions { start: Some(0), ..ChannelOptions::default() };
        rpc::channel(addresses.collect::<Vec<_>>(), config, options)
    }

    fn open(&self, cluster: &str, options: SessionOptions) -> (Session, Events<SessionEvent>) {
        Session::open(self.channel(cluster), options)
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
        let mut client = Client::of(session, events);
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

fn join(root: &MembershipRoot, authority: &Authority, name: &str, after: u64) -> (Speaker, Member) {
    let cluster: ClusterName = name.parse().unwrap();
    // A generation is the time of the token's creation in milliseconds.
    let now = SystemTime::now().max(SystemTime::UNIX_EPOCH + Duration::from_millis(after + 1));
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
    pub(crate) session: Session,
    pub(crate) events: Events<SessionEvent>,
    pub(crate) welcome: Welcome,
    records: Vec<Signed>,
    cursor: SessionCursor,
}

impl Client {
    /// Of a session that has just begun.
    pub(crate) fn of(session: Session, events: Events<SessionEvent>) -> Self {
        let (welcome, cursor) = (Welcome::default(), SessionCursor::default());
        Self { session, events, welcome, records: Vec::new(), cursor }
    }

    /// Publishes one record and waits for what became of it.
    pub(crate) async fn publish(&mut self, signed: Signed) -> Result<(), Reason> {
        let result = self.publish_all(vec![signed]).await.remove(0);
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

    /// Publishes records in one message and waits for what became of them.
    pub(crate) async fn publish_all(&mut self, records: Vec<Signed>) -> Vec<PublishResult> {
        self.session.publish(records);
        until(self, "the results", |event| match event {
            SessionEvent::Published(results) => Some(results),
            _ => None,
        })
        .await
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

    pub(crate) async fn until_connected(&mut self) -> Welcome {
        until(self, "another session", |event| match event {
            SessionEvent::Connected(welcome) => Some(welcome),
            _ => None,
        })
        .await
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

fn embedded(file: PathBuf) -> StoreConfig {
    StoreConfig::Embedded(EmbeddedConfig { file })
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
