//! A small federation in this process: trust-bundle and federator behind real TLS, with just enough of each to talk to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use federation_api::federation::v1::federation_server::{Federation, FederationServer};
use federation_api::federation::v1::session_request::Request as Asked;
use federation_api::federation::v1::session_response::Response as Said;
use federation_api::federation::v1::{
    Changes, ClusterLiveness, Limits, Liveness, PublishResult, Published, ServerHeartbeat, SessionRequest,
    SessionResponse, SnapshotComplete, Welcome,
};
use federation_api::record::v1::{Member, Signed, Statement};
use federation_api::signing::MembershipRoot;
use federation_api::token::JoinToken;
use federation_api::trust::v1::trust_server::{Trust, TrustServer};
use federation_api::trust::v1::{
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, ListWatchersRequest, ListWatchersResponse,
    PublishBundleRequest, PublishBundleResponse, RenewCertificateRequest, RenewCertificateResponse, WatchRequest,
    WatchResponse, Watcher,
};
use federation_api::verify::{DenyList, verify_member};
use futures_util::Stream;
use mesh_tls::rpc::{self, AcceptLimits};
use mesh_tls::{ClientAuth, Identity, TrustStore, new_key_and_csr, server_config};
use prost::Message as _;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::member::{FEDERATION, Peer, federation, token};

#[derive(Clone, Default)]
struct State {
    epoch: u64,
    members: BTreeMap<String, Member>,
    bundles: BTreeMap<String, Signed>,
    deny_list: Option<Signed>,
    /// Records by cluster and key.
    records: BTreeMap<(String, String), Signed>,
    liveness: Vec<ClusterLiveness>,
    acked: (u64, Vec<String>),
    /// New streams are refused: on connections that are not quite gone yet too.
    stopped: bool,
    watchers: Vec<Watcher>,
    departures: Vec<Signed>,
    sessions: usize,
}

/// The federation. Dropping it kills both servers; its state can be served again at the same addresses.
pub(crate) struct Fake {
    pub(crate) root: Arc<MembershipRoot>,
    state: watch::Sender<State>,
    authority: Arc<Authority>,
    addresses: [SocketAddr; 2],
    servers: Mutex<Vec<JoinHandle<()>>>,
    _directory: tempfile::TempDir,
}

#[derive(Clone)]
struct Service {
    root: Arc<MembershipRoot>,
    state: watch::Sender<State>,
    authority: Arc<Authority>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plane: TrustDomain = FEDERATION.parse().unwrap();
        let authority = Authority::open_or_create(directory.path(), &plane, SystemTime::now()).unwrap();
        let mut fake = Self {
            root: Arc::new(MembershipRoot::generate().unwrap()),
            state: watch::Sender::new(State::default()),
            authority: Arc::new(authority),
            addresses: [([127, 0, 0, 1], 0).into(); 2],
            servers: Mutex::default(),
            _directory: directory,
        };
        fake.addresses = fake.serve().await;
        fake
    }

    /// Serves, where it did before or anywhere.
    pub(crate) async fn serve(&self) -> [SocketAddr; 2] {
        let service =
            Service { root: Arc::clone(&self.root), state: self.state.clone(), authority: Arc::clone(&self.authority) };
        let mut bound = self.addresses;
        self.state.send_modify(|state| state.stopped = false);
        for (index, name) in ["trust-bundle", "federator"].into_iter().enumerate() {
            let listener = TcpListener::bind(self.addresses[index]).await.unwrap();
            bound[index] = listener.local_addr().unwrap();
            let incoming = rpc::incoming(listener, self.tls(name), AcceptLimits::default());
            let service = service.clone();
            let server = tokio::spawn(async move {
                let router = match name {
                    "federator" => rpc::server().add_service(FederationServer::new(service)),
                    _ => rpc::server().add_service(TrustServer::new(service)),
                };
                router.serve_with_incoming(incoming).await.unwrap();
            });
            self.servers.lock().unwrap().push(server);
        }
        bound
    }

    pub(crate) fn stop(&self) {
        for server in self.servers.lock().unwrap().drain(..) {
            server.abort();
        }
        // Streams that were open end with their tasks.
        self.state.send_modify(|state| {
            state.sessions += 1;
            state.stopped = true;
        });
    }

    fn tls(&self, name: &str) -> Arc<rustls::ServerConfig> {
        let id = SpiffeId::service(self.authority.trust_domain(), name).unwrap();
        let (key, csr) = new_key_and_csr().unwrap();
        let svid = self.authority.issue(&csr, &id, Duration::from_secs(3600), SystemTime::now()).unwrap();
        let trust = TrustStore::new();
        trust.insert(Bundle {
            trust_domain: self.authority.trust_domain().clone(),
            x509_authorities: vec![self.authority.root()],
            sequence: 1,
            refresh_hint: None,
        });
        server_config(&Identity::from_der(svid.chain, key).unwrap(), &trust, ClientAuth::Optional, &[rpc::ALPN])
    }

    pub(crate) fn token(&self, cluster: &str) -> JoinToken {
        let addresses = self.addresses.map(|address| address.to_string());
        token(&self.root, cluster, vec![self.authority.root().to_vec()], addresses)
    }

    /// Makes a peer a member with its bundle.
    pub(crate) fn add(&self, name: &str, peer: &mut Peer) {
        let bundle = peer.bundle();
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.members.insert(name.to_owned(), peer.member.clone());
            state.bundles.insert(name.to_owned(), bundle);
        });
    }

    pub(crate) fn publish(&self, records: Vec<Signed>) {
        self.state.send_modify(|state| {
            for record in records {
                state.put(record);
            }
        });
    }

    pub(crate) fn deny(&self, list: &DenyList) {
        let signed = self.root.deny(&list.to_wire());
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.deny_list = Some(signed);
        });
    }

    pub(crate) fn set_liveness(&self, cluster: &str, connected: bool) {
        let liveness = ClusterLiveness { cluster: cluster.to_owned(), connected, since_ms: 1, applied_revision: 1 };
        self.state.send_modify(|state| state.liveness = vec![liveness]);
    }

    /// What a member has published, by key.
    pub(crate) fn published(&self, cluster: &str) -> BTreeMap<String, Statement> {
        let state = self.state.borrow();
        let own = state.records.iter().filter(|((of, _), _)| of == cluster);
        own.map(|((_, key), signed)| (key.clone(), Statement::decode(signed.message.as_ref()).unwrap())).collect()
    }

    /// The envelopes that a member has published.
    pub(crate) fn records(&self, cluster: &str) -> Vec<Signed> {
        let state = self.state.borrow();
        state.records.iter().filter(|((of, _), _)| of == cluster).map(|(_, signed)| signed.clone()).collect()
    }

    pub(crate) fn bundle_of(&self, cluster: &str) -> Option<Signed> {
        self.state.borrow().bundles.get(cluster).cloned()
    }

    pub(crate) fn forget_bundle(&self, cluster: &str) {
        self.state.send_modify(|state| {
            state.bundles.remove(cluster);
            state.epoch += 1;
        });
    }

    /// A member ends its own membership.
    pub(crate) fn depart(&self, cluster: &str, statement: Signed) {
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.members.remove(cluster);
            state.bundles.remove(cluster);
            state.departures.push(statement);
        });
    }

    /// Who watches, besides those that really do.
    pub(crate) fn set_watcher(&self, identity: &str, acknowledged: u64, pending: &[&str]) {
        let watcher = Watcher {
            identity: identity.to_owned(),
            acknowledged,
            pending_count: u32::try_from(pending.len()).unwrap(),
            pending_proxies: pending.iter().map(ToString::to_string).collect(),
            connected: true,
            ..Watcher::default()
        };
        self.state.send_modify(|state| state.watchers = vec![watcher]);
    }

    pub(crate) fn departures(&self) -> usize {
        self.state.borrow().departures.len()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.borrow().epoch
    }

    /// The epoch a member acknowledged last, and which of its proxies had not applied it.
    pub(crate) fn acked(&self) -> (u64, Vec<String>) {
        self.state.borrow().acked.clone()
    }

    pub(crate) fn member(&self, cluster: &str) -> Option<Member> {
        self.state.borrow().members.get(cluster).cloned()
    }
}

impl State {
    fn put(&mut self, record: Signed) -> PublishResult {
        let statement = Statement::decode(record.message.as_ref()).unwrap();
        let result =
            PublishResult { key: statement.key.clone(), sequence: statement.sequence, revision: 1, refusal: None };
        self.records.insert((statement.cluster, statement.key), record);
        result
    }

    fn trust(&self) -> WatchResponse {
        WatchResponse {
            version: 1,
            incarnation: "one".to_owned(),
            epoch: self.epoch,
            full: true,
            members: self.members.values().cloned().collect(),
            bundles: self.bundles.values().cloned().collect(),
            deny_list: self.deny_list.clone(),
            departures: self.departures.clone(),
            ..WatchResponse::default()
        }
    }
}

fn check_serving(state: &watch::Sender<State>) -> Result<(), Status> {
    if state.borrow().stopped { Err(Status::unavailable("stopped")) } else { Ok(()) }
}

fn caller<T>(request: &Request<T>) -> Result<String, Status> {
    let id = rpc::peer(request)?;
    let mut segments = id.segments();
    match (segments.next(), segments.next(), segments.next()) {
        (Some("cluster"), Some(cluster), Some("control-plane")) => Ok(cluster.to_owned()),
        _ => Err(Status::permission_denied(format!("{id} is no control-plane"))),
    }
}

impl Service {
    fn certificate(&self, csr: &[u8], cluster: &str) -> Result<Vec<Vec<u8>>, Status> {
        let id = SpiffeId::control_plane(self.authority.trust_domain(), cluster).unwrap();
        let svid = self.authority.issue(csr, &id, Duration::from_secs(3600), SystemTime::now());
        let svid = svid.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(svid.chain.iter().map(|der| der.to_vec()).collect())
    }
}

#[tonic::async_trait]
impl Trust for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let JoinRequest { member, csr, bundle } = request.into_inner();
        let member = member.unwrap();
        let verified = verify_member(&self.root.public(), &federation(), &member, Some(SystemTime::now()));
        let verified = verified.map_err(|error| Status::unauthenticated(error.to_string()))?;
        let cluster = verified.cluster().to_string();
        let known = self.state.borrow().members.get(&cluster).cloned();
        if known.is_some_and(|known| known.delegation == member.delegation) {
            return Err(Status::failed_precondition("the token was used already"));
        }
        let certificate_chain = self.certificate(&csr, &cluster)?;
        verified.verify(bundle.as_ref().unwrap()).unwrap();
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.members.insert(cluster.clone(), member);
            state.bundles.insert(cluster, bundle.unwrap());
        });
        let federation_roots = vec![self.authority.root().to_vec()];
        Ok(Response::new(JoinResponse { certificate_chain, federation_roots }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let cluster = caller(&request)?;
        let certificate_chain = self.certificate(&request.get_ref().csr, &cluster)?;
        Ok(Response::new(RenewCertificateResponse { certificate_chain, federation_roots: Vec::new() }))
    }

    async fn publish_bundle(
        &self,
        request: Request<PublishBundleRequest>,
    ) -> Result<Response<PublishBundleResponse>, Status> {
        let cluster = caller(&request)?;
        check_serving(&self.state)?;
        let PublishBundleRequest { bundle, member } = request.into_inner();
        self.state.send_modify(|state| {
            state.epoch += 1;
            if let Some(member) = member {
                verify_member(&self.root.public(), &federation(), &member, None).unwrap();
                state.members.insert(cluster.clone(), member);
            }
            if let Some(bundle) = bundle {
                state.bundles.insert(cluster, bundle);
            }
        });
        Ok(Response::new(PublishBundleResponse { epoch: self.state.borrow().epoch }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let cluster = caller(&request)?;
        let statement = request.into_inner().statement.unwrap();
        let member = self.state.borrow().members[&cluster].clone();
        let member = verify_member(&self.root.public(), &federation(), &member, None).unwrap();
        member.verify_departure(&statement).map_err(|error| Status::unauthenticated(error.to_string()))?;
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.members.remove(&cluster);
            state.bundles.remove(&cluster);
            state.departures.push(statement);
        });
        Ok(Response::new(LeaveResponse {}))
    }

    async fn list_watchers(&self, _: Request<ListWatchersRequest>) -> Result<Response<ListWatchersResponse>, Status> {
        let state = self.state.borrow();
        Ok(Response::new(ListWatchersResponse { epoch: state.epoch, watchers: state.watchers.clone() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        use federation_api::trust::v1::watch_request::Request as Kind;
        caller(&request)?;
        check_serving(&self.state)?;
        let mut requests = request.into_inner();
        let (responses, receiver) = mpsc::channel(4);
        let state = self.state.clone();
        tokio::spawn(async move {
            let mut changes = state.subscribe();
            let sessions = changes.borrow().sessions;
            let mut sent = None;
            loop {
                let now = changes.borrow_and_update().clone();
                if now.sessions != sessions {
                    return;
                }
                if sent != Some(now.epoch) {
                    sent = Some(now.epoch);
                    if responses.send(Ok(now.trust())).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    _ = changes.changed() => {}
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        if let Some(Kind::Ack(ack)) = request.request {
                            state.send_if_modified(|state| {
                                state.acked = (ack.epoch, ack.pending_proxies);
                                false
                            });
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl Federation for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let cluster = caller(&request)?;
        check_serving(&self.state)?;
        let (responses, receiver) = mpsc::channel(16);
        let state = self.state.clone();
        tokio::spawn(async move { drive(cluster, state, request.into_inner(), responses).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn drive(
    cluster: String,
    state: watch::Sender<State>,
    mut requests: Streaming<SessionRequest>,
    responses: mpsc::Sender<Result<SessionResponse, Status>>,
) -> Option<()> {
    let say = async |said| responses.send(Ok(SessionResponse { response: Some(said) })).await.ok();
    let Asked::Hello(hello) = requests.message().await.ok()??.request? else { return None };
    say(Said::Welcome(Welcome {
        version: 1,
        incarnation: "one".to_owned(),
        session_epoch: 1,
        heartbeat_interval_ms: 500,
        limits: Some(Limits { publish_records: 8, record_bytes: 1 << 20, exports: 1000 }),
        resumed: false,
        replica: "fake".to_owned(),
    }))
    .await?;
    let mut changes = state.subscribe();
    let sessions = changes.borrow().sessions;
    let mut namespaces = hello.namespaces;
    let mut sent: Vec<Signed> = Vec::new();
    let mut complete = false;
    let mut revision = 0;
    loop {
        let now = changes.borrow_and_update().clone();
        if now.sessions != sessions {
            return None;
        }
        let others = now.records.iter().filter(|((of, _), _)| *of != cluster).map(|(_, signed)| signed.clone());
        let news: Vec<_> = others.filter(|signed| !sent.contains(signed)).collect();
        if !news.is_empty() {
            revision += 1;
            sent.extend(news.iter().cloned());
            say(Said::Changes(Changes { revision, records: news })).await?;
        }
        if !complete {
            complete = true;
            say(Said::SnapshotComplete(SnapshotComplete { revision, namespaces: namespaces.clone() })).await?;
        }
        if !now.liveness.is_empty() {
            say(Said::Liveness(Liveness { clusters: now.liveness.clone() })).await?;
        }
        tokio::select! {
            _ = changes.changed() => {}
            request = requests.message() => match request.ok()??.request? {
                Asked::Hello(_) => return None,
                Asked::Interest(interest) => {
                    namespaces = interest.namespaces;
                    complete = false;
                }
                Asked::Heartbeat(_) => {
                    say(Said::Heartbeat(ServerHeartbeat { revision, time_ms: 0 })).await?;
                }
                Asked::Publish(publish) => {
                    let mut results = Vec::new();
                    state.send_modify(|state| results = publish.records.into_iter().map(|it| state.put(it)).collect());
                    say(Said::Published(Published { results })).await?;
                }
            },
        }
    }
}
