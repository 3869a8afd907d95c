//! A control-plane that says what a test tells it to.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use federation_api::discovery::v1::discovery_server::{Discovery, DiscoveryServer};
use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::discovery::v1::watch_request::Request as Asked;
use federation_api::discovery::v1::{
    Absent, IssueSvidRequest, IssueSvidResponse, Resource, Subscribe, WatchRequest, WatchResponse,
};
use mesh_tls::rpc::{self, AcceptLimits};
use mesh_tls::{ClientAuth, Identity, TrustStore};
use prost::Message;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What it knows and did.
pub(crate) struct State {
    authority: Authority,
    trust_domain: TrustDomain,
    lifetime: Duration,
    /// By name; the workload of each proxy is `workload@<proxy>`.
    pub(crate) resources: Mutex<BTreeMap<String, Resource>>,
    pub(crate) revision: watch::Sender<u64>,
    /// Streams of an older generation end.
    generation: watch::Sender<u64>,
    pub(crate) issued_by_token: AtomicUsize,
    pub(crate) issued_by_svid: AtomicUsize,
}

/// A running control-plane.
pub(crate) struct ControlPlane {
    pub(crate) state: Arc<State>,
    pub(crate) address: SocketAddr,
    serving: Vec<JoinHandle<()>>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

impl State {
    pub(crate) fn new(authority: Authority, lifetime: Duration) -> Arc<Self> {
        Arc::new(Self {
            trust_domain: authority.trust_domain().clone(),
            authority,
            lifetime,
            resources: Mutex::default(),
            revision: watch::Sender::new(0),
            generation: watch::Sender::new(0),
            issued_by_token: AtomicUsize::new(0),
            issued_by_svid: AtomicUsize::new(0),
        })
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// A trust store with this cluster's own root.
    pub(crate) fn own_trust(&self) -> TrustStore {
        let trust = TrustStore::new();
        trust.insert(Bundle {
            trust_domain: self.trust_domain.clone(),
            x509_authorities: vec![self.authority.root()],
            sequence: 1,
            refresh_hint: None,
        });
        trust
    }

    /// An identity of this cluster.
    pub(crate) fn identity(&self, namespace: &str, account: &str) -> Identity {
        let (key, csr) = mesh_tls::new_key_and_csr().unwrap();
        let id = SpiffeId::workload(&self.trust_domain, namespace, account).unwrap();
        let svid = self.authority.issue(&csr, &id, Duration::from_secs(3600), SystemTime::now()).unwrap();
        Identity::from_der(svid.chain, key).unwrap()
    }

    pub(crate) fn set(&self, name: &str, kind: Kind) {
        let mut hasher = DefaultHasher::new();
        let mut resource = Resource { name: name.to_owned(), version: Vec::new(), resource: Some(kind) };
        resource.encode_to_vec().hash(&mut hasher);
        resource.version = hasher.finish().to_be_bytes().to_vec();
        if let Some((public, _)) = name.split_once('@') {
            resource.name = public.to_owned();
        }
        self.resources.lock().unwrap().insert(name.to_owned(), resource);
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// What a proxy should have.
    fn wanted(
        &self,
        proxy: &str,
        hosts: &BTreeSet<String>,
        addresses: &BTreeSet<String>,
    ) -> BTreeMap<String, Resource> {
        let resources = self.resources.lock().unwrap();
        let mut wanted = BTreeMap::new();
        for (name, resource) in &*resources {
            let own = name == "mesh"
                || name == "local-services"
                || name.starts_with("trust/")
                || *name == format!("workload@{proxy}");
            let by_address = matches!(&resource.resource, Some(Kind::Service(service))
                if service.vips.iter().any(|vip| addresses.contains(vip)));
            if own || by_address {
                wanted.insert(resource.name.clone(), resource.clone());
            }
        }
        for host in hosts {
            let name = format!("service/{host}");
            let absent =
                Resource { name: name.clone(), version: b"-".to_vec(), resource: Some(Kind::Absent(Absent {})) };
            wanted.insert(name.clone(), resources.get(&name).cloned().unwrap_or(absent));
        }
        wanted
    }

    async fn serve(
        self: Arc<Self>,
        mut requests: Streaming<WatchRequest>,
        responses: mpsc::Sender<Result<WatchResponse, Status>>,
    ) {
        let Ok(Some(WatchRequest { request: Some(Asked::Start(start)) })) = requests.message().await else { return };
        let (mut hosts, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let take = |hosts: &mut BTreeSet<String>, addresses: &mut BTreeSet<String>, subscribe: Subscribe| {
            hosts.extend(subscribe.add_hosts);
            subscribe.remove_hosts.iter().for_each(|host| {
                hosts.remove(host);
            });
            addresses.extend(subscribe.add_addresses);
        };
        take(&mut hosts, &mut addresses, start.subscribe.unwrap_or_default());
        let mut sent: BTreeMap<String, Vec<u8>> =
            start.known.into_iter().map(|known| (known.name, known.version)).collect();
        let mut changes = self.revision.subscribe();
        let mut generation = self.generation.subscribe();
        let mut first = true;
        let mut revision = 0;
        loop {
            changes.borrow_and_update();
            let wanted = self.wanted(&start.proxy, &hosts, &addresses);
            let resources: Vec<Resource> =
                wanted.values().filter(|it| sent.get(&it.name) != Some(&it.version)).cloned().collect();
            let removed: Vec<String> = sent.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
            sent = wanted.into_iter().map(|(name, resource)| (name, resource.version)).collect();
            if first || !resources.is_empty() || !removed.is_empty() {
                revision += 1;
                let response =
                    WatchResponse { version: 1, revision, resources, removed, initial_state_complete: first };
                if responses.send(Ok(response)).await.is_err() {
                    return;
                }
                first = false;
            }
            tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(WatchRequest { request: Some(Asked::Subscribe(subscribe)) })) => {
                        take(&mut hosts, &mut addresses, subscribe);
                    }
                    Ok(Some(_)) => {}
                    _ => return,
                },
                _ = changes.changed() => {}
                _ = generation.changed() => return,
            }
        }
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

#[tonic::async_trait]
impl Discovery for Service {
    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<IssueSvidResponse>, Status> {
        let caller = rpc::peer(&request).ok();
        let asked = request.into_inner();
        let id = match asked.service_account_token.strip_prefix("token:").and_then(|text| text.split_once('/')) {
            Some((namespace, account)) => {
                self.0.issued_by_token.fetch_add(1, Ordering::SeqCst);
                SpiffeId::workload(&self.0.trust_domain, namespace, account).unwrap()
            }
            None => {
                let caller = caller.ok_or_else(|| Status::unauthenticated("neither a token nor an SVID"))?;
                self.0.issued_by_svid.fetch_add(1, Ordering::SeqCst);
                caller
            }
        };
        let svid = self
            .0
            .authority
            .issue(&asked.csr, &id, self.0.lifetime, SystemTime::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(IssueSvidResponse {
            certificate_chain: svid.chain.iter().map(|der| der.to_vec()).collect(),
            not_after_ms: 0,
        }))
    }

    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        rpc::peer(&request)?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(Arc::clone(&self.0).serve(request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl ControlPlane {
    pub(crate) async fn start(state: Arc<State>) -> Self {
        Self::start_as(state, "isthmus-system", "control-plane").await
    }

    /// Ends it: its port refuses, its streams break.
    pub(crate) async fn stop(&mut self) {
        for serving in self.serving.drain(..) {
            serving.abort();
            // An aborted task ends with an error.
            let _ = serving.await;
        }
        self.state.generation.send_modify(|generation| *generation += 1);
    }

    /// Starts it again at the same address.
    pub(crate) async fn restart(&mut self) {
        let address = self.address;
        let again = Self::start_at(Arc::clone(&self.state), address, "isthmus-system", "control-plane").await;
        *self = again;
    }

    /// With another identity than a control-plane's, for attacks.
    pub(crate) async fn start_as(state: Arc<State>, namespace: &str, account: &str) -> Self {
        Self::start_at(state, SocketAddr::from(([127, 0, 0, 1], 0)), namespace, account).await
    }

    async fn start_at(state: Arc<State>, address: SocketAddr, namespace: &str, account: &str) -> Self {
        let identity = state.identity(namespace, account);
        let trust = state.own_trust();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = mesh_tls::server_config(&identity, &trust, ClientAuth::Optional, &[rpc::ALPN]);
        let incoming = rpc::incoming(listener, config, AcceptLimits::default());
        let server = rpc::server().add_service(DiscoveryServer::new(Service(Arc::clone(&state))));
        let serving = tokio::spawn(async move {
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self { state, address, serving: vec![serving] }
    }
}
