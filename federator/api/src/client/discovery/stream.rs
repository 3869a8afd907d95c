//! One connection of a watch.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::state::ToSend;
use super::{DiscoveryEvent, Shared, Ticket, WatchOptions};
use crate::client::{Connection, Disconnect, End, REQUESTS, VERSION, opened};
use crate::discovery::v1::discovery_client::DiscoveryClient;
use crate::discovery::v1::watch_request::Request;
use crate::discovery::v1::{ProxyKind, WatchRequest, WatchResponse, WatchStart};

pub(super) struct DiscoveryConnection {
    pub(super) client: DiscoveryClient<Channel>,
    pub(super) shared: Arc<Shared>,
    pub(super) options: WatchOptions,
}

impl Connection for DiscoveryConnection {
    type Event = DiscoveryEvent;

    async fn run(&mut self, events: &mpsc::Sender<DiscoveryEvent>) -> Option<End> {
        let mut heard = false;
        let reason = self.stream(events, &mut heard).await?;
        Some(End::new(reason, heard))
    }

    fn disconnected(reason: Disconnect, retry_in: Duration) -> DiscoveryEvent {
        DiscoveryEvent::Disconnected { reason, retry_in }
    }
}

impl DiscoveryConnection {
    fn start(&self) -> WatchRequest {
        let mut state = self.shared.state();
        let (subscribe, advertise) = state.begin();
        let start = WatchStart {
            versions: vec![VERSION],
            kind: self.options.kind.into(),
            proxy: self.options.proxy.clone(),
            workload_addresses: self.options.workload_addresses.iter().map(ToString::to_string).collect(),
            known: state.known(),
            subscribe: (self.options.kind == ProxyKind::Sidecar).then_some(subscribe),
            advertise,
        };
        WatchRequest { request: Some(Request::Start(start)) }
    }

    async fn stream(&mut self, events: &mpsc::Sender<DiscoveryEvent>, heard: &mut bool) -> Option<Disconnect> {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let _ = requests.try_send(self.start());
        let opening_deadline = self.options.reconnect.opening_deadline;
        let call = self.client.watch(ReceiverStream::new(receiver));
        let mut inbound = match opened(opening_deadline, call).await {
            Ok(response) => response.into_inner(),
            Err(reason) => return Some(reason),
        };
        events.send(DiscoveryEvent::Connected).await.ok()?;
        let shared = Arc::clone(&self.shared);
        // A server always has something to say at the start: that the initial state is complete, at least.
        let first_words = Instant::now() + opening_deadline;
        let mut room = None;
        loop {
            room = room.or_else(|| events.try_reserve().ok());
            tokio::select! {
                // What is owed goes first; what was heard counts before silence.
                biased;
                permit = requests.reserve(), if shared.state().has_request() => {
                    let Ok(permit) = permit else { return Some(Disconnect::Ended) };
                    if let Some(next) = shared.state().next_request() {
                        let request = match next {
                            ToSend::Subscribe(subscribe) => Request::Subscribe(subscribe),
                            ToSend::Ack(ack) => Request::Ack(ack),
                        };
                        permit.send(WatchRequest { request: Some(request) });
                    }
                }
                () = shared.changed.notified() => {}
                waited = events.reserve(), if room.is_none() => room = Some(waited.ok()?),
                message = inbound.message(), if room.is_some() => {
                    let response = match message {
                        Ok(Some(response)) => response,
                        Ok(None) => return Some(Disconnect::Ended),
                        Err(status) => return Some(status.into()),
                    };
                    if response.version != 0 && response.version != VERSION {
                        return Some(Disconnect::Version(response.version));
                    }
                    *heard = true;
                    room.take()?.send(self.update(response));
                }
                () = sleep_until(first_words), if !*heard && room.is_some() => {
                    return Some(Disconnect::Silent(opening_deadline));
                }
            }
        }
    }

    fn update(&self, response: WatchResponse) -> DiscoveryEvent {
        let initial_state_complete = response.initial_state_complete;
        let (ticket, resources, removed) = self.shared.state().received(response);
        DiscoveryEvent::Update { ticket: Ticket(ticket), resources, removed, initial_state_complete }
    }
}
