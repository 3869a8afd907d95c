//! A federation that `init` made, its service on a loopback port, and the operator at hand.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use federation::FederationDomain;
use federation::delegation::NamespaceSet;
use federation_api::audit::Chain;
use federation_api::client::trust::{self, TrustAcks, TrustCursor, TrustEvent, operations};
use federation_api::client::{Disconnect, Events, Reconnect};
use federation_api::record::v1::Signed;
use federation_api::signing::MembershipRoot;
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::trust::v1::{AuditEntry, JoinResponse, WatchResponse};
use federation_api::verify::DenyList;
use federation_store::{EmbeddedStore, Store, Transaction};
use mesh_runtime::Process;
use mesh_tls::rpc::{self, AcceptLimits, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, new_key_and_csr};
use prost::Message;
use rustls_pki_types::CertificateDer;
use spiffe_identity::{Bundle, Pace, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use trust_bundle::contact::SILENCE;
use trust_bundle::init::{FederationFile, init};
use trust_bundle::program::{Plane as Files, Settings, serve};

use crate::cluster::{Attempt, Cluster};

pub(crate) const DOMAIN: &str = "mesh.example";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Nothing here takes that long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Plane {
    directory: TempDir,
    pub(crate) root: MembershipRoot,
    pub(crate) authority: Authority,
    pub(crate) store: EmbeddedStore,
    pub(crate) process: Process,
    address: SocketAddr,
    service: JoinHandle<anyhow::Result<()>>,
}

pub(crate) fn domain() -> FederationDomain {
    DOMAIN.parse().unwrap()
}

pub(crate) fn trust_domain() -> TrustDomain {
    DOMAIN.parse().unwrap()
}

pub(crate) fn federation_file() -> FederationFile {
    FederationFile {
        federation: domain(),
        trust_bundle_addresses: vec!["127.0.0.1:15012".to_owned()],
        federator_addresses: vec!["localhost:15012".to_owned()],
    }
}

/// Waits for what must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::start_on(|store| store).await
    }

    /// The service works on what `wrap` makes of the store.
    pub(crate) async fn start_on<S: Store>(wrap: impl FnOnce(EmbeddedStore) -> S) -> Self {
        Self::start_with(settings(), wrap).await
    }

    /// [`start_on`](Self::start_on), with a store that may be silent for so long.
    pub(crate) async fn start_impatient<S: Store>(silence: Duration, wrap: impl FnOnce(EmbeddedStore) -> S) -> Self {
        Self::start_with(Settings { silence, ..settings() }, wrap).await
    }

    async fn start_with<S: Store>(settings: Settings, wrap: impl FnOnce(EmbeddedStore) -> S) -> Self {
        let directory = tempfile::tempdir().unwrap();
        init(directory.path(), &federation_file(), "admin", SystemTime::now()).unwrap();
        Self::serve(directory, settings, wrap).await
    }

    async fn serve<S: Store>(directory: TempDir, settings: Settings, wrap: impl FnOnce(EmbeddedStore) -> S) -> Self {
        let folder = |name: &str| directory.path().join(name);
        let root = fs::read_to_string(folder("operator/membership-root.key")).unwrap();
        let root = MembershipRoot::from_pem(&root).unwrap();
        let authority = Authority::open(&folder("service/authority"), &trust_domain()).unwrap();
        let files = Files::read(&folder("service")).unwrap();
        let store = open_store(&folder("trust.redb")).await;
        let process = Process::for_tests();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let first_state = process.readiness().require("the store's state");
        let service = tokio::spawn(serve(files, settings, wrap(store.clone()), listener, process.clone(), first_state));
        Self { directory, root, authority, store, process, address, service }
    }

    /// The service drains; says what became of it.
    pub(crate) async fn drain(self) -> (anyhow::Result<()>, Stopped) {
        self.process.trigger_drain();
        let ended = within("the drain", self.service).await.unwrap();
        self.store.close().await;
        (ended, Stopped(self.directory))
    }

    pub(crate) async fn restart(self) -> Self {
        let (ended, stopped) = self.drain().await;
        ended.unwrap();
        Self::serve(stopped.0, settings(), |store| store).await
    }

    /// The operator makes a token.
    pub(crate) fn token(&self, cluster: &str, created: SystemTime) -> JoinToken {
        JoinToken::create(&self.root, token_request(cluster, created)).unwrap()
    }

    /// A cluster joins with a new token.
    pub(crate) async fn join(&self, name: &str) -> Cluster {
        self.join_with(&self.token(name, SystemTime::now())).await
    }

    pub(crate) async fn join_with(&self, token: &JoinToken) -> Cluster {
        let attempt = Attempt::new(token);
        let response = self.send(&attempt).await.unwrap();
        Cluster::joined(attempt, response)
    }

    pub(crate) async fn send(&self, attempt: &Attempt) -> Result<JoinResponse, Status> {
        let (member, csr, bundle) = (attempt.member.clone(), attempt.csr.clone(), attempt.bundle.clone());
        trust::join(self.channel(None), member, csr, bundle).await
    }

    /// A new connection to the service.
    pub(crate) fn channel(&self, identity: Option<&Identity>) -> Channel {
        channel(self.address, &self.authority, identity)
    }

    /// An identity that the federation's authority signed.
    pub(crate) fn identity(&self, id: &SpiffeId) -> Identity {
        identity(&self.authority, id)
    }

    /// One that was issued for a membership.
    pub(crate) fn identity_of(&self, id: &SpiffeId, generation: u64) -> Identity {
        let (key, csr) = new_key_and_csr().unwrap();
        let mark = format!("generation {generation}");
        let svid = self.authority.issue_marked(&csr, id, &mark, HOUR, SystemTime::now()).unwrap();
        Identity::from_der(svid.chain, key).unwrap()
    }

    pub(crate) fn operator(&self) -> Identity {
        self.identity(&SpiffeId::operator(&trust_domain(), "admin").unwrap())
    }

    /// As an operator calls.
    pub(crate) fn operations(&self) -> Channel {
        self.channel(Some(&self.operator()))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection of somebody who believes the roots that the authority's folder holds now.
    pub(crate) fn present_channel(&self, address: SocketAddr, identity: &Identity) -> Channel {
        channel_under(&[address], self.present_roots(), Some(identity))
    }

    /// The whole audit record, whose chain must hold.
    pub(crate) async fn audit(&self) -> Vec<AuditEntry> {
        let (mut chain, mut entries) = (Chain::default(), Vec::new());
        let read = operations::read_audit(self.operations(), 0, |entry| {
            chain.follow(&entry).unwrap();
            entries.push(entry);
        });
        read.await.unwrap();
        entries
    }

    /// The roots in the authority's folder, the one that signs first. Only looks: a driver may be changing them.
    pub(crate) fn present_roots(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = Vec::new();
        for name in ["ca.crt", "ca.next.pem", "ca.old.crt"] {
            let text = fs::read_to_string(self.directory.path().join("service/authority").join(name));
            let text = text.unwrap_or_default();
            let end = "-----END CERTIFICATE-----\n";
            let certificates = text.rfind(end).map_or("", |at| &text[..at + end.len()]);
            for root in mesh_tls::pem::certificates_from_pem(certificates.as_bytes()).unwrap_or_default() {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
        }
        roots
    }

    /// The service dies without a word, and another one comes up in its place.
    pub(crate) async fn kill(mut self) -> Self {
        self.service.abort();
        let _ = (&mut self.service).await;
        let mut replica = self.replica().await;
        Self { address: replica.address, service: replica.service.take().unwrap(), ..self }
    }

    /// Another replica of the service, on the same store and the same files.
    pub(crate) async fn replica(&self) -> Replica {
        let files = Files::read(&self.directory.path().join("service")).unwrap();
        let process = Process::for_tests();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let first_state = process.readiness().require("the store's state");
        let service = tokio::spawn(serve(files, settings(), self.store.clone(), listener, process, first_state));
        Replica { address, service: Some(service) }
    }

    pub(crate) fn federator(&self) -> Identity {
        self.identity(&SpiffeId::service(&trust_domain(), "federator").unwrap())
    }

    pub(crate) fn watch(&self, identity: &Identity, cursor: TrustCursor) -> Watcher {
        watch(self.channel(Some(identity)), cursor)
    }

    /// The operator signs a deny-list.
    pub(crate) fn deny_list(&self, epoch: u64, shut_out: &[Shut<'_>]) -> Signed {
        let mut list = DenyList::empty(domain());
        list.epoch = epoch;
        for shut in shut_out {
            let _new = match *shut {
                Shut::Cluster(cluster) => list.clusters.insert(cluster.parse().unwrap()),
                Shut::Identity(id) => list.spiffe_ids.insert(id.to_owned()),
                Shut::Generation(cluster, through) => {
                    list.evictions.insert(cluster.parse().unwrap(), through).is_none()
                }
            };
        }
        self.root.deny(&list.to_wire())
    }

    pub(crate) async fn store_deny_list(&self, epoch: u64, shut_out: &[Shut<'_>]) {
        self.put("quarantine", self.deny_list(epoch, shut_out).encode_to_vec()).await;
    }

    pub(crate) async fn put(&self, key: &str, value: impl Into<Vec<u8>>) {
        let put = Transaction::new().put(key, value.into());
        assert!(self.store.commit(put).await.unwrap().done().is_some());
    }

    /// Everything that is stored about members.
    pub(crate) async fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = self.store.snapshot("").await.unwrap().entries;
        let of_members = |key: &str| !["audit", "watchers/", "authority/"].iter().any(|other| key.starts_with(other));
        entries
            .into_iter()
            .filter(|entry| of_members(&entry.key))
            .map(|entry| (entry.key, entry.value.to_vec()))
            .collect()
    }
}

/// Another replica; it dies when dropped, without a word.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    service: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.service.iter().for_each(JoinHandle::abort);
    }
}

/// Whom the operator shuts out.
pub(crate) enum Shut<'a> {
    Cluster(&'a str),
    Identity(&'a str),
    /// Of a cluster, this one and those before it.
    Generation(&'a str, u64),
}

/// What is left of a service that ended.
pub(crate) struct Stopped(TempDir);

/// A hundred clients come from one address here.
fn settings() -> Settings {
    let limits = AcceptLimits { handshakes_per_source: 256, ..AcceptLimits::default() };
    let none = Duration::ZERO;
    let pace =
        Pace { refresh_hint: none, longest_svid: Duration::from_millis(1_500), skew: none, absence: HOUR, stall: HOUR };
    Settings { certificate_lifetime: 24 * HOUR, limits, pace, silence: SILENCE }
}

async fn open_store(path: &Path) -> EmbeddedStore {
    let reopened = async {
        loop {
            match EmbeddedStore::open(path).await {
                Ok(store) => return store,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    within("opening the store", reopened).await
}

pub(crate) fn token_request(cluster: &str, created: SystemTime) -> TokenRequest {
    let file = federation_file();
    TokenRequest {
        federation: file.federation,
        cluster: cluster.parse().unwrap(),
        namespaces: NamespaceSet::All,
        address_ranges: Vec::new(),
        host_names: Vec::new(),
        federation_roots: vec![b"not looked at here".to_vec()],
        trust_bundle_addresses: file.trust_bundle_addresses,
        federator_addresses: file.federator_addresses,
        created,
        lifetime: HOUR,
    }
}

pub(crate) fn identity(authority: &Authority, id: &SpiffeId) -> Identity {
    let (key, csr) = new_key_and_csr().unwrap();
    let svid = authority.issue(&csr, id, HOUR, SystemTime::now()).unwrap();
    Identity::from_der(svid.chain, key).unwrap()
}

pub(crate) fn channel(address: SocketAddr, federation: &Authority, identity: Option<&Identity>) -> Channel {
    channel_to(&[address], federation, identity)
}

/// To the first of these addresses, and to the next one whenever the connection is lost.
pub(crate) fn channel_to(addresses: &[SocketAddr], federation: &Authority, identity: Option<&Identity>) -> Channel {
    channel_under(addresses, federation.roots(), identity)
}

fn channel_under(
    addresses: &[SocketAddr],
    x509_authorities: Vec<CertificateDer<'static>>,
    identity: Option<&Identity>,
) -> Channel {
    let trust = TrustStore::new();
    let trust_domain = trust_domain();
    let service = SpiffeId::service(&trust_domain, "trust-bundle").unwrap();
    trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
    let config = client_config(identity, &trust, ExpectedPeer::exactly(service), &[rpc::ALPN]);
    rpc::channel(addresses, config, ChannelOptions { start: Some(0), ..ChannelOptions::default() })
}

pub(crate) fn watch(channel: Channel, cursor: TrustCursor) -> Watcher {
    let (acks, events) = trust::watch(channel, cursor, Reconnect::default());
    Watcher { acks, events }
}

/// A watcher, as every control-plane and federator is one.
pub(crate) struct Watcher {
    pub(crate) acks: TrustAcks,
    events: Events<TrustEvent>,
}

impl Watcher {
    pub(crate) async fn update(&mut self) -> WatchResponse {
        loop {
            match within("an update", self.events.recv()).await.unwrap() {
                TrustEvent::Update(update) => return update,
                TrustEvent::Connected => {}
                TrustEvent::Disconnected { reason, .. } => panic!("{reason}"),
            }
        }
    }

    /// The first update after the watch was lost, however often it takes.
    pub(crate) async fn update_again(&mut self) -> WatchResponse {
        let updated = async {
            loop {
                if let TrustEvent::Update(update) = self.events.recv().await.unwrap() {
                    return update;
                }
            }
        };
        within("an update", updated).await
    }

    /// Why the watch ended. Updates before that are passed over.
    pub(crate) async fn end(&mut self) -> Disconnect {
        loop {
            if let TrustEvent::Disconnected { reason, .. } = within("the end", self.events.recv()).await.unwrap() {
                return reason;
            }
        }
    }
}

pub(crate) fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, words: &str) {
    let status = outcome.unwrap_err();
    assert!(status.code() == code && status.message().contains(words), "{status:?} is not {code:?} … {words}");
}

pub(crate) fn assert_ended(end: &Disconnect, code: Code, words: &str) {
    match end {
        Disconnect::Failed(status) if status.code() == code && status.message().contains(words) => {}
        other => panic!("{other:?} is not {code:?} … {words}"),
    }
}
