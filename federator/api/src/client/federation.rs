//! `federation.v1`: a control-plane's session with the federator.

mod link;
mod outbox;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use federation::Namespace;
use tokio::sync::Notify;
use tonic::transport::Channel;

use super::{Disconnect, Events, MAX_MESSAGE_BYTES, Reconnect};
use crate::federation::v1::federation_client::FederationClient;
use crate::federation::v1::{ClusterLiveness, PublishResult, Welcome};
use crate::record::v1::Signed;
use outbox::Outbox;

/// How far a subscriber has applied the federation's changes. The user persists it with the records; the default is the
/// beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionCursor {
    /// Which history the revision belongs to.
    pub incarnation: String,
    /// The last revision applied.
    pub revision: u64,
    /// The namespaces that were complete at that revision: only these can be resumed.
    pub namespaces: BTreeSet<Namespace>,
}

/// What a session starts with.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Which replica of the control-plane this is, for logs and status.
    pub replica: String,
    /// The namespaces the cluster has.
    pub namespaces: BTreeSet<Namespace>,
    /// Whether this replica is the leader.
    pub publisher: bool,
    /// Where to go on.
    pub cursor: SessionCursor,
    /// How to connect again.
    pub reconnect: Reconnect,
}

/// What happens in a session. Nothing here deletes: a record goes by its owner's signed word only.
#[derive(Debug)]
pub enum SessionEvent {
    /// The session is open.
    Connected(Welcome),
    /// Records that changed, the latest of each key; unverified. May come again after a reconnection.
    Changes {
        /// The revision they lead to.
        revision: u64,
        /// Envelopes.
        records: Vec<Signed>,
        /// What to report as applied, after they are.
        cursor: SessionCursor,
    },
    /// All records of the namespaces, as of the revision, have been sent since the session opened.
    SnapshotComplete {
        /// As of which revision.
        revision: u64,
        /// Of which namespaces.
        namespaces: Vec<Namespace>,
        /// What to report as applied.
        cursor: SessionCursor,
    },
    /// What became of published records.
    Published(Vec<PublishResult>),
    /// What the federator knows of other clusters' sessions.
    Liveness(Vec<ClusterLiveness>),
    /// The federator is alive and at this revision.
    Heartbeat {
        /// Its revision.
        revision: u64,
        /// Its clock, Unix milliseconds.
        time_ms: i64,
    },
    /// The session was lost; what was applied stays.
    Disconnected {
        /// Why.
        reason: Disconnect,
        /// When the next attempt follows.
        retry_in: Duration,
    },
}

/// The user's side of a session. Nothing here waits.
#[derive(Clone, Debug)]
pub struct Session(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    outbox: Outbox,
    namespaces: BTreeSet<Namespace>,
    publisher: bool,
    applied: SessionCursor,
    /// The connection is to end, so that the next one begins with a snapshot.
    anew: bool,
}

impl Shared {
    /// Held for a few map operations, never over an await; no holder can leave it half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_one();
    }
}

impl Session {
    /// Opens a session and keeps it open until the events are dropped.
    #[must_use = "dropping the events ends the session"]
    pub fn open(channel: Channel, options: SessionOptions) -> (Self, Events<SessionEvent>) {
        let state = State {
            outbox: Outbox::default(),
            namespaces: options.namespaces,
            publisher: options.publisher,
            applied: options.cursor,
            anew: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() });
        let client = FederationClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let connection = link::SessionConnection {
            client,
            shared: Arc::clone(&shared),
            replica: options.replica,
            reconnect: options.reconnect,
        };
        (Self(shared), super::start(connection, options.reconnect))
    }

    /// Publishes records. Each is sent, over reconnections too, until the federator has answered for it or a newer one
    /// of its key took its place; the answers come as [`SessionEvent::Published`]. They wait while this is no publisher.
    pub fn publish(&self, records: impl IntoIterator<Item = Signed>) {
        self.0.change(|state| records.into_iter().for_each(|record| state.outbox.put(record)));
    }

    /// How many records the federator has not answered for.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.0.state().outbox.len()
    }

    /// Replaces the set of namespaces the cluster has.
    pub fn set_namespaces(&self, namespaces: BTreeSet<Namespace>) {
        self.0.change(|state| state.namespaces = namespaces);
    }

    /// This replica became the leader, or is it no more: another session starts at once.
    pub fn set_publisher(&self, publisher: bool) {
        self.0.change(|state| state.publisher = publisher);
    }

    /// Everything up to the cursor of an event is applied and, where the user persists, written down. Heartbeats say so,
    /// and a new connection resumes there.
    pub fn applied(&self, cursor: SessionCursor) {
        self.0.change(|state| state.applied = cursor);
    }

    /// Another connection begins at once, with a snapshot of everything. Cursors of the present one are void.
    pub fn begin_anew(&self) {
        self.0.change(|state| (state.applied, state.anew) = (SessionCursor::default(), true));
    }
}
