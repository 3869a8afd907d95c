//! One watch: told what it lacks for as long as it takes it and has a say in the federation.
//!
//! The stream is driven by whoever reads it: a slow watcher gets later changes merged into one response, and nothing is
//! left of one that goes away.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use federation_api::trust::v1::{WatchRequest, WatchResponse, WatchStart, watch_request};
use federation_store::{Revision, Store};
use futures_util::{Stream, StreamExt, stream};
use mesh_runtime::DrainWatcher;
use spiffe_identity::TrustDomain;
use tokio::sync::watch;
use tonic::{Request, Status, Streaming};
use tracing::info;

use super::{Caller, LAGS, OUT_OF_TOUCH, TrustService};
use crate::authority::PlaneAuthority;
use crate::state::TrustState;
use crate::watchers::Watching;

/// The version of the protocol that this service speaks.
const VERSION: u32 = 1;
/// A watcher must say what it wants within this time.
const START_DEADLINE: Duration = Duration::from_secs(5);

type Responses = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

impl<S: Store> TrustService<S> {
    pub(super) async fn open_watch(
        &self,
        caller: &Caller,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Responses, Status> {
        let peer = self.authorize(caller)?;
        if !*self.parts.in_touch.borrow() {
            return Err(caller.send_away(OUT_OF_TOUCH));
        }
        let too_many = || Status::resource_exhausted(format!("{peer} has too many watches open"));
        let watching = self.parts.watchers.add(&peer).ok_or_else(too_many)?;
        let mut requests = request.into_inner();
        let start = tokio::time::timeout(START_DEADLINE, first_request(&mut requests))
            .await
            .map_err(|_| Status::deadline_exceeded("no start came in time"))??;
        watching.named(&start.replica);
        let state = self.parts.state.clone();
        let cursor = state.borrow().knows(&start.incarnation, start.epoch).then_some(start.epoch);
        let watch = Watch {
            caller: caller.clone(),
            federation: self.federation().clone(),
            requests,
            state,
            in_touch: self.parts.in_touch.clone(),
            cursor,
            roots: Some(self.parts.authority.clone()),
            watching,
            drain: self.parts.drain.clone(),
        };
        Ok(Box::pin(stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await? {
                Ok(response) => Some((Ok(response), Some(watch))),
                Err(status) => {
                    info!(peer.id = watch.caller.name(), reason = status.message(), "watch ended");
                    Some((Err(status), None))
                }
            }
        })))
    }
}

async fn first_request(requests: &mut Streaming<WatchRequest>) -> Result<WatchStart, Status> {
    let Some(watch_request::Request::Start(start)) =
        requests.next().await.transpose()?.and_then(|request| request.request)
    else {
        return Err(Status::invalid_argument("the first request must be a start"));
    };
    if !start.versions.contains(&VERSION) {
        let message = format!("this service speaks version {VERSION}, the watcher {:?}", start.versions);
        return Err(Status::failed_precondition(message));
    }
    Ok(start)
}

struct Watch {
    caller: Caller,
    federation: TrustDomain,
    requests: Streaming<WatchRequest>,
    state: watch::Receiver<Arc<TrustState>>,
    in_touch: watch::Receiver<bool>,
    /// The last epoch it was told or has applied before; `None`: it has nothing.
    cursor: Option<Revision>,
    /// What has the federation's roots, until they were told with the first response.
    roots: Option<PlaneAuthority>,
    watching: Watching,
    drain: DrainWatcher,
}

impl Watch {
    /// The next response, when there is something to tell; `None` when the watcher has ended.
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        loop {
            match self.lacking() {
                Ok(None) => {}
                Ok(Some(response)) => return Some(Ok(response)),
                Err(status) => return Some(Err(status)),
            }
            tokio::select! {
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return Some(Err(Status::unavailable("the service ends")));
                    }
                }
                // When it fails, so does the state's: nobody follows the store.
                Ok(()) = self.in_touch.changed() => {}
                request = self.requests.next() => match request?.ok()?.request {
                    Some(watch_request::Request::Ack(ack)) => self.watching.acknowledge(ack),
                    Some(watch_request::Request::Start(_)) => {
                        return Some(Err(Status::invalid_argument("a watch starts once")));
                    }
                    None => {}
                },
                () = self.drain.signaled() => return Some(Err(Status::unavailable("the service drains"))),
            }
        }
    }

    /// What the watcher lacks now, if it still has a say.
    fn lacking(&mut self) -> Result<Option<WatchResponse>, Status> {
        let now = self.state.borrow_and_update().clone();
        if let Some(id) = &self.caller.id {
            now.admits(id, self.caller.held, &self.federation)?;
        }
        if now.lags() {
            return Err(Status::unavailable(LAGS));
        }
        if !*self.in_touch.borrow_and_update() {
            return Err(self.caller.send_away(OUT_OF_TOUCH));
        }
        let lacking = now.since(self.cursor);
        let response = match self.roots.take() {
            // The first response always comes: it carries the version and the roots.
            Some(authority) => {
                let own = || authority.current().roots().iter().map(|root| root.to_vec()).collect();
                Some(WatchResponse {
                    version: VERSION,
                    federation_roots: now.federation_roots().cloned().unwrap_or_else(own),
                    ..lacking.unwrap_or_else(|| now.nothing_new())
                })
            }
            None => lacking,
        };
        if response.is_some() {
            self.cursor = Some(now.epoch());
            self.watching.told(now.epoch());
        }
        Ok(response)
    }
}
