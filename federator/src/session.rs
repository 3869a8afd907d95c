//! Drives one control-plane's [`Protocol`]: the stream, the clock, the store.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use federation::ClusterName;
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{GoAway, PublishResult, SessionRequest};
use federation_api::record::v1::Signed;
use federation_api::verify::VerifiedMember;
use federation_store::{Revision, Store, StoreError};
use mesh_runtime::DrainWatcher;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;
use tracing::{info, warn};

use crate::admission::Epoch;
use crate::cache::Cache;
use crate::liveness::now_ms;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::protocol::{Heard, Protocol, Violation};
use crate::publish::{Publisher, take_epoch};
use crate::registry::{Entry, Registry};
use crate::wire::{Requests, Responses, framed};

/// Responses that may wait for a slow receiver.
pub const RESPONSES: usize = 2;
/// How long the store may take to answer for a message of records.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(20);
/// Changes of the clusters' liveness are told at most so often.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(250);
/// While a replica drains, its sessions are sent away over this time each, so that they do not come to another at once.
const AWAY_SPREAD: Duration = Duration::from_millis(2);
/// But over no longer than this.
const AWAY_LONGEST: Duration = Duration::from_secs(3);
/// How long a receiver that drains may take to read its last message.
const AWAY_DEADLINE: Duration = Duration::from_secs(1);

/// What sessions share.
#[derive(Debug, Clone)]
pub struct Shared<S> {
    /// The records, and who is connected.
    pub cache: Cache,
    /// Writes.
    pub publisher: Publisher<S>,
    /// The leased keys of the sessions here.
    pub presence: Presence,
    /// Who is believed.
    pub members: watch::Receiver<Arc<Members>>,
    /// The open sessions.
    pub registry: Registry,
    /// What is counted.
    pub metrics: Metrics,
    /// How often heartbeats go both ways; a silent session ends after three.
    pub heartbeat: Duration,
    /// The process's drain.
    pub drain: DrainWatcher,
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The other side closed it.
    #[error("closed by the peer")]
    Closed,
    /// The cluster was quarantined or evicted, or has left.
    #[error("cluster {0} is shut out")]
    ShutOut(ClusterName),
    /// This replica goes away.
    #[error("the replica drains")]
    Draining,
    /// It waited for room to publish, and another session of the cluster publishes since.
    #[error("another session of cluster {0} publishes")]
    Superseded(ClusterName),
    /// What was published may or may not be stored: the client publishes it again in its next session.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// The protocol does not let it go on.
    #[error("protocol: {0}")]
    Protocol(#[from] Violation),
}

impl SessionEnd {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ShutOut(_) => "shut_out",
            Self::Draining => "draining",
            Self::Superseded(_) => "superseded",
            Self::Store(_) => "store",
            Self::Protocol(Violation::Silent(_)) => "silent",
            Self::Protocol(Violation::Behind(_)) => "behind",
            Self::Protocol(_) => "protocol",
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::ShutOut(_) => Status::permission_denied(self.to_string()),
            Self::Protocol(Violation::Malformed(_)) => Status::invalid_argument(self.to_string()),
            Self::Protocol(Violation::Version(_)) => Status::failed_precondition(self.to_string()),
            _ => Status::unavailable(self.to_string()),
        }
    }

    fn silent(&self) -> bool {
        matches!(self, Self::Protocol(Violation::Silent(_)))
    }
}

type Publishing = Pin<Box<dyn Future<Output = Result<(Right, Vec<PublishResult>), SessionEnd>> + Send>>;

/// What a session may write.
#[derive(Debug, Clone)]
pub(crate) enum Right {
    /// Nothing: it did not ask to publish.
    Reads,
    /// Nothing for now: the store was full when it asked. It gets its epoch with its first records that find room, unless
    /// another session of the cluster has taken one since `after`, the revision of the epoch before.
    Awaited { after: Revision },
    /// Its cluster's records.
    Publishes(Epoch),
}

impl Right {
    pub(crate) fn epoch(&self) -> Option<&Epoch> {
        match self {
            Self::Publishes(epoch) => Some(epoch),
            Self::Reads | Self::Awaited { .. } => None,
        }
    }
}

impl<S: Store> Shared<S> {
    /// Takes the next epoch of a cluster, if the one before is still that of revision `after`, where it is given.
    ///
    /// # Errors
    /// [`SessionEnd::Superseded`] when it is not, and [`SessionEnd::Store`].
    pub(crate) async fn take_epoch(&self, cluster: &ClusterName, after: Option<Revision>) -> Result<Epoch, SessionEnd> {
        let (lease, value) = self.presence.offer().await?;
        let taken = take_epoch(self.publisher.store(), cluster, value.clone(), lease, after).await?;
        let epoch = taken.ok_or_else(|| SessionEnd::Superseded(cluster.clone()))?;
        self.presence.hold(cluster, &epoch, value);
        Ok(epoch)
    }
}

/// Publishes in the name of a session; returns what it may write from then on.
async fn publish<S: Store>(
    shared: Shared<S>,
    member: Arc<VerifiedMember>,
    right: Right,
    keeps_refused: bool,
    records: Vec<Signed>,
) -> Result<(Right, Vec<PublishResult>), SessionEnd> {
    let Shared { publisher, .. } = &shared;
    let right = match right {
        Right::Awaited { after } => match shared.take_epoch(member.cluster(), Some(after)).await {
            Ok(epoch) => {
                info!(cluster = %member.cluster(), epoch = epoch.number, "the store has room again: the session publishes");
                Right::Publishes(epoch)
            }
            Err(SessionEnd::Store(StoreError::NoSpace(source))) => {
                warn!(cluster = %member.cluster(), %source, "the store is full: records are refused for now");
                return Ok((right, publisher.refuse_for_space(&member, records)));
            }
            Err(error) => return Err(error),
        },
        right => right,
    };
    let results = if keeps_refused {
        publisher.publish(&member, right.epoch(), records).await?
    } else {
        publisher.publish_at_last(&member, right.epoch(), records).await?
    };
    Ok((right, results))
}

/// A session after its hello.
pub struct Session<S> {
    pub(crate) shared: Shared<S>,
    pub(crate) member: Arc<VerifiedMember>,
    pub(crate) right: Right,
    /// `Hello.keeps_refused`
    pub(crate) keeps_refused: bool,
    pub(crate) protocol: Protocol,
    pub(crate) entry: Entry,
    pub(crate) responses: Responses,
}

impl<S: Store> Session<S> {
    /// Runs until either side ends it.
    pub(crate) async fn run(mut self: Box<Self>, requests: Requests) -> SessionEnd {
        let end = self.converse(requests).await;
        if let Some(epoch) = self.right.epoch() {
            self.shared.presence.release(self.member.cluster(), epoch.number, end.silent()).await;
        }
        end
    }

    async fn converse(&mut self, mut requests: Requests) -> SessionEnd {
        let mut round = self.shared.cache.round();
        let mut liveness = self.shared.cache.liveness().watch();
        liveness.mark_changed();
        let mut members = self.shared.members.clone();
        let drain = self.shared.drain.clone();
        let responses = self.responses.clone();
        let mut publishing: Option<Publishing> = None;
        let (mut told_liveness, mut liveness_due) = (0, Instant::now());
        loop {
            self.entry.note(self.protocol.progress(), self.protocol.waiting());
            let news = self.protocol.has_news(*round.borrow_and_update());
            let listening = publishing.is_none() && !self.protocol.is_full();
            if !listening {
                // What is not read cannot be heard.
                self.protocol.heard(Instant::now().into_std());
            }
            tokio::select! {
                request = requests.message(), if listening => match self.hear(request) {
                    Ok(None) => {}
                    Ok(stored) => publishing = stored,
                    Err(end) => return end,
                },
                results = answer(&mut publishing), if publishing.is_some() => {
                    publishing = None;
                    match results {
                        Ok((right, results)) => {
                            self.right = right;
                            self.answer(results);
                        }
                        Err(end) => return end,
                    }
                }
                permit = responses.reserve(), if news => match permit {
                    Ok(permit) => if let Err(end) = self.tell(permit) { return end },
                    Err(_) => return SessionEnd::Closed,
                },
                changed = round.changed(), if !news => if changed.is_err() { return SessionEnd::Draining },
                changed = wait(&mut liveness, liveness_due), if !self.protocol.is_full() => {
                    if changed.is_err() { return SessionEnd::Draining }
                    let (clusters, last) = self.shared.cache.liveness().since(told_liveness);
                    (told_liveness, liveness_due) = (last, Instant::now() + LIVENESS_INTERVAL);
                    if !clusters.is_empty() { self.protocol.liveness(clusters) }
                }
                () = sleep_until(self.protocol.deadline().into()) => {
                    if let Err(violation) = self.protocol.timeout(Instant::now().into_std(), now_ms()) {
                        return violation.into();
                    }
                }
                changed = members.changed() => match members.borrow_and_update().member(self.member.cluster()) {
                    Some(member) if changed.is_ok() => self.member = member,
                    _ => return SessionEnd::ShutOut(self.member.cluster().clone()),
                },
                () = drain.signaled() => return self.send_away().await,
            }
        }
    }

    fn hear(&mut self, request: Result<Option<SessionRequest>, Status>) -> Result<Option<Publishing>, SessionEnd> {
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => return Err(SessionEnd::Closed),
            Err(status) if status.code() == tonic::Code::Unknown || status.code() == tonic::Code::Cancelled => {
                return Err(SessionEnd::Closed);
            }
            Err(status) => return Err(Violation::Malformed(status.message().to_owned()).into()),
        };
        let most = self.shared.publisher.quota().publish_records;
        match self.protocol.hear(request, most, Instant::now().into_std())? {
            Heard::Nothing => Ok(None),
            Heard::Alive => {
                let applied = self.protocol.progress().applied;
                self.shared.cache.liveness().applied(self.member.cluster(), applied);
                Ok(None)
            }
            Heard::Publish(records) => {
                let (shared, member) = (self.shared.clone(), Arc::clone(&self.member));
                let published = publish(shared, member, self.right.clone(), self.keeps_refused, records);
                Ok(Some(Box::pin(async move {
                    let late = |_| StoreError::OutcomeUnknown("it did not answer in time".into());
                    timeout(PUBLISH_DEADLINE, published).await.map_err(late)?
                })))
            }
        }
    }

    fn answer(&mut self, results: Vec<PublishResult>) {
        for refused in results.iter().filter(|result| result.refusal.is_some()) {
            info!(cluster = %self.member.cluster(), key = %refused.key, refusal = ?refused.refusal, "record refused");
        }
        self.protocol.published(results);
    }

    /// Tells the next part of what the receiver lacks.
    fn tell(&mut self, permit: mpsc::Permit<'_, Result<Bytes, Status>>) -> Result<(), SessionEnd> {
        let now = Instant::now().into_std();
        let protocol = &mut self.protocol;
        match self.shared.cache.read(|index| protocol.next(index, now))? {
            None => {}
            Some(next) => {
                if let Response::Changes(changes) = &next {
                    self.shared.metrics.told(changes.records.len(), changes.encoded_len());
                }
                permit.send(Ok(framed(next)));
            }
        }
        Ok(())
    }

    /// Sends the control-plane to another replica, each at another time.
    async fn send_away(&self) -> SessionEnd {
        let sessions = u32::try_from(self.shared.registry.len()).unwrap_or(u32::MAX);
        let spread = AWAY_SPREAD.saturating_mul(sessions).min(AWAY_LONGEST);
        let wait = spread.mul_f64(rand::random::<f64>());
        let retry_after_ms = u32::try_from(wait.as_millis()).unwrap_or(0);
        let away = Response::GoAway(GoAway { reason: "draining".to_owned(), retry_after_ms });
        if timeout(AWAY_DEADLINE, self.responses.send(Ok(framed(away)))).await.is_err() {
            warn!(cluster = %self.member.cluster(), "the receiver reads nothing: cut off without a word");
        }
        SessionEnd::Draining
    }
}

/// The answer of the store.
async fn answer(publishing: &mut Option<Publishing>) -> Result<(Right, Vec<PublishResult>), SessionEnd> {
    match publishing {
        Some(publishing) => publishing.await,
        None => std::future::pending().await,
    }
}

/// The next change, but not before its time.
async fn wait(changes: &mut watch::Receiver<u64>, due: Instant) -> Result<(), watch::error::RecvError> {
    sleep_until(due).await;
    changes.changed().await
}
