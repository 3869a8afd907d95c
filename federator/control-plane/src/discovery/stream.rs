//! One proxy's watch, from its first word to its last.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use federation::Gateway;
use federation_api::discovery::v1::watch_request::Request as Kind;
use federation_api::discovery::v1::{Advertise, ProxyKind, WatchAck, WatchRequest, WatchResponse, WatchStart};
use federation_api::record::v1 as record;
use prost::Message as _;
use spiffe_identity::{SpiffeId, TrustDomain};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::delta::{Delta, ProxyState, Subject, TooMany};
use super::{GATEWAY_ACCOUNT, SYSTEM_NAMESPACE};
use crate::proxies::{self, Connection, Proxies, TrustPosition};
use crate::snapshot::Snapshot;

/// The version of the protocol.
const VERSION: u32 = 1;
/// A proxy's first word must come within this time.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of resources in one response, about.
const MAX_RESPONSE_BYTES: usize = 512 * 1024;
/// Addresses that a sidecar may have.
const MAX_ADDRESSES: usize = 64;
/// Unacknowledged responses whose epoch is remembered; older ones are taken together.
const MAX_UNACKNOWLEDGED: usize = 64;
/// The longest name of a proxy.
const MAX_NAME: usize = 253;

/// What a watch needs.
pub(super) struct ProxyStream {
    pub(super) caller: SpiffeId,
    pub(super) trust_domain: TrustDomain,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) proxies: Proxies,
    pub(super) responses: mpsc::Sender<Result<WatchResponse, Status>>,
}

/// A watch whose proxy has introduced itself.
struct Serving {
    state: ProxyState,
    connection: Connection,
    name: String,
    /// What a gateway has said of itself counts only from gateways.
    gateway: bool,
    revision: u64,
    complete: bool,
    /// Revisions with the trust state that a proxy has applied once it has applied them.
    unacknowledged: VecDeque<(u64, TrustPosition)>,
    /// Its last acknowledgement was that it kept what it had.
    failing: bool,
}

impl ProxyStream {
    pub(super) async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let responses = self.responses.clone();
        if let Err(status) = self.serve(&mut requests).await {
            warn!(peer.id = %self.caller, %status, "a proxy's watch ends");
            // The proxy may have hung up already.
            let _ = responses.send(Err(status)).await;
        }
    }

    async fn serve(&mut self, requests: &mut Streaming<WatchRequest>) -> Result<(), Status> {
        let Some(mut serving) = self.introduction(requests).await? else { return Ok(()) };
        info!(peer.id = %self.caller, proxy = serving.name, "a proxy is connected");
        // Before the first one there is nothing to say.
        let first = tokio::select! {
            first = self.snapshots.wait_for(|snapshot| snapshot.revision > 0) => first.is_ok(),
            () = self.responses.closed() => false,
        };
        if !first {
            return Ok(());
        }
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            let delta = serving.state.delta(&snapshot);
            if !self.send(&mut serving, delta, &snapshot).await {
                break;
            }
            tokio::select! {
                changed = self.snapshots.changed() => if changed.is_err() { break },
                request = requests.message() => match request {
                    Ok(Some(request)) => serving.take(request)?,
                    Ok(None) => break,
                    Err(status) => {
                        debug!(proxy = serving.name, %status, "a proxy's requests end");
                        break;
                    }
                },
                () = self.responses.closed() => break,
            }
        }
        info!(peer.id = %self.caller, proxy = serving.name, "a proxy has gone");
        Ok(())
    }

    async fn introduction(&self, requests: &mut Streaming<WatchRequest>) -> Result<Option<Serving>, Status> {
        let first = tokio::time::timeout(START_DEADLINE, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the first message did not come"))?;
        let Some(first) = first? else { return Ok(None) };
        let Some(Kind::Start(start)) = first.request else {
            return Err(Status::invalid_argument("request: start must come first"));
        };
        if !start.versions.contains(&VERSION) {
            return Err(Status::failed_precondition(format!("versions: this server speaks version {VERSION}")));
        }
        if start.proxy.is_empty() || start.proxy.len() > MAX_NAME {
            return Err(Status::invalid_argument(format!("proxy: a name of 1 to {MAX_NAME} bytes is needed")));
        }
        self.introduced(start).map(Some)
    }

    fn introduced(&self, start: WatchStart) -> Result<Serving, Status> {
        let subject = self.subject(&start)?;
        let kind = subject.kind;
        let connection = self.proxies.connect(kind, &start.proxy, &self.caller.to_string());
        let mut state = ProxyState::new(subject, start.known).map_err(too_many)?;
        state.subscribe(start.subscribe.unwrap_or_default()).map_err(too_many)?;
        let serving = Serving {
            state,
            connection,
            name: start.proxy,
            gateway: kind == proxies::Kind::Gateway,
            revision: 0,
            complete: false,
            unacknowledged: VecDeque::new(),
            failing: false,
        };
        if let Some(advertise) = start.advertise {
            serving.advertise(advertise)?;
        }
        Ok(serving)
    }

    /// Who the proxy may be follows from its certificate.
    fn subject(&self, start: &WatchStart) -> Result<Subject, Status> {
        let Some((namespace, service_account)) = self.caller.as_workload() else {
            return Err(Status::permission_denied(format!("{} is no workload", self.caller)));
        };
        let kind = match start.kind() {
            ProxyKind::Sidecar => proxies::Kind::Sidecar,
            ProxyKind::Gateway if (namespace, service_account) == (SYSTEM_NAMESPACE, GATEWAY_ACCOUNT) => {
                proxies::Kind::Gateway
            }
            ProxyKind::Gateway => {
                let only = format!("only {SYSTEM_NAMESPACE}/{GATEWAY_ACCOUNT} may be a gateway, not {}", self.caller);
                return Err(Status::permission_denied(only));
            }
            ProxyKind::Unspecified => return Err(Status::invalid_argument("kind: is missing or unknown")),
        };
        if start.workload_addresses.len() > MAX_ADDRESSES {
            return Err(Status::invalid_argument(format!("workload_addresses: more than {MAX_ADDRESSES}")));
        }
        let address = |text: &String| {
            text.parse().map_err(|_| Status::invalid_argument(format!("workload_addresses: {text:?} is no address")))
        };
        Ok(Subject {
            kind,
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            addresses: start.workload_addresses.iter().map(address).collect::<Result<_, _>>()?,
            trust_domain: self.trust_domain.to_string(),
        })
    }

    /// Sends a delta in parts. Returns false when nobody listens any more.
    async fn send(&self, serving: &mut Serving, delta: Delta, snapshot: &Snapshot) -> bool {
        let completes = snapshot.synced && !serving.complete;
        if delta == Delta::default() && !completes {
            serving.sent(position(snapshot), false);
            return true;
        }
        let mut parts = parts(delta);
        if let Some(last) = parts.last_mut() {
            last.initial_state_complete = completes;
        }
        for mut part in parts {
            serving.revision += 1;
            part.revision = serving.revision;
            part.version = VERSION;
            if self.responses.send(Ok(part)).await.is_err() {
                return false;
            }
        }
        serving.complete |= completes;
        serving.sent(position(snapshot), true);
        true
    }
}

fn position(snapshot: &Snapshot) -> TrustPosition {
    TrustPosition { epoch: snapshot.trust_epoch, bundle: snapshot.own_bundle.sequence }
}

/// At least one response; what is gone is said in the last.
fn parts(delta: Delta) -> Vec<WatchResponse> {
    let mut parts = Vec::new();
    let mut part = WatchResponse::default();
    let mut bytes = 0;
    for resource in delta.resources {
        let size = resource.encoded_len();
        if bytes > 0 && bytes + size > MAX_RESPONSE_BYTES {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.resources.push(resource);
    }
    part.removed = delta.removed;
    parts.push(part);
    parts
}

fn too_many(TooMany: TooMany) -> Status {
    Status::resource_exhausted(format!("more than {} subscriptions", super::delta::MAX_SUBSCRIPTIONS))
}

impl Serving {
    fn take(&mut self, request: WatchRequest) -> Result<(), Status> {
        match request.request {
            Some(Kind::Start(_)) => Err(Status::invalid_argument("request: start came twice")),
            Some(Kind::Subscribe(subscribe)) => self.state.subscribe(subscribe).map_err(too_many),
            Some(Kind::Ack(ack)) => self.acknowledged(ack),
            // Of a later version.
            None => Ok(()),
        }
    }

    fn acknowledged(&mut self, ack: WatchAck) -> Result<(), Status> {
        let mut epoch = None;
        while let Some((_, applied)) = self.unacknowledged.front().filter(|(revision, _)| *revision <= ack.revision) {
            epoch = Some(*applied);
            self.unacknowledged.pop_front();
        }
        let error = (!ack.error.is_empty()).then_some(ack.error);
        if let Some(error) = &error {
            warn!(proxy = self.name, error, "a proxy did not understand a resource");
        }
        // What it did not understand it has not applied.
        self.failing = error.is_some();
        self.connection.applied(epoch.filter(|_| !self.failing), error);
        match ack.advertise {
            Some(advertise) => self.advertise(advertise),
            None => Ok(()),
        }
    }

    /// Everything up to this epoch is in the responses so far, the last of which is `new` or was sent before.
    fn sent(&mut self, trust: TrustPosition, new: bool) {
        match self.unacknowledged.back_mut() {
            _ if new => self.unacknowledged.push_back((self.revision, trust)),
            Some((_, last)) => *last = trust,
            // All is acknowledged, and the epoch changed nothing for this proxy.
            None if self.failing => {}
            None => self.connection.applied(Some(trust), None),
        }
        if self.unacknowledged.len() > MAX_UNACKNOWLEDGED {
            self.unacknowledged.pop_front();
        }
    }

    fn advertise(&self, advertise: Advertise) -> Result<(), Status> {
        if !self.gateway {
            return Err(Status::permission_denied("advertise: only a gateway can be one"));
        }
        let outside = record::Gateway {
            name: self.name.clone(),
            address: advertise.address,
            port: advertise.port,
            locality: advertise.locality,
            draining: advertise.draining,
        };
        let inside = (advertise.egress_port != 0).then(|| record::Gateway {
            address: advertise.egress_address,
            port: advertise.egress_port,
            ..outside.clone()
        });
        let refused = |field: &str, error| Status::invalid_argument(format!("advertise.{field}{error}"));
        let gateway = Gateway::try_from(outside).map_err(|error| refused("", error))?;
        let egress = inside.map(Gateway::try_from).transpose().map_err(|error| refused("egress_", error))?;
        self.connection.advertise(gateway, egress);
        Ok(())
    }
}
