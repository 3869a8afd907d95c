//! `trust.v1`: membership, bundles and the deny-list; what operators do is in [`operations`].

pub mod operations;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{Connection, Disconnect, End, Events, MAX_MESSAGE_BYTES, REQUESTS, Reconnect, VERSION};
use crate::record::v1::{Member, Signed};
use crate::trust::v1::trust_client::TrustClient;
use crate::trust::v1::watch_request::Request as WatchKind;
use crate::trust::v1::{
    JoinRequest, JoinResponse, LeaveRequest, ListWatchersRequest, ListWatchersResponse, PublishBundleRequest,
    PublishBundleResponse, RenewCertificateRequest, RenewCertificateResponse, WatchAck, WatchRequest, WatchResponse,
    WatchStart,
};

/// How far a watcher has applied the trust state. The user persists it with the state; the default is the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustCursor {
    /// Which history the epoch belongs to.
    pub incarnation: String,
    /// The last epoch applied.
    pub epoch: u64,
}

/// What happens on a trust watch.
#[derive(Debug)]
pub enum TrustEvent {
    /// The stream is open.
    Connected,
    /// One atomic step; see [`WatchResponse`]. A step may come again after a reconnection.
    Update(WatchResponse),
    /// The stream was lost; what was applied stays in force.
    Disconnected {
        /// Why.
        reason: Disconnect,
        /// When the next attempt follows.
        retry_in: Duration,
    },
}

impl WatchResponse {
    /// Where a watcher stands that has applied this.
    #[must_use]
    pub fn cursor(&self) -> TrustCursor {
        TrustCursor { incarnation: self.incarnation.clone(), epoch: self.epoch }
    }
}

/// Says what has been applied: the server counts on it before it takes roots away, and a new connection resumes there.
#[derive(Clone, Debug)]
pub struct TrustAcks(watch::Sender<Ack>);

#[derive(Clone, Debug, Default)]
struct Ack {
    cursor: TrustCursor,
    pending: Vec<String>,
    pending_count: u32,
    connected_count: u32,
}

/// Names of pending proxies that one acknowledgement carries.
const MAX_PENDING_NAMES: usize = 100;

impl TrustAcks {
    /// This watcher has applied everything up to the cursor. `pending` are the proxies behind it that have not, out of
    /// `connected` ones.
    pub fn applied(&self, cursor: TrustCursor, pending: Vec<String>, connected: usize) {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (pending_count, connected_count) = (count(pending.len()), count(connected));
        let pending = pending.into_iter().take(MAX_PENDING_NAMES).collect();
        self.0.send_replace(Ack { cursor, pending, pending_count, connected_count });
    }
}

/// Watches the trust state from a cursor on.
#[must_use = "dropping the events ends the watch"]
pub fn watch(channel: Channel, cursor: TrustCursor, reconnect: Reconnect) -> (TrustAcks, Events<TrustEvent>) {
    watch_as(channel, String::new(), cursor, reconnect)
}

/// [`watch()`], as one of several replicas of a program: operators see its name beside the identity that all of them share.
#[must_use = "dropping the events ends the watch"]
pub fn watch_as(
    channel: Channel,
    replica: String,
    cursor: TrustCursor,
    reconnect: Reconnect,
) -> (TrustAcks, Events<TrustEvent>) {
    let (acks, receiver) = watch::channel(Ack { cursor, ..Ack::default() });
    let client = client(channel);
    (TrustAcks(acks), super::start(TrustConnection { client, replica, acks: receiver, reconnect }, reconnect))
}

fn client(channel: Channel) -> TrustClient<Channel> {
    TrustClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

struct TrustConnection {
    client: TrustClient<Channel>,
    replica: String,
    acks: watch::Receiver<Ack>,
    reconnect: Reconnect,
}

impl TrustConnection {
    fn start(&mut self) -> WatchRequest {
        let cursor = self.acks.borrow_and_update().cursor.clone();
        let start = WatchStart {
            versions: vec![VERSION],
            incarnation: cursor.incarnation,
            epoch: cursor.epoch,
            replica: self.replica.clone(),
        };
        WatchRequest { request: Some(WatchKind::Start(start)) }
    }

    /// What to send, if it is about the history that this stream tells.
    fn ack(&mut self, incarnation: &str) -> Option<WatchRequest> {
        let ack = self.acks.borrow_and_update().clone();
        (ack.cursor.incarnation == incarnation).then_some(WatchRequest {
            request: Some(WatchKind::Ack(WatchAck {
                epoch: ack.cursor.epoch,
                pending_proxies: ack.pending,
                pending_count: ack.pending_count,
                connected_count: ack.connected_count,
            })),
        })
    }

    async fn stream(&mut self, events: &mpsc::Sender<TrustEvent>, heard: &mut bool) -> Option<Disconnect> {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let _ = requests.try_send(self.start());
        let call = self.client.watch(ReceiverStream::new(receiver));
        let mut inbound = match super::opened(self.reconnect.opening_deadline, call).await {
            Ok(response) => response.into_inner(),
            Err(reason) => return Some(reason),
        };
        events.send(TrustEvent::Connected).await.ok()?;
        let mut incarnation = String::new();
        let mut outgoing: Option<WatchRequest> = None;
        let mut acknowledging = true;
        loop {
            let next = async {
                let room = events.reserve().await;
                (room, inbound.message().await)
            };
            tokio::select! {
                (room, message) = next => {
                    let room = room.ok()?;
                    let response = match message {
                        Ok(Some(response)) => response,
                        Ok(None) => return Some(Disconnect::Ended),
                        Err(status) => return Some(status.into()),
                    };
                    if response.version != 0 && response.version != VERSION {
                        return Some(Disconnect::Version(response.version));
                    }
                    incarnation.clone_from(&response.incarnation);
                    if !std::mem::replace(heard, true) {
                        // Another replica knows nothing yet of the proxies behind this watcher.
                        outgoing = self.ack(&incarnation);
                    }
                    room.send(TrustEvent::Update(response));
                }
                changed = self.acks.changed(), if acknowledging => match changed {
                    Ok(()) => outgoing = self.ack(&incarnation).or(outgoing),
                    // Without a handle nobody will acknowledge; the watch goes on.
                    Err(_) => acknowledging = false,
                },
                permit = requests.reserve(), if outgoing.is_some() => {
                    let Ok(permit) = permit else { return Some(Disconnect::Ended) };
                    if let Some(request) = outgoing.take() {
                        permit.send(request);
                    }
                }
            }
        }
    }
}

impl Connection for TrustConnection {
    type Event = TrustEvent;

    async fn run(&mut self, events: &mpsc::Sender<TrustEvent>) -> Option<End> {
        let mut heard = false;
        let reason = self.stream(events, &mut heard).await?;
        Some(End::new(reason, heard))
    }

    fn disconnected(reason: Disconnect, retry_in: Duration) -> TrustEvent {
        TrustEvent::Disconnected { reason, retry_in }
    }
}

/// Turns a token into a membership. The channel has no client certificate and pins the token's federation roots.
///
/// # Errors
/// As the contract says; `DEADLINE_EXCEEDED` after [`super::CALL_DEADLINE`].
pub async fn join(channel: Channel, member: Member, csr: Vec<u8>, bundle: Signed) -> Result<JoinResponse, Status> {
    let request = JoinRequest { member: Some(member), csr, bundle: Some(bundle) };
    super::within_deadline(client(channel).join(Request::new(request))).await
}

/// A new certificate for the caller's own identity.
///
/// # Errors
/// As [`join`].
pub async fn renew(channel: Channel, csr: Vec<u8>) -> Result<RenewCertificateResponse, Status> {
    super::within_deadline(client(channel).renew_certificate(Request::new(RenewCertificateRequest { csr }))).await
}

/// Puts the caller's own bundle record.
///
/// # Errors
/// As [`join`].
pub async fn publish_bundle(channel: Channel, bundle: Signed) -> Result<(), Status> {
    publish(channel, PublishBundleRequest { bundle: Some(bundle), member: None }).await.map(|_| ())
}

/// Puts the caller's own membership, in which the grant of a new publish key follows those known, and returns the epoch
/// from which on watchers are told of it.
///
/// # Errors
/// As [`join`].
pub async fn publish_member(channel: Channel, member: Member) -> Result<u64, Status> {
    Ok(publish(channel, PublishBundleRequest { bundle: None, member: Some(member) }).await?.epoch)
}

async fn publish(channel: Channel, request: PublishBundleRequest) -> Result<PublishBundleResponse, Status> {
    super::within_deadline(client(channel).publish_bundle(Request::new(request))).await
}

/// Ends the caller's own membership by its own word: a statement with the key "membership" and the payload Withdrawal.
///
/// # Errors
/// As [`join`].
pub async fn leave(channel: Channel, statement: Signed) -> Result<(), Status> {
    let request = LeaveRequest { statement: Some(statement) };
    super::within_deadline(client(channel).leave(Request::new(request))).await.map(|_| ())
}

/// Who watches the trust state, and how far each has come.
///
/// # Errors
/// As [`join`].
pub async fn list_watchers(channel: Channel) -> Result<ListWatchersResponse, Status> {
    super::within_deadline(client(channel).list_watchers(Request::new(ListWatchersRequest {}))).await
}
