//! One session's side of `federation.v1`, without input or output: requests, time and the index go in, responses come out.
//!
//! ```text
//!   answers, heartbeats, liveness ──► outbox ─┐
//!   snapshot of namespaces: a walk of keys ───┼──► next() ──► one response
//!   the log above the cursor ─────────────────┘
//! ```
//!
//! A receiver that does not read costs its cursor, where its snapshot stands, and at most [`OUTBOX`] answers: whoever
//! drives the session stops reading requests while [`is_full`](Protocol::is_full).

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use federation::{ClusterName, Namespace};
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{
    Changes, ClusterLiveness, Hello, Liveness, PublishResult, Published, ServerHeartbeat, SessionRequest,
    SnapshotComplete, session_request,
};
use federation_api::record::v1::Signed;
use federation_store::Revision;

use crate::index::{Index, Kind, Limit, Record, Scope, Walked};

/// The versions of the protocol that this service speaks.
pub const VERSIONS: [u32; 1] = [1];
/// What one message of records holds at most, besides a revision or a record that is larger by itself. It fits a frame of
/// HTTP/2: the buffers that a connection's messages are written to stay as large as the largest of them was.
pub const MESSAGE: Limit = Limit { records: 200, bytes: 12 * 1024 };
/// Answers that may wait for a receiver.
pub const OUTBOX: usize = 8;
/// A session ends when nothing was heard for so many heartbeats.
pub const MISSED_HEARTBEATS: u32 = 3;
/// Namespaces that one session may ask for.
const MAX_NAMESPACES: usize = 10_000;

/// Why a session cannot begin or go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No version in common.
    #[error("this replica speaks versions {VERSIONS:?}, the client {0:?}")]
    Version(Vec<u32>),
    /// It broke the protocol.
    #[error("{0}")]
    Malformed(String),
    /// Nothing was heard for three heartbeats.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    /// What it lacks was collected meanwhile: only a snapshot can tell it.
    #[error("fell behind revision {0}, up to which records were collected")]
    Behind(Revision),
}

/// What a request asks of the session's driver.
#[derive(Debug, PartialEq)]
pub enum Heard {
    /// Nothing more.
    Nothing,
    /// The cluster lives.
    Alive,
    /// To store these.
    Publish(Vec<Signed>),
}

/// What an operator sees of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything wanted up to this revision was told.
    pub told: Revision,
    /// The revision that the receiver said it had applied.
    pub applied: Revision,
    /// Since when it owes an acknowledgement.
    pub unacknowledged: Option<Instant>,
    /// A snapshot is on its way.
    pub snapshot: bool,
}

/// A session after its hello.
#[derive(Debug)]
pub struct Protocol {
    cluster: ClusterName,
    /// The session publishes, so it is told its own cluster's records too: after a restore of its state it learns from them
    /// what it had said, and can take back what it no longer means.
    publisher: bool,
    interest: BTreeSet<Namespace>,
    cursor: Revision,
    /// Scopes whose records are walked, and where the first walk stands.
    walks: VecDeque<Scope>,
    walked: Option<Walked>,
    /// The walk is the session's first, which tells the gateways too.
    first_walk: bool,
    /// Namespaces to be marked complete once the cursor has reached the end.
    unmarked: Option<BTreeSet<Namespace>>,
    /// An interest that came while namespaces were walked.
    pending_interest: Option<BTreeSet<Namespace>>,
    outbox: VecDeque<Response>,
    heartbeat: Duration,
    heard: Instant,
    beat: Instant,
    applied: Revision,
    /// The revision of the last message that the receiver acknowledges.
    sent: Revision,
    unacknowledged: Option<Instant>,
}

/// The highest version that both know.
///
/// # Errors
/// [`Violation::Version`]
pub fn negotiate(hello: &Hello) -> Result<u32, Violation> {
    let common = VERSIONS.into_iter().filter(|version| hello.versions.contains(version)).max();
    common.ok_or_else(|| Violation::Version(hello.versions.iter().copied().take(16).collect()))
}

/// Whether a session goes on where its hello says.
#[must_use]
pub fn resumes(hello: &Hello, incarnation: &str, index: &Index) -> bool {
    hello.incarnation == incarnation && index.can_resume(hello.revision)
}

impl Protocol {
    /// A session that goes on where its hello says, or begins with a snapshot.
    ///
    /// # Errors
    /// [`Violation::Malformed`] when the hello's namespaces are no names.
    pub fn open(
        cluster: ClusterName,
        hello: &Hello,
        resumed: bool,
        index: &Index,
        heartbeat: Duration,
        now: Instant,
    ) -> Result<Self, Violation> {
        let interest = parse_namespaces(&hello.namespaces)?;
        let mut walks = VecDeque::new();
        if !resumed {
            let mut namespaces = interest.clone();
            if hello.publisher {
                namespaces.extend(index.namespaces_of(&cluster));
            }
            walks.extend(namespaces.into_iter().map(Scope::Namespace));
            walks.push_back(Scope::Clusters);
        }
        Ok(Self {
            cluster,
            publisher: hello.publisher,
            cursor: if resumed { hello.revision } else { index.revision() },
            walks,
            walked: None,
            first_walk: true,
            unmarked: Some(interest.clone()),
            interest,
            pending_interest: None,
            outbox: VecDeque::new(),
            heartbeat,
            heard: now,
            beat: now,
            applied: 0,
            sent: 0,
            unacknowledged: None,
        })
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`Violation::Malformed`]: the session is to be ended.
    pub fn hear(&mut self, request: SessionRequest, most: usize, now: Instant) -> Result<Heard, Violation> {
        self.heard = now;
        match request.request {
            Some(session_request::Request::Heartbeat(beat)) => {
                self.acknowledged(beat.applied_revision, now);
                Ok(Heard::Alive)
            }
            Some(session_request::Request::Publish(publish)) if publish.records.len() > most => {
                let count = publish.records.len();
                Err(Violation::Malformed(format!("{count} records in one message, {most} are allowed")))
            }
            Some(session_request::Request::Publish(publish)) => Ok(Heard::Publish(publish.records)),
            Some(session_request::Request::Interest(interest)) => {
                self.pending_interest = Some(parse_namespaces(&interest.namespaces)?);
                Ok(Heard::Nothing)
            }
            Some(session_request::Request::Hello(_)) => Err(Violation::Malformed("a second hello".to_owned())),
            // A request of a later version: nothing that this one must act on.
            None => Ok(Heard::Nothing),
        }
    }

    fn acknowledged(&mut self, revision: Revision, now: Instant) {
        // A receiver cannot have applied what it was not told.
        let revision = revision.min(self.cursor);
        if revision > self.applied {
            self.applied = revision;
            self.unacknowledged = (revision < self.sent).then_some(now);
        }
    }

    /// Something was heard, or nothing could be: the silence begins anew.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// What became of published records.
    pub fn published(&mut self, results: Vec<PublishResult>) {
        self.outbox.push_back(Response::Published(Published { results }));
    }

    /// What changed of the clusters' sessions.
    pub fn liveness(&mut self, clusters: Vec<ClusterLiveness>) {
        self.outbox.push_back(Response::Liveness(Liveness { clusters }));
    }

    /// Answers wait: requests are to be left where they are, and nothing is said unasked. One place is kept for the answer to
    /// what is being stored.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.outbox.len() + 1 >= OUTBOX
    }

    /// How many answers wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Whether [`next`](Self::next) may have something to say.
    #[must_use]
    pub fn has_news(&self, reached: Revision) -> bool {
        !self.outbox.is_empty()
            || !self.walks.is_empty()
            || self.pending_interest.is_some()
            || self.unmarked.is_some()
            || self.cursor < reached
    }

    /// The next response, when the receiver has room for one.
    ///
    /// # Errors
    /// [`Violation::Behind`]: the session is to be ended, and begins again with a snapshot.
    pub fn next(&mut self, index: &Index, now: Instant) -> Result<Option<Response>, Violation> {
        if let Some(answer) = self.outbox.pop_front() {
            return Ok(Some(answer));
        }
        if self.cursor < index.collected() {
            return Err(Violation::Behind(index.collected()));
        }
        if let Some(page) = self.walk(index) {
            return Ok(Some(Response::Changes(Changes { revision: self.cursor, records: page })));
        }
        let batch = index.after(self.cursor, MESSAGE, |record| self.wants(index, record));
        self.cursor = batch.revision;
        if !batch.records.is_empty() {
            self.told(now);
            return Ok(Some(Response::Changes(Changes { revision: batch.revision, records: batch.records })));
        }
        if batch.more {
            return Ok(None);
        }
        let Some(namespaces) = self.unmarked.take() else { return Ok(None) };
        self.told(now);
        let namespaces = namespaces.iter().map(ToString::to_string).collect();
        Ok(Some(Response::SnapshotComplete(SnapshotComplete { revision: self.cursor, namespaces })))
    }

    fn told(&mut self, now: Instant) {
        self.sent = self.cursor;
        self.unacknowledged.get_or_insert(now);
    }

    /// A heartbeat, when one is due.
    ///
    /// # Errors
    /// [`Violation::Silent`]
    pub fn timeout(&mut self, now: Instant, time_ms: i64) -> Result<(), Violation> {
        let silence = self.heartbeat * MISSED_HEARTBEATS;
        if now.saturating_duration_since(self.heard) > silence {
            return Err(Violation::Silent(silence));
        }
        if now >= self.beat {
            self.beat = now + self.heartbeat;
            // A receiver that takes nothing needs no heartbeat: it has its silence to notice.
            if !self.is_full() {
                let beat = ServerHeartbeat { revision: self.cursor, time_ms };
                self.outbox.push_back(Response::Heartbeat(beat));
            }
        }
        Ok(())
    }

    /// When [`timeout`](Self::timeout) is due.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.beat.min(self.heard + self.heartbeat * MISSED_HEARTBEATS + Duration::from_millis(1))
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            told: self.cursor,
            applied: self.applied,
            unacknowledged: self.unacknowledged,
            snapshot: !self.walks.is_empty(),
        }
    }

    /// Whether the session is to be told a change: of everybody else in the namespaces it has, and of its own cluster when
    /// it publishes. Records of clusters that are shut out are no exception: receivers hold the same signed deny-list, and
    /// after a release lack nothing.
    fn wants(&self, index: &Index, record: &Record) -> bool {
        if record.cluster() == &self.cluster {
            return self.publisher;
        }
        record.namespace().is_none_or(|namespace| self.interest.contains(namespace))
            && (record.kind() != Kind::Heads || index.heads_matter(record.cluster(), self.cursor, &self.interest))
    }

    /// The next page of a snapshot.
    fn walk(&mut self, index: &Index) -> Option<Vec<Signed>> {
        if self.walks.is_empty()
            && let Some(interest) = self.pending_interest.take()
        {
            self.widen(interest);
        }
        while let Some(scope) = self.walks.front() {
            let (page, walked) = index.walk(scope, self.walked.as_ref(), MESSAGE, |record| self.belongs(record));
            self.walked = walked;
            if self.walked.is_none() {
                self.walks.pop_front();
            }
            if !page.is_empty() {
                return Some(page);
            }
        }
        None
    }

    /// Whether a record is a part of the snapshot that is walked. Everybody's heads are: that they no longer list a
    /// namespace is a word on it too.
    fn belongs(&self, record: &Record) -> bool {
        if record.cluster() == &self.cluster {
            return self.publisher && self.first_walk;
        }
        record.namespace().map_or_else(
            || self.first_walk || record.kind() != Kind::Gateways,
            |namespace| self.interest.contains(namespace),
        )
    }

    /// Takes a new interest; the namespaces that are new get their records and their marker.
    fn widen(&mut self, wanted: BTreeSet<Namespace>) {
        let new: BTreeSet<_> = wanted.difference(&self.interest).cloned().collect();
        if let Some(unmarked) = &mut self.unmarked {
            unmarked.retain(|namespace| wanted.contains(namespace));
        }
        self.interest = wanted;
        if new.is_empty() {
            return;
        }
        self.walks = new.iter().cloned().map(Scope::Namespace).chain([Scope::Clusters]).collect();
        self.walked = None;
        self.unmarked.get_or_insert_default().extend(new);
        self.first_walk = false;
    }
}

fn parse_namespaces(names: &[String]) -> Result<BTreeSet<Namespace>, Violation> {
    if names.len() > MAX_NAMESPACES {
        return Err(Violation::Malformed(format!("{} namespaces, {MAX_NAMESPACES} are allowed", names.len())));
    }
    let parse = |name: &String| name.parse().map_err(|error| Violation::Malformed(format!("namespaces: {error}")));
    names.iter().map(parse).collect()
}
