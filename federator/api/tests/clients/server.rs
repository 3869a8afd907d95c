//! A server whose every move is the test's.

use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use federation_api::client::{Events, Reconnect};
use federation_api::discovery::v1::discovery_server::{Discovery, DiscoveryServer};
use federation_api::discovery::v1::{self as discovery, IssueSvidRequest, IssueSvidResponse};
use federation_api::federation::v1::federation_server::{Federation, FederationServer};
use federation_api::federation::v1::{SessionRequest, SessionResponse};
use federation_api::trust::v1::trust_server::{Trust, TrustServer};
use federation_api::trust::v1::{
    self as trust, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, ListWatchersRequest, ListWatchersResponse,
    PublishBundleRequest, PublishBundleResponse, RenewCertificateRequest, RenewCertificateResponse,
};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// What should happen happens well before.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) const RECONNECT: Reconnect = Reconnect {
    first: Duration::from_millis(5),
    longest: Duration::from_millis(50),
    opening_deadline: Duration::from_secs(10),
};

/// For tests in which the server never begins.
pub(crate) const IMPATIENT: Reconnect = Reconnect { opening_deadline: Duration::from_millis(200), ..RECONNECT };

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap()
}

pub(crate) fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

pub(crate) async fn next<E>(events: &mut Events<E>) -> E {
    within(events.recv()).await.unwrap()
}

/// Skips events until one fits.
pub(crate) async fn until<E, T>(events: &mut Events<E>, fits: impl Fn(E) -> Option<T>) -> T {
    loop {
        if let Some(found) = fits(next(events).await) {
            return found;
        }
    }
}

/// The server's end of one stream. Dropping it ends the stream without an error.
pub(crate) struct Call<I, O> {
    inbound: Streaming<I>,
    outbound: mpsc::Sender<Result<O, Status>>,
}

impl<I: Debug, O> Call<I, O> {
    pub(crate) async fn receive(&mut self) -> I {
        within(self.inbound.message()).await.unwrap().unwrap()
    }

    /// Waits until the client has ended the stream.
    pub(crate) async fn ended(mut self) {
        while let Ok(Some(_)) = within(self.inbound.message()).await {}
        within(self.outbound.closed()).await;
    }

    pub(crate) async fn send(&self, message: O) {
        within(self.outbound.send(Ok(message))).await.unwrap();
    }

    pub(crate) async fn fail(self, status: Status) {
        within(self.outbound.send(Err(status))).await.unwrap();
    }
}

type Calls<I, O> = mpsc::Receiver<Call<I, O>>;

async fn hand_over<I, O>(
    calls: &mpsc::Sender<Call<I, O>>,
    request: Request<Streaming<I>>,
) -> Result<Response<ReceiverStream<Result<O, Status>>>, Status> {
    let (outbound, receiver) = mpsc::channel(1);
    let call = Call { inbound: request.into_inner(), outbound };
    calls.send(call).await.map_err(|_| Status::unavailable("the test has ended"))?;
    Ok(Response::new(ReceiverStream::new(receiver)))
}

#[derive(Clone)]
struct Puppet {
    trust: mpsc::Sender<Call<trust::WatchRequest, trust::WatchResponse>>,
    sessions: mpsc::Sender<Call<SessionRequest, SessionResponse>>,
    discovery: mpsc::Sender<Call<discovery::WatchRequest, discovery::WatchResponse>>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) trust: Calls<trust::WatchRequest, trust::WatchResponse>,
    pub(crate) sessions: Calls<SessionRequest, SessionResponse>,
    pub(crate) discovery: Calls<discovery::WatchRequest, discovery::WatchResponse>,
    puppet: Puppet,
    /// Its own, so that stopping it closes every socket, as when a process dies.
    runtime: Option<Runtime>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let (trust_calls, trust) = mpsc::channel(4);
        let (session_calls, sessions) = mpsc::channel(4);
        let (discovery_calls, discovery) = mpsc::channel(4);
        let puppet = Puppet { trust: trust_calls, sessions: session_calls, discovery: discovery_calls };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { address: any, trust, sessions, discovery, puppet, runtime: None };
        server.restart().await;
        server
    }

    pub(crate) fn channel(&self) -> Channel {
        channel(self.address)
    }

    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// On the same address again.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (puppet, address) = (self.puppet.clone(), self.address);
        let (bound, receiver) = oneshot::channel();
        runtime.spawn(async move {
            let listener = bind(address).await;
            bound.send(listener.local_addr().unwrap()).unwrap();
            let router = tonic::transport::Server::builder()
                .add_service(TrustServer::new(puppet.clone()))
                .add_service(FederationServer::new(puppet.clone()))
                .add_service(DiscoveryServer::new(puppet));
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        self.address = within(receiver).await.unwrap();
        self.runtime = Some(runtime);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The server before may need a moment to let go of the port.
async fn bind(address: SocketAddr) -> TcpListener {
    let binding = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    within(binding).await
}

#[tonic::async_trait]
impl Trust for Puppet {
    type WatchStream = ReceiverStream<Result<trust::WatchResponse, Status>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        match request.into_inner() {
            JoinRequest { member: Some(_), bundle: Some(_), csr } if !csr.is_empty() => {
                Ok(Response::new(JoinResponse { certificate_chain: vec![csr], federation_roots: Vec::new() }))
            }
            _ => Err(Status::invalid_argument("csr: missing")),
        }
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let certificate_chain = vec![request.into_inner().csr];
        Ok(Response::new(RenewCertificateResponse { certificate_chain, federation_roots: Vec::new() }))
    }

    async fn publish_bundle(
        &self,
        _: Request<PublishBundleRequest>,
    ) -> Result<Response<PublishBundleResponse>, Status> {
        Err(Status::failed_precondition("bundle: not newer"))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        Err(Status::failed_precondition("statement: not newer"))
    }

    async fn list_watchers(&self, _: Request<ListWatchersRequest>) -> Result<Response<ListWatchersResponse>, Status> {
        Ok(Response::new(ListWatchersResponse::default()))
    }

    async fn watch(
        &self,
        request: Request<Streaming<trust::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        hand_over(&self.trust, request).await
    }
}

#[tonic::async_trait]
impl Federation for Puppet {
    type SessionStream = ReceiverStream<Result<SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        hand_over(&self.sessions, request).await
    }
}

#[tonic::async_trait]
impl Discovery for Puppet {
    type WatchStream = ReceiverStream<Result<discovery::WatchResponse, Status>>;

    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<IssueSvidResponse>, Status> {
        let IssueSvidRequest { csr, service_account_token } = request.into_inner();
        if service_account_token == "wrong" {
            return Err(Status::unauthenticated("token: of another audience"));
        }
        Ok(Response::new(IssueSvidResponse { certificate_chain: vec![csr], not_after_ms: 7 }))
    }

    async fn watch(
        &self,
        request: Request<Streaming<discovery::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        hand_over(&self.discovery, request).await
    }
}

/// The next stream that a client opens.
pub(crate) async fn accept<I, O>(calls: &mut Calls<I, O>) -> Call<I, O> {
    within(calls.recv()).await.unwrap()
}
