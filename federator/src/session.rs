//! One control-plane's session: what it is told, and what it says.
//!
//! The session's whole backlog is its cursor: everything above it in the cache's index of revisions, latest value per
//! key, is what it lacks. A receiver that does not read costs nothing but its cursor and [`RESPONSES`] messages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use federation::{ClusterName, Namespace};
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{
    Changes, GoAway, Hello, Interest, Liveness as LivenessMessage, Publish, Published, ServerHeartbeat, SessionRequest,
    SessionResponse, SnapshotComplete, session_request,
};
use federation_api::verify::VerifiedMember;
use federation_store::{Revision, Store, StoreError};
use mesh_runtime::DrainWatcher;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::cache::{Cache, Record};
use crate::liveness::{Alive, Liveness, Table};
use crate::members::Members;
use crate::publish::{Epoch, Publisher};

/// Responses that may wait for a slow receiver; each holds at most 200 records.
pub const RESPONSES: usize = 4;
/// Records in one message.
const BATCH: usize = 200;
/// Namespaces that one session may ask for.
const MAX_NAMESPACES: usize = 10_000;

/// What sessions share.
#[derive(Debug, Clone)]
pub struct Shared<S> {
    /// The records.
    pub cache: Cache,
    /// Writes.
    pub publisher: Publisher<S>,
    /// Who is connected.
    pub liveness: Liveness,
    /// Who is believed.
    pub members: watch::Receiver<Arc<Members>>,
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
    /// Nothing was heard for three heartbeats.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    /// The cluster was quarantined or evicted.
    #[error("cluster {0} is shut out")]
    ShutOut(ClusterName),
    /// This replica goes away.
    #[error("the replica drains")]
    Draining,
    /// What was published may or may not be stored: the client publishes it again in its next session.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// It broke the protocol.
    #[error("protocol: {0}")]
    Protocol(String),
}

/// A session after its hello.
pub struct Session<S> {
    shared: Shared<S>,
    member: Arc<VerifiedMember>,
    interest: BTreeSet<Namespace>,
    epoch: Option<Epoch>,
    /// The publisher's session keeps its cluster alive; replicas that only watch do not speak for it.
    alive: Option<Alive<S>>,
    cursor: Revision,
    /// Namespaces whose snapshot is to be marked complete once the cursor has reached the end.
    unmarked: Option<BTreeSet<Namespace>>,
    responses: mpsc::Sender<Result<SessionResponse, Status>>,
}

impl<S: Store> Session<S> {
    /// A session that begins where its hello says. A resumed one has a cursor; any other begins at 0 with a snapshot.
    ///
    /// # Errors
    /// [`SessionEnd::Protocol`] when the hello's namespaces are no names.
    pub fn new(
        shared: Shared<S>,
        member: Arc<VerifiedMember>,
        hello: &Hello,
        epoch: Option<Epoch>,
        resumed: bool,
        responses: mpsc::Sender<Result<SessionResponse, Status>>,
    ) -> Result<Self, SessionEnd> {
        let interest = parse_namespaces(&hello.namespaces)?;
        let store = shared.publisher.store();
        let alive = epoch.as_ref().map(|_| Alive::new(store.clone(), member.cluster(), shared.heartbeat * 3));
        let cursor = if resumed { hello.revision } else { 0 };
        let unmarked = Some(interest.clone());
        Ok(Self { shared, member, interest, epoch, alive, cursor, unmarked, responses })
    }

    /// Runs until either side ends it.
    pub async fn run(mut self, mut requests: Streaming<SessionRequest>) -> SessionEnd {
        let cluster = self.member.cluster().clone();
        let mut changes = self.shared.cache.changes();
        let mut liveness = self.shared.liveness.watch();
        let mut members = self.shared.members.clone();
        let mut heartbeat = interval(self.shared.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let drain = self.shared.drain.clone();
        let mut heard = Instant::now();
        liveness.mark_changed();
        self.keep_alive().await;
        loop {
            let silence = self.shared.heartbeat * 3;
            let backlog = self.has_backlog();
            let responses = self.responses.clone();
            tokio::select! {
                request = requests.message() => {
                    heard = Instant::now();
                    match self.hear(request).await {
                        Ok(()) => {}
                        Err(end) => return end,
                    }
                }
                permit = responses.reserve(), if backlog => match permit {
                    Ok(permit) => self.tell(permit),
                    Err(_) => return SessionEnd::Closed,
                },
                changed = changes.changed(), if !backlog => if changed.is_err() { return SessionEnd::Draining },
                changed = liveness.changed() => {
                    if changed.is_err() || self.send(liveness_message(&self.shared.liveness, &mut liveness)).await.is_err() {
                        return SessionEnd::Closed;
                    }
                }
                _ = heartbeat.tick() => {
                    if heard.elapsed() > silence {
                        return SessionEnd::Silent(silence);
                    }
                    let beat = ServerHeartbeat { revision: self.cursor, time_ms: now_ms() };
                    // A receiver that takes nothing needs no heartbeat: it has its silence to notice.
                    if let Ok(permit) = responses.try_reserve() {
                        permit.send(Ok(response(Response::Heartbeat(beat))));
                    }
                }
                changed = members.changed() => {
                    let now = members.borrow_and_update().clone();
                    match now.member(&cluster) {
                        Some(member) if changed.is_ok() => self.member = member,
                        _ => return SessionEnd::ShutOut(cluster),
                    }
                }
                () = drain.signaled() => {
                    let away = GoAway { reason: "draining".to_owned(), retry_after_ms: 0 };
                    let _ = self.send(Response::GoAway(away)).await;
                    return SessionEnd::Draining;
                }
            }
        }
    }

    fn has_backlog(&self) -> bool {
        self.cursor < self.shared.cache.revision() || self.unmarked.is_some()
    }

    /// Whether the session is to be told a record: everybody else's, in the namespaces it has, unless its speaker is shut out.
    fn wants<'a>(&'a self, members: &'a Members) -> impl Fn(&Record) -> bool + 'a {
        move |record| {
            record.cluster != *self.member.cluster()
                && record.key.namespace().is_none_or(|namespace| self.interest.contains(namespace))
                && members.member(&record.cluster).is_some()
        }
    }

    /// Tells the next part of the backlog.
    fn tell(&mut self, permit: mpsc::Permit<'_, Result<SessionResponse, Status>>) {
        let members = self.shared.members.borrow().clone();
        let batch = self.shared.cache.after(self.cursor, BATCH, self.wants(&members));
        self.cursor = batch.revision;
        if batch.records.is_empty() && !batch.more {
            if let Some(namespaces) = self.unmarked.take() {
                let namespaces = namespaces.iter().map(ToString::to_string).collect();
                let marker = SnapshotComplete { revision: batch.revision, namespaces };
                permit.send(Ok(response(Response::SnapshotComplete(marker))));
            }
            return;
        }
        debug!(cluster = %self.member.cluster(), records = batch.records.len(), revision = batch.revision, "telling");
        permit.send(Ok(response(Response::Changes(Changes { revision: batch.revision, records: batch.records }))));
    }

    async fn hear(&mut self, request: Result<Option<SessionRequest>, Status>) -> Result<(), SessionEnd> {
        let request = match request {
            Ok(Some(request)) => request.request,
            Ok(None) => return Err(SessionEnd::Closed),
            Err(status) => return Err(SessionEnd::Protocol(status.message().to_owned())),
        };
        match request {
            Some(session_request::Request::Heartbeat(beat)) => {
                self.shared.liveness.applied(self.member.cluster(), beat.applied_revision);
                self.keep_alive().await;
                Ok(())
            }
            Some(session_request::Request::Publish(publish)) => self.publish(publish).await,
            Some(session_request::Request::Interest(interest)) => self.widen(&interest).await,
            Some(session_request::Request::Hello(_)) => Err(SessionEnd::Protocol("a second hello".to_owned())),
            // A request of a later version: nothing that this one must act on.
            None => Ok(()),
        }
    }

    async fn keep_alive(&mut self) {
        let Some(alive) = &mut self.alive else { return };
        if let Err(error) = alive.heard().await {
            warn!(cluster = %self.member.cluster(), %error, "liveness not written");
        }
    }

    async fn publish(&mut self, publish: Publish) -> Result<(), SessionEnd> {
        let most = self.shared.publisher.quota().publish_records;
        if publish.records.len() > most {
            return Err(SessionEnd::Protocol(format!(
                "{} records in one message, {most} are allowed",
                publish.records.len()
            )));
        }
        let stored = publish
            .records
            .into_iter()
            .map(|signed| self.shared.publisher.publish(&self.member, self.epoch.as_ref(), signed));
        let results = futures_util::future::try_join_all(stored).await?;
        for refused in results.iter().filter(|result| result.refusal.is_some()) {
            info!(cluster = %self.member.cluster(), key = %refused.key, refusal = ?refused.refusal, "record refused");
        }
        self.send(Response::Published(Published { results })).await
    }

    /// Takes a new interest; the namespaces that are new get their records and their marker.
    async fn widen(&mut self, interest: &Interest) -> Result<(), SessionEnd> {
        let wanted = parse_namespaces(&interest.namespaces)?;
        let new: BTreeSet<_> = wanted.difference(&self.interest).cloned().collect();
        self.interest = wanted;
        if new.is_empty() {
            return Ok(());
        }
        let members = self.shared.members.borrow().clone();
        let batch = self.shared.cache.of_namespaces(&new, self.wants(&members));
        for records in batch.records.chunks(BATCH) {
            // The cursor stays: what it lacks comes again, and is the same.
            let changes = Changes { revision: self.cursor, records: records.to_vec() };
            self.send(Response::Changes(changes)).await?;
        }
        let namespaces = new.iter().map(ToString::to_string).collect();
        self.send(Response::SnapshotComplete(SnapshotComplete { revision: self.cursor, namespaces })).await
    }

    async fn send(&self, message: Response) -> Result<(), SessionEnd> {
        self.responses.send(Ok(response(message))).await.map_err(|_| SessionEnd::Closed)
    }
}

fn liveness_message(liveness: &Liveness, table: &mut watch::Receiver<Table>) -> Response {
    table.mark_unchanged();
    Response::Liveness(LivenessMessage { clusters: liveness.list() })
}

fn parse_namespaces(names: &[String]) -> Result<BTreeSet<Namespace>, SessionEnd> {
    if names.len() > MAX_NAMESPACES {
        return Err(SessionEnd::Protocol(format!("{} namespaces, {MAX_NAMESPACES} are allowed", names.len())));
    }
    let parse = |name: &String| name.parse().map_err(|error| SessionEnd::Protocol(format!("namespaces: {error}")));
    names.iter().map(parse).collect()
}

/// A response around one message.
pub(crate) fn response(message: Response) -> SessionResponse {
    SessionResponse { response: Some(message) }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
