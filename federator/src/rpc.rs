//! `federation.v1`: who may open a session, and its first words.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use federation::ClusterName;
use federation_api::federation::v1::federation_server::Federation;
use federation_api::federation::v1::session_response::Response as Message;
use federation_api::federation::v1::{Hello, Limits, SessionRequest, SessionResponse, Welcome, session_request};
use federation_api::verify::VerifiedMember;
use federation_store::Store;
use futures_util::Stream;
use mesh_tls::rpc::peer;
use prometheus_client::metrics::gauge::Gauge;
use spiffe_identity::{PlaneRole, TrustDomain};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use crate::publish::Epoch;
use crate::session::{RESPONSES, Session, SessionEnd, Shared, response};

/// The version of the protocol that this service speaks.
const VERSION: u32 = 1;
/// A session must say hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a cluster that has just joined may be unknown here.
const MEMBER_DEADLINE: Duration = Duration::from_secs(3);

/// Serves `federation.v1`.
#[derive(Debug)]
pub struct FederationService<S> {
    shared: Shared<S>,
    trust_domain: TrustDomain,
    replica: String,
    sessions: Gauge<i64>,
}

impl<S: Store> FederationService<S> {
    /// Serves members of the federation `trust_domain`; `sessions` counts them.
    pub fn new(shared: Shared<S>, trust_domain: TrustDomain, replica: String, sessions: Gauge<i64>) -> Self {
        Self { shared, trust_domain, replica, sessions }
    }

    /// The caller's membership, by its certificate.
    async fn authorize<T>(&self, request: &Request<T>) -> Result<Arc<VerifiedMember>, Status> {
        let id = peer(request)?;
        if *id.trust_domain() != self.trust_domain {
            return Err(Status::permission_denied(format!("{id} is not of the federation {}", self.trust_domain)));
        }
        let Some(PlaneRole::ControlPlane { cluster }) = id.role() else {
            return Err(Status::permission_denied(format!("{id} is no control-plane")));
        };
        let cluster: ClusterName = cluster.parse().map_err(|error| Status::permission_denied(format!("{error}")))?;
        let mut members = self.shared.members.clone();
        let known = members.wait_for(|members| members.member(&cluster).is_some() || members.is_denied(&cluster));
        let members = match tokio::time::timeout(MEMBER_DEADLINE, known).await {
            Ok(Ok(members)) => members.clone(),
            _ => return Err(Status::unavailable(format!("cluster {cluster} is not known here (yet) as a member"))),
        };
        members.member(&cluster).ok_or_else(|| Status::permission_denied(format!("cluster {cluster} is shut out")))
    }

    async fn open(
        &self,
        member: Arc<VerifiedMember>,
        mut requests: Streaming<SessionRequest>,
    ) -> Result<ReceiverStream<Result<SessionResponse, Status>>, Status> {
        let hello = tokio::time::timeout(HELLO_DEADLINE, hello(&mut requests))
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let cache = &self.shared.cache;
        let resumed = hello.incarnation == cache.incarnation() && (1..=cache.revision()).contains(&hello.revision);
        let epoch = match hello.publisher {
            false => None,
            true => {
                let taken = Epoch::take(self.shared.publisher.store(), member.cluster()).await;
                Some(taken.map_err(|error| Status::unavailable(format!("the store failed: {error}")))?)
            }
        };
        let (responses, stream) = mpsc::channel(RESPONSES);
        let welcome = self.welcome(epoch.as_ref(), resumed);
        let cluster = member.cluster().clone();
        let session = Session::new(self.shared.clone(), member, &hello, epoch, resumed, responses.clone())
            .map_err(|end| Status::invalid_argument(end.to_string()))?;
        // The channel is new and empty: this does not wait.
        let _ = responses.send(Ok(response(Message::Welcome(welcome)))).await;
        info!(%cluster, replica = %hello.replica, publisher = hello.publisher, resumed, "session opened");
        let sessions = self.sessions.clone();
        sessions.inc();
        tokio::spawn(async move {
            let end = session.run(requests).await;
            sessions.dec();
            info!(%cluster, reason = %end, "session ended");
            let status = match end {
                SessionEnd::ShutOut(_) => Status::permission_denied(end.to_string()),
                SessionEnd::Protocol(_) => Status::invalid_argument(end.to_string()),
                SessionEnd::Closed | SessionEnd::Silent(_) | SessionEnd::Draining | SessionEnd::Store(_) => {
                    Status::unavailable(end.to_string())
                }
            };
            // A peer that reads nothing is not waited for.
            let _ = responses.try_send(Err(status));
        });
        Ok(ReceiverStream::new(stream))
    }

    fn welcome(&self, epoch: Option<&Epoch>, resumed: bool) -> Welcome {
        let quota = self.shared.publisher.quota();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Welcome {
            version: VERSION,
            incarnation: self.shared.cache.incarnation().to_owned(),
            session_epoch: epoch.map_or(0, |epoch| epoch.number),
            heartbeat_interval_ms: u32::try_from(self.shared.heartbeat.as_millis()).unwrap_or(u32::MAX),
            limits: Some(Limits {
                publish_records: number(quota.publish_records),
                record_bytes: number(quota.record_bytes),
                exports: number(quota.exports),
            }),
            resumed,
            replica: self.replica.clone(),
        }
    }
}

async fn hello(requests: &mut Streaming<SessionRequest>) -> Result<Hello, Status> {
    let first = requests.message().await?.and_then(|request| request.request);
    let Some(session_request::Request::Hello(hello)) = first else {
        return Err(Status::invalid_argument("the first request must be a hello"));
    };
    if hello.versions.contains(&VERSION) {
        return Ok(hello);
    }
    Err(Status::failed_precondition(format!("this replica speaks version {VERSION}, the client {:?}", hello.versions)))
}

#[tonic::async_trait]
impl<S: Store> Federation for FederationService<S> {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let member = self.authorize(&request).await?;
        Ok(Response::new(Box::pin(self.open(member, request.into_inner()).await?)))
    }
}
