//! One connection of a session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use federation::Namespace;
use tokio::sync::mpsc::{self, Permit};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{SessionCursor, SessionEvent, Shared};
use crate::client::{Connection, Disconnect, End, REQUESTS, Reconnect, VERSION, opened};
use crate::federation::v1::federation_client::FederationClient;
use crate::federation::v1::session_request::Request;
use crate::federation::v1::session_response::Response;
use crate::federation::v1::{
    Changes, ClientHeartbeat, GoAway, Hello, Interest, Publish, SessionRequest, SessionResponse, SnapshotComplete,
    Welcome,
};

/// The session ends when the server was silent for so many heartbeat intervals.
const MISSED_HEARTBEATS: u32 = 3;
/// What a server may ask for as the heartbeats' interval.
const HEARTBEAT_RANGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// The session ends when published records were not answered for so long.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(30);

pub(super) struct SessionConnection {
    pub(super) client: FederationClient<Channel>,
    pub(super) shared: Arc<Shared>,
    pub(super) replica: String,
    pub(super) reconnect: Reconnect,
}

/// The end of a connection, or nobody listens.
type Stop = Option<End>;

impl Connection for SessionConnection {
    type Event = SessionEvent;

    async fn run(&mut self, events: &mpsc::Sender<SessionEvent>) -> Option<End> {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let (hello, publisher) = self.hello();
        let resumed: BTreeSet<Namespace> = hello.namespaces.iter().filter_map(|text| text.parse().ok()).collect();
        let _ = requests.try_send(SessionRequest { request: Some(Request::Hello(hello)) });
        let client = &mut self.client;
        let opening = async {
            let mut inbound = client.session(ReceiverStream::new(receiver)).await?.into_inner();
            let first = inbound.message().await?;
            Ok((inbound, first))
        };
        let (inbound, first) = match opened(self.reconnect.opening_deadline, opening).await {
            Ok(opened) => opened,
            Err(reason) => return Some(End::new(reason, false)),
        };
        let welcome = match first.and_then(|first| first.response) {
            Some(Response::Welcome(welcome)) => welcome,
            Some(Response::GoAway(go_away)) => return Some(going_away(go_away)),
            _ => return Some(End::new(Disconnect::Protocol("no Welcome came first"), false)),
        };
        if welcome.version != VERSION {
            return Some(End::new(Disconnect::Version(welcome.version), true));
        }
        let link = Link::new(Arc::clone(&self.shared), &welcome, resumed, publisher);
        events.send(SessionEvent::Connected(welcome)).await.ok()?;
        link.run(inbound, &requests, events).await
    }

    fn disconnected(reason: Disconnect, retry_in: Duration) -> SessionEvent {
        SessionEvent::Disconnected { reason, retry_in }
    }
}

impl SessionConnection {
    /// Resumes only what the cursor covers; what the cluster has besides is asked for right after the Welcome.
    fn hello(&self) -> (Hello, bool) {
        let mut state = self.shared.state();
        state.anew = false;
        let resuming = !state.applied.incarnation.is_empty();
        let namespaces =
            if resuming { &state.applied.namespaces & &state.namespaces } else { state.namespaces.clone() };
        let hello = Hello {
            versions: vec![VERSION],
            replica: self.replica.clone(),
            incarnation: state.applied.incarnation.clone(),
            revision: state.applied.revision,
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            publisher: state.publisher,
            keeps_refused: true,
        };
        (hello, state.publisher)
    }
}

fn going_away(go_away: GoAway) -> End {
    let asked = Duration::from_millis(go_away.retry_after_ms.into());
    let wait = Some(asked).filter(|wait| !wait.is_zero());
    End { reason: Disconnect::GoingAway(go_away.reason), heard: true, wait }
}

struct Link {
    shared: Arc<Shared>,
    incarnation: String,
    publisher: bool,
    publish_records: usize,
    heartbeats: Interval,
    silence: Duration,
    heartbeat_due: bool,
    /// What the server was last told that the cluster has.
    interest: BTreeSet<Namespace>,
    /// Namespaces known to be complete; `None` before the first snapshot of a session that was not resumed.
    covered: Option<BTreeSet<Namespace>>,
    in_flight: BTreeMap<String, u64>,
    published: Instant,
    /// Nothing is published before: the federator asked for a pause.
    pause: Instant,
    /// The cursor of the last message that had one.
    given: SessionCursor,
}

impl Link {
    fn new(shared: Arc<Shared>, welcome: &Welcome, hello: BTreeSet<Namespace>, publisher: bool) -> Self {
        let asked = Duration::from_millis(welcome.heartbeat_interval_ms.into());
        let every = asked.clamp(HEARTBEAT_RANGE.0, HEARTBEAT_RANGE.1);
        let mut heartbeats = interval(every);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let limit = welcome.limits.map_or(1, |limits| limits.publish_records);
        Self {
            shared,
            incarnation: welcome.incarnation.clone(),
            publisher,
            publish_records: usize::try_from(limit).unwrap_or(usize::MAX).max(1),
            heartbeats,
            silence: every * MISSED_HEARTBEATS,
            heartbeat_due: false,
            covered: welcome.resumed.then(|| hello.clone()),
            interest: hello,
            in_flight: BTreeMap::new(),
            published: Instant::now(),
            pause: Instant::now(),
            given: SessionCursor::default(),
        }
    }

    async fn run(
        mut self,
        mut inbound: Streaming<SessionResponse>,
        requests: &mpsc::Sender<SessionRequest>,
        events: &mpsc::Sender<SessionEvent>,
    ) -> Stop {
        let shared = Arc::clone(&self.shared);
        let mut heard = Instant::now();
        let mut room: Option<Permit<'_, SessionEvent>> = None;
        let mut stalled = false;
        loop {
            let anew = std::mem::take(&mut shared.state().anew);
            if anew || shared.state().publisher != self.publisher {
                return Some(End { reason: Disconnect::Renewed, heard: true, wait: Some(Duration::ZERO) });
            }
            // While the user has no room the server is not read, and its silence not looked at.
            room = room.or_else(|| events.try_reserve().ok());
            stalled |= room.is_none();
            if room.is_some() && std::mem::take(&mut stalled) {
                heard = Instant::now();
            }
            tokio::select! {
                // What was heard counts before silence, what is owed before both.
                biased;
                permit = requests.reserve(), if self.has_request() => {
                    let Ok(permit) = permit else { return Some(End::new(Disconnect::Ended, true)) };
                    if let Some(request) = self.next_request() {
                        permit.send(SessionRequest { request: Some(request) });
                    }
                }
                _ = self.heartbeats.tick(), if !self.heartbeat_due => {
                    self.heartbeat_due = true;
                    if !self.in_flight.is_empty() && self.published.elapsed() > PUBLISH_DEADLINE {
                        return Some(End::new(Disconnect::Protocol("published records were not answered for"), true));
                    }
                }
                () = shared.changed.notified() => {}
                () = sleep_until(self.pause), if self.pause > Instant::now() => {}
                waited = events.reserve(), if room.is_none() => room = Some(waited.ok()?),
                message = inbound.message(), if room.is_some() => {
                    heard = Instant::now();
                    let response = match message {
                        Ok(Some(message)) => message.response,
                        Ok(None) => return Some(End::new(Disconnect::Ended, true)),
                        Err(status) => return Some(End::new(status, true)),
                    };
                    match self.event(response) {
                        Ok(Some(event)) => room.take()?.send(event),
                        Ok(None) => {}
                        Err(end) => return Some(end),
                    }
                }
                () = sleep_until(heard + self.silence), if room.is_some() => {
                    return Some(End::new(Disconnect::Silent(self.silence), true));
                }
            }
        }
    }

    fn may_publish(&self) -> bool {
        self.publisher && self.in_flight.is_empty() && self.pause <= Instant::now()
    }

    fn has_request(&self) -> bool {
        let state = self.shared.state();
        self.heartbeat_due || state.namespaces != self.interest || (self.may_publish() && state.outbox.len() > 0)
    }

    fn next_request(&mut self) -> Option<Request> {
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        if self.heartbeat_due {
            self.heartbeat_due = false;
            let known = state.applied.incarnation == self.incarnation;
            let applied_revision = if known { state.applied.revision } else { 0 };
            return Some(Request::Heartbeat(ClientHeartbeat { applied_revision }));
        }
        if state.namespaces != self.interest {
            self.interest = state.namespaces.clone();
            if let Some(covered) = &mut self.covered {
                covered.retain(|namespace| state.namespaces.contains(namespace));
            }
            let namespaces = self.interest.iter().map(ToString::to_string).collect();
            return Some(Request::Interest(Interest { namespaces }));
        }
        if !self.may_publish() {
            return None;
        }
        let mut records = Vec::new();
        for (key, sequence, record) in state.outbox.batch(self.publish_records) {
            self.in_flight.insert(key, sequence);
            records.push(record);
        }
        self.published = Instant::now();
        (!records.is_empty()).then_some(Request::Publish(Publish { records }))
    }

    fn cursor(&self, revision: u64) -> SessionCursor {
        let at = |namespaces: &BTreeSet<Namespace>| SessionCursor {
            incarnation: self.incarnation.clone(),
            revision,
            namespaces: namespaces.clone(),
        };
        self.covered.as_ref().map(at).unwrap_or_default()
    }

    fn given(&mut self, revision: u64) -> SessionCursor {
        self.given = self.cursor(revision);
        self.given.clone()
    }

    /// Who has applied all that it was told has applied what a heartbeat speaks of: in between was nothing for it. So its
    /// cursor stays young, and can be resumed, however rarely something concerns it.
    fn come_along(&mut self, revision: u64) {
        let mut state = self.shared.state();
        let applied = &mut state.applied;
        if !self.given.incarnation.is_empty() && *applied == self.given && revision > applied.revision {
            applied.revision = revision;
            self.given.revision = revision;
        }
    }

    fn event(&mut self, response: Option<Response>) -> Result<Option<SessionEvent>, End> {
        Ok(Some(match response {
            Some(Response::Changes(Changes { revision, records })) => {
                SessionEvent::Changes { revision, records, cursor: self.given(revision) }
            }
            Some(Response::SnapshotComplete(complete)) => self.snapshot_complete(&complete),
            Some(Response::Published(published)) => {
                let mut state = self.shared.state();
                for result in &published.results {
                    if let Some(pause) = state.outbox.answered(result) {
                        self.pause = self.pause.max(Instant::now() + pause);
                    }
                    if self.in_flight.get(&result.key).is_some_and(|sequence| *sequence <= result.sequence) {
                        self.in_flight.remove(&result.key);
                    }
                }
                SessionEvent::Published(published.results)
            }
            Some(Response::Liveness(liveness)) => SessionEvent::Liveness(liveness.clusters),
            Some(Response::Heartbeat(heartbeat)) => {
                self.come_along(heartbeat.revision);
                SessionEvent::Heartbeat { revision: heartbeat.revision, time_ms: heartbeat.time_ms }
            }
            Some(Response::GoAway(go_away)) => return Err(going_away(go_away)),
            Some(Response::Welcome(_)) => return Err(End::new(Disconnect::Protocol("a second Welcome"), true)),
            // Of a later version.
            None => return Ok(None),
        }))
    }

    fn snapshot_complete(&mut self, complete: &SnapshotComplete) -> SessionEvent {
        let namespaces: Vec<Namespace> = complete.namespaces.iter().filter_map(|text| text.parse().ok()).collect();
        let wanted = namespaces.iter().filter(|namespace| self.interest.contains(*namespace)).cloned();
        self.covered.get_or_insert_default().extend(wanted);
        SessionEvent::SnapshotComplete {
            revision: complete.revision,
            namespaces,
            cursor: self.given(complete.revision),
        }
    }
}
