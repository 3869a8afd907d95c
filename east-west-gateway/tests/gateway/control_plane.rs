//! A control-plane reduced to discovery.v1, with a real authority and real mutual TLS.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use federation_api::discovery::v1::{
    Advertise, IssueSvidRequest, IssueSvidResponse, Mesh, Resource, Route, WatchAck, WatchRequest, WatchResponse,
    discovery_server::{Discovery, DiscoveryServer},
    resource::Resource as Kind,
    watch_request::Request as WatchKind,
};
use mesh_tls::{ClientAuth, Identity, TrustStore, new_key_and_csr, pem, rpc, server_config};
use spiffe_identity::{Bundle, SpiffeId};
use svid_issuer::Authority;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::lab::trust_domain;

/// The token that is believed.
pub(crate) const TOKEN: &str = "gateway-token";

/// What a control-plane has heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// SVIDs issued for the token, and for a valid SVID.
    pub(crate) by_token: usize,
    pub(crate) by_svid: usize,
    /// The resources that the last watch said it knew.
    pub(crate) known: Vec<String>,
    pub(crate) watchers: Vec<SpiffeId>,
    pub(crate) advertised: Vec<Advertise>,
    pub(crate) acks: Vec<WatchAck>,
}

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    lifetime: Duration,
    resources: watch::Receiver<BTreeMap<String, Resource>>,
    heard: Arc<Mutex<Heard>>,
}

/// Serves until dropped.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    pub(crate) heard: Arc<Mutex<Heard>>,
    resources: watch::Sender<BTreeMap<String, Resource>>,
    task: JoinHandle<()>,
}

impl ControlPlane {
    /// Starts one whose root and own identity are made in `directory`; gateways find the root in `root.crt` there.
    pub(crate) async fn start(directory: &Path, lifetime: Duration) -> Self {
        Self::start_as(directory, lifetime, "control-plane").await
    }

    /// One that shows the identity of another service account.
    pub(crate) async fn start_as(directory: &Path, lifetime: Duration, service_account: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, directory, lifetime, service_account)
    }

    /// One on a listener that is there already.
    pub(crate) fn start_on(listener: TcpListener, directory: &Path) -> Self {
        Self::serve(listener, directory, Duration::from_secs(3600), "control-plane")
    }

    fn serve(listener: TcpListener, directory: &Path, lifetime: Duration, service_account: &str) -> Self {
        let now = SystemTime::now();
        let authority = Arc::new(Authority::open_or_create(&directory.join("ca"), &trust_domain(), now).unwrap());
        std::fs::write(directory.join("root.crt"), pem::certificates_to_pem([&authority.root()])).unwrap();
        let (key, csr) = new_key_and_csr().unwrap();
        let id = SpiffeId::workload(&trust_domain(), "isthmus-system", service_account).unwrap();
        let svid = authority.issue(&csr, &id, Duration::from_secs(3600), now).unwrap();
        let identity = Identity::from_der(svid.chain, key).unwrap();
        let trust = TrustStore::new();
        let x509_authorities = vec![authority.root()];
        trust.insert(Bundle { trust_domain: trust_domain(), x509_authorities, sequence: 1, refresh_hint: None });
        let address = listener.local_addr().unwrap();
        let config = server_config(&identity, &trust, ClientAuth::Optional, &[rpc::ALPN]);
        let incoming = rpc::incoming(listener, config, rpc::AcceptLimits::default());
        let (resources, receiver) = watch::channel(BTreeMap::new());
        let heard = Arc::new(Mutex::new(Heard::default()));
        let service = Service { authority, lifetime, resources: receiver, heard: Arc::clone(&heard) };
        let task = tokio::spawn(async move {
            rpc::server().add_service(DiscoveryServer::new(service)).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, heard, resources, task }
    }

    /// Sets a resource, with a version that follows from its content.
    pub(crate) fn set(&self, name: &str, kind: Kind) {
        let version = format!("{kind:?}").into_bytes();
        let resource = Resource { name: name.to_owned(), version, resource: Some(kind) };
        self.resources.send_modify(|resources| drop(resources.insert(name.to_owned(), resource)));
    }

    pub(crate) fn set_route(&self, route: Route) {
        self.set(&format!("route/{}", route.host), Kind::Route(route));
    }

    pub(crate) fn set_mesh(&self) {
        let mesh = Mesh { cluster: "east".to_owned(), federation: "mesh.example".to_owned(), ..Mesh::default() };
        self.set("mesh", Kind::Mesh(mesh));
    }

    pub(crate) fn remove(&self, name: &str) {
        self.resources.send_modify(|resources| drop(resources.remove(name)));
    }

    /// Waits until what was heard is as wanted.
    pub(crate) async fn hears(&self, what: &str, wanted: impl Fn(&Heard) -> bool) {
        let until = tokio::time::Instant::now() + super::lab::PATIENCE;
        while !wanted(&self.heard.lock().unwrap()) {
            assert!(tokio::time::Instant::now() < until, "not heard: {what}: {:?}", self.heard.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl Discovery for Service {
    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<IssueSvidResponse>, Status> {
        let peer = rpc::peer(&request).ok();
        let request = request.into_inner();
        match peer {
            _ if request.service_account_token == TOKEN => self.heard.lock().unwrap().by_token += 1,
            Some(_) if request.service_account_token.is_empty() => self.heard.lock().unwrap().by_svid += 1,
            _ => return Err(Status::unauthenticated("this token is not believed")),
        }
        let id = SpiffeId::workload(&trust_domain(), "isthmus-system", "east-west-gateway").unwrap();
        let svid = self.authority.issue(&request.csr, &id, self.lifetime, SystemTime::now()).unwrap();
        let not_after_ms = svid.not_after.duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap();
        let certificate_chain = svid.chain.iter().map(|der| der.to_vec()).collect();
        Ok(Response::new(IssueSvidResponse { certificate_chain, not_after_ms }))
    }

    type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = rpc::peer(&request)?;
        let mut inbound = request.into_inner();
        let Some(WatchRequest { request: Some(WatchKind::Start(start)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument("no start"));
        };
        {
            let mut heard = self.heard.lock().unwrap();
            heard.watchers.push(peer);
            heard.known = start.known.iter().map(|known| known.name.clone()).collect();
            heard.advertised.extend(start.advertise);
        }
        let mut sent: BTreeMap<_, _> = start.known.into_iter().map(|known| (known.name, known.version)).collect();
        let (sender, receiver) = mpsc::channel(4);
        let (heard, mut resources) = (Arc::clone(&self.heard), self.resources.clone());
        tokio::spawn(async move {
            let mut revision = 0;
            loop {
                revision += 1;
                let response = difference(&mut sent, &resources.borrow_and_update(), revision);
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
                loop {
                    tokio::select! {
                        changed = resources.changed() => match changed {
                            Ok(()) => break,
                            Err(_) => return,
                        },
                        request = inbound.message() => match request {
                            Ok(Some(WatchRequest { request: Some(WatchKind::Ack(ack)) })) => {
                                let mut heard = heard.lock().unwrap();
                                heard.advertised.extend(ack.advertise.clone());
                                heard.acks.push(ack);
                            }
                            _ => return,
                        },
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn difference(
    sent: &mut BTreeMap<String, Vec<u8>>,
    resources: &BTreeMap<String, Resource>,
    revision: u64,
) -> WatchResponse {
    let changed = resources.values().filter(|resource| sent.get(&resource.name) != Some(&resource.version)).cloned();
    let removed = sent.keys().filter(|name| !resources.contains_key(*name)).cloned().collect();
    let response = WatchResponse {
        version: 1,
        revision,
        resources: changed.collect(),
        removed,
        initial_state_complete: revision == 1,
    };
    *sent = resources.iter().map(|(name, resource)| (name.clone(), resource.version.clone())).collect();
    response
}
