//! `federation.v1`: who may open a session, and its first words.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use federation::ClusterName;
use federation_api::federation::v1::session_response::Response as Message;
use federation_api::federation::v1::{Hello, Limits, Welcome, session_request};
use federation_api::verify::VerifiedMember;
use federation_store::{Store, StoreError};
use mesh_tls::rpc::peer;
use spiffe_identity::{PlaneRole, SpiffeId, TrustDomain};
use tokio::sync::mpsc;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::admission::Epoch;
use crate::protocol::{Protocol, Violation, negotiate, resumes};
use crate::publish::epoch_revision;
use crate::session::{RESPONSES, Right, Session, SessionEnd, Shared};
use crate::wire::{Requests, framed};

/// A session must say hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a cluster that has just joined may be unknown here.
const MEMBER_DEADLINE: Duration = Duration::from_secs(3);
/// How long a client waits for this replica to see what it has seen at another one.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(2);

/// Serves `federation.v1`.
#[derive(Debug)]
pub struct FederationService<S> {
    shared: Shared<S>,
    trust_domain: TrustDomain,
    replica: String,
}

impl<S: Store> FederationService<S> {
    /// Serves members of the federation `trust_domain`.
    pub fn new(shared: Shared<S>, trust_domain: TrustDomain, replica: String) -> Self {
        Self { shared, trust_domain, replica }
    }

    /// Opens a session: what is to be told in it, message by message.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn session(
        &self,
        request: Request<Requests>,
    ) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
        let member = self.authorize(peer(&request)?).await?;
        self.open(member, request.into_inner()).await
    }

    /// The caller's membership, by its certificate.
    async fn authorize(&self, id: SpiffeId) -> Result<Arc<VerifiedMember>, Status> {
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
        mut requests: Requests,
    ) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
        let hello = tokio::time::timeout(HELLO_DEADLINE, hello(&mut requests))
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let version = negotiate(&hello).map_err(|violation| SessionEnd::from(violation).status())?;
        let (cache, cluster) = (&self.shared.cache, member.cluster().clone());
        self.catch_up(&hello).await;
        let right = if hello.publisher { self.right(&cluster, &hello).await? } else { Right::Reads };
        let now = Instant::now();
        let opened = cache.read(|index| {
            let resumed = resumes(&hello, cache.incarnation(), index);
            let heartbeat = self.shared.heartbeat;
            Ok((Protocol::open(cluster.clone(), &hello, resumed, index, heartbeat, now)?, resumed))
        });
        let (protocol, resumed) = opened.map_err(|violation: Violation| SessionEnd::from(violation).status())?;
        let namespaces = hello.namespaces.len();
        let entry = self.shared.registry.open(&cluster, &hello.replica, hello.publisher, resumed, namespaces);
        let entry = entry.ok_or_else(|| Status::resource_exhausted(format!("{cluster} has too many sessions here")))?;
        let (responses, stream) = mpsc::channel(RESPONSES);
        let welcome = self.welcome(version, right.epoch(), resumed);
        // The channel is new and empty: this does not wait.
        let _ = responses.send(Ok(framed(Message::Welcome(welcome)))).await;
        info!(%cluster, replica = %hello.replica, publisher = hello.publisher, resumed, "session opened");
        let (shared, keeps_refused) = (self.shared.clone(), hello.keeps_refused);
        // Boxed: a future has a place for its arguments and one for what it does with them.
        let session =
            Box::new(Session { shared, member, right, keeps_refused, protocol, entry, responses: responses.clone() });
        let metrics = self.shared.metrics.clone();
        metrics.opened(resumed);
        tokio::spawn(async move {
            let end = session.run(requests).await;
            metrics.ended(end.kind());
            info!(%cluster, reason = %end, "session ended");
            // A peer that reads nothing is not waited for.
            let _ = responses.try_send(Err(end.status()));
        });
        Ok(stream)
    }

    /// A client that comes from another replica may have seen more than this one: it is given the time to see it too.
    async fn catch_up(&self, hello: &Hello) {
        let cache = &self.shared.cache;
        if hello.incarnation == cache.incarnation() {
            let mut changes = cache.changes();
            let reached = changes.wait_for(|revision| *revision >= hello.revision);
            let _ = tokio::time::timeout(CATCH_UP_DEADLINE, reached).await;
        }
    }

    /// What a session may write that asked to publish. One that keeps what is refused for now reads on a full store, too.
    async fn right(&self, cluster: &ClusterName, hello: &Hello) -> Result<Right, Status> {
        self.shared.publisher.charge_epoch(cluster).map_err(|pause| {
            Status::resource_exhausted(format!(
                "updatesPerSecond: {cluster} opens too many sessions: again in {pause:?}"
            ))
        })?;
        match self.shared.take_epoch(cluster, None).await {
            Ok(epoch) => Ok(Right::Publishes(epoch)),
            Err(SessionEnd::Store(StoreError::NoSpace(source))) if hello.keeps_refused => {
                warn!(%cluster, %source, "the store is full: the session publishes nothing for now");
                let after = epoch_revision(self.shared.publisher.store(), cluster).await;
                Ok(Right::Awaited { after: after.map_err(|error| SessionEnd::from(error).status())? })
            }
            // Trying another replica is no use: an operator must make room.
            Err(SessionEnd::Store(error @ StoreError::NoSpace(_))) => {
                Err(Status::resource_exhausted(format!("the federation's store is full: {error}")))
            }
            Err(end) => Err(end.status()),
        }
    }

    fn welcome(&self, version: u32, epoch: Option<&Epoch>, resumed: bool) -> Welcome {
        let quota = self.shared.publisher.quota();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Welcome {
            version,
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

async fn hello(requests: &mut Requests) -> Result<Hello, Status> {
    match requests.message().await?.and_then(|request| request.request) {
        Some(session_request::Request::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first request must be a hello")),
    }
}
