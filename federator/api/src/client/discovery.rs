//! `discovery.v1`: a proxy's side.
//!
//! ```text
//!   state file ──► FromDisk ─┐                                ┌─► state file (200 ms later)
//!                            ├─► the user applies ──► applied ┤
//!   control-plane ─► Update ─┘                                └─► acknowledged
//! ```
//!
//! What counts is what the user has applied: only that is acknowledged, written down and told as known at the next
//! connection. A resource that the user rejects stays as it was everywhere.

mod last_good;
mod state;
mod stream;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use federation::MeshHost;
use tokio::sync::{Notify, mpsc, watch};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{Disconnect, EVENTS, Events, MAX_MESSAGE_BYTES, OwnedTask, Reconnect};
use crate::discovery::v1::discovery_client::DiscoveryClient;
use crate::discovery::v1::{Advertise, IssueSvidRequest, IssueSvidResponse, ProxyKind, Resource};
use state::State;

pub use state::{MAX_HOSTS, SubscriptionsFull};

/// What a watch starts with.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Sidecar or gateway.
    pub kind: ProxyKind,
    /// Unique among the proxies of one identity.
    pub proxy: String,
    /// A sidecar's: the workload's addresses.
    pub workload_addresses: Vec<IpAddr>,
    /// A sidecar's first subscription, besides what the state file holds.
    pub hosts: Vec<MeshHost>,
    /// A gateway's: where peers reach it.
    pub advertise: Option<Advertise>,
    /// Where the last good state lives, mode 0600; `None`: nowhere.
    pub state_file: Option<PathBuf>,
    /// How to connect again.
    pub reconnect: Reconnect,
}

/// Which update is meant; grows over reconnections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What happens on a watch.
#[derive(Debug)]
pub enum DiscoveryEvent {
    /// Always first, once: the last good state, empty where there is none. It counts as applied.
    FromDisk(Vec<Arc<Resource>>),
    /// The stream is open.
    Connected,
    /// One step, to be applied as one, and then reported with its ticket.
    Update {
        /// For [`Discovery::applied`] or [`Discovery::rejected`].
        ticket: Ticket,
        /// New or changed resources.
        resources: Vec<Arc<Resource>>,
        /// Names of resources that are gone.
        removed: Vec<String>,
        /// With this step everything asked for at the start has been sent.
        initial_state_complete: bool,
    },
    /// The stream was lost; what was applied stays in force.
    Disconnected {
        /// Why.
        reason: Disconnect,
        /// When the next attempt follows.
        retry_in: Duration,
    },
}

/// The user's side of a watch. Nothing but [`Self::flush`] waits.
#[derive(Clone, Debug)]
pub struct Discovery(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something is to be sent.
    changed: Notify,
    /// Something is to be written down.
    dirty: Notify,
    /// The state's version that the file has.
    written: watch::Sender<u64>,
}

impl Shared {
    /// Held for a few map operations, never over an await; no holder can leave it half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Discovery {
    /// Reads the last good state and keeps a watch open until the events are dropped.
    #[must_use = "dropping the events ends the watch"]
    pub fn watch(channel: Channel, options: WatchOptions) -> (Self, Events<DiscoveryEvent>) {
        let state = State::new(options.kind, options.hosts.iter().cloned(), options.advertise.clone());
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Notify::new(),
            dirty: Notify::new(),
            written: watch::Sender::new(if options.state_file.is_some() { 0 } else { u64::MAX }),
        });
        let (sender, events) = mpsc::channel(EVENTS);
        let mut tasks = vec![OwnedTask(tokio::spawn(run(channel, Arc::clone(&shared), options.clone(), sender)))];
        if let Some(path) = options.state_file {
            tasks.push(OwnedTask(tokio::spawn(last_good::keep_written(path, Arc::clone(&shared)))));
        }
        (Self(shared), Events { events, _tasks: tasks })
    }

    /// Asks for services, by host name or by the clusterset address that a connection went to. A service found by address
    /// is subscribed by its host from then on. Asking again is free.
    ///
    /// # Errors
    /// [`SubscriptionsFull`] when a host would be one too many: it is not subscribed.
    pub fn subscribe(
        &self,
        hosts: impl IntoIterator<Item = MeshHost>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), SubscriptionsFull> {
        let result = {
            let mut state = self.0.state();
            addresses.into_iter().for_each(|address| state.look_up(address));
            hosts.into_iter().try_for_each(|host| state.subscribe(&host))
        };
        self.0.changed.notify_one();
        result
    }

    /// No longer asks for services, and forgets them: no event follows.
    pub fn unsubscribe(&self, hosts: impl IntoIterator<Item = MeshHost>) {
        {
            let mut state = self.0.state();
            hosts.into_iter().for_each(|host| state.unsubscribe(&host));
        }
        self.0.dirty.notify_one();
        self.0.changed.notify_one();
    }

    /// A gateway's new state.
    pub fn advertise(&self, advertise: Advertise) {
        self.0.state().advertise = Some(advertise);
        self.0.changed.notify_one();
    }

    /// The update, and all before it, are applied.
    pub fn applied(&self, ticket: Ticket) {
        self.0.state().applied(ticket.0, &[], "");
        self.0.dirty.notify_one();
        self.0.changed.notify_one();
    }

    /// The update, and all before it, are applied but for the named resources, which stay as they were.
    pub fn rejected(&self, ticket: Ticket, names: &[&str], error: &str) {
        self.0.state().applied(ticket.0, names, error);
        self.0.dirty.notify_one();
        self.0.changed.notify_one();
    }

    /// What has been applied, by name.
    #[must_use]
    pub fn resources(&self) -> Vec<Arc<Resource>> {
        self.0.state().resources()
    }

    /// Waits until the file, if there is one, holds what has been applied. For ever on a broken disk: bound it.
    pub async fn flush(&self) {
        let version = self.0.state().version();
        self.0.dirty.notify_one();
        // The sender lives as long as this handle.
        let _ = self.0.written.subscribe().wait_for(|written| *written >= version).await;
    }
}

async fn run(channel: Channel, shared: Arc<Shared>, options: WatchOptions, events: mpsc::Sender<DiscoveryEvent>) {
    let resources = match options.state_file.clone() {
        Some(path) => last_good::load(path).await,
        None => Vec::new(),
    };
    let loaded = shared.state().load(resources);
    if events.send(DiscoveryEvent::FromDisk(loaded)).await.is_err() {
        return;
    }
    let reconnect = options.reconnect;
    let connection = stream::DiscoveryConnection { client: client(channel), shared, options };
    super::keep_connected(connection, reconnect, events).await;
}

fn client(channel: Channel) -> DiscoveryClient<Channel> {
    DiscoveryClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// An SVID for the identity that the token proves, or, without one, the channel's client certificate.
///
/// # Errors
/// As the contract says; `DEADLINE_EXCEEDED` after [`super::CALL_DEADLINE`].
pub async fn issue_svid(channel: Channel, csr: Vec<u8>, token: Option<String>) -> Result<IssueSvidResponse, Status> {
    let request = IssueSvidRequest { csr, service_account_token: token.unwrap_or_default() };
    super::within_deadline(client(channel).issue_svid(Request::new(request))).await
}
