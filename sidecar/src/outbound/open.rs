//! Getting a connection for one request: pick, connect, race, go elsewhere.
//!
//! ```text
//!  pick ─► connect ── refused ─► pick the next ─► …
//!             │
//!             └─ not up after max(250 ms, 2 × RTT): pick the next and race it; the first that is up is used
//! ```

use std::pin::Pin;
use std::sync::Arc;

use federation::ClusterName;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::outbound::refusal::Refusal;
use crate::routing::route::{Attempt, Route};
use crate::session::dial::{DialError, Dialer, Kind};
use crate::session::path::Path;
use crate::session::peer::Peer;
use crate::session::pool::Lease;
use crate::session::stream::Stream;

/// Ways that one request tries at most.
const MAX_ATTEMPTS: usize = 16;

/// Failures to connect after which a request leaves a whole cluster: when all its endpoints die at once, a request must
/// not use its attempts up on them.
const CLUSTER_PATIENCE: usize = 3;

/// What one request has tried.
pub(crate) struct Trying {
    route: Arc<Route>,
    /// The last one picked; among the tried ones when the next is picked, so that a request whose first attempt succeeds
    /// keeps no list.
    current: Option<Path>,
    tried: Vec<Path>,
    /// Those tried, and those that are not worth it while there are others.
    excluded: Vec<Path>,
    /// The last failure was one of the way, not of the endpoint: avoid what it shared.
    avoid_gateways: bool,
    attempts: usize,
    last: Option<Arc<DialError>>,
}

type Connecting<T> = Pin<Box<dyn Future<Output = (Attempt, Result<T, Arc<DialError>>)> + Send>>;

impl Trying {
    pub(crate) fn new(route: Arc<Route>) -> Self {
        Self {
            route,
            current: None,
            tried: Vec::new(),
            excluded: Vec::new(),
            avoid_gateways: false,
            attempts: 0,
            last: None,
        }
    }

    /// How many attempts were begun.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts
    }

    /// The path may be tried again: what failed was one session, not the way.
    pub(crate) fn forgive(&mut self, path: &Path) {
        self.current.take_if(|current| current == path);
        self.tried.retain(|tried| tried != path);
        self.excluded.retain(|excluded| excluded != path);
    }

    /// Everything was tried.
    pub(crate) fn refusal(&self) -> Refusal {
        let service = self.route.host.to_string();
        match &self.last {
            None => Refusal::NoEndpoint { service },
            Some(last) => Refusal::Unreachable { service, attempts: self.attempts, last: last.to_string() },
        }
    }

    /// A place on an HTTP/2 session.
    pub(crate) async fn session(&mut self, dialer: &Dialer) -> Result<(Attempt, Lease), Refusal> {
        let attempt = self.pick().ok_or_else(|| self.refusal())?;
        let opening = match dialer.lease(attempt.path()) {
            Ok(lease) => return Ok((attempt, lease)),
            Err(opening) => opening,
        };
        let first: Connecting<Lease> = Box::pin(async move { (attempt, opening.lease().await) });
        let next = dialer.clone();
        self.race(dialer, first, move |attempt| {
            let opening = match next.lease(attempt.path()) {
                Ok(lease) => return Box::pin(std::future::ready((attempt, Ok(lease)))),
                Err(opening) => opening,
            };
            Box::pin(async move { (attempt, opening.lease().await) })
        })
        .await
    }

    /// A connection of its own.
    pub(crate) async fn connection(&mut self, dialer: &Dialer) -> Result<(Attempt, (Stream, Peer)), Refusal> {
        let attempt = self.pick().ok_or_else(|| self.refusal())?;
        let connect = {
            let dialer = dialer.clone();
            move |attempt: Attempt| -> Connecting<(Stream, Peer)> {
                let dialer = dialer.clone();
                Box::pin(async move {
                    let dialled = dialer.dial(attempt.path(), Kind::Tcp).await.map_err(Arc::new);
                    (attempt, dialled)
                })
            }
        };
        let first = connect(attempt);
        self.race(dialer, first, connect).await
    }

    /// Waits for the first that comes up, starting one more whenever one fails or is slow.
    async fn race<T: Send + 'static>(
        &mut self,
        dialer: &Dialer,
        first: Connecting<T>,
        mut connect: impl FnMut(Attempt) -> Connecting<T>,
    ) -> Result<(Attempt, T), Refusal> {
        let mut racing = FuturesUnordered::from_iter([first]);
        let mut exhausted = false;
        loop {
            let patience = self.current.as_ref().map(Path::race_after).unwrap_or_default();
            tokio::select! {
                Some((attempt, result)) = racing.next() => match result {
                    Ok(connected) => {
                        report_in_background(dialer, racing);
                        return Ok((attempt, connected));
                    }
                    Err(error) => self.failed(attempt, error),
                },
                () = tokio::time::sleep(patience), if !exhausted => self.route.count_retry("slow_connect"),
            }
            match self.pick() {
                Some(attempt) => racing.push(connect(attempt)),
                None if racing.is_empty() => return Err(self.refusal()),
                None => exhausted = true,
            }
        }
    }

    fn failed(&mut self, attempt: Attempt, error: Arc<DialError>) {
        self.avoid_gateways |= !matches!(*error, DialError::Refused { .. });
        self.route.count_retry("connect");
        let cluster = attempt.path().id().cluster.clone();
        attempt.finish(error.outcome(), error.endpoint());
        self.last = Some(error);
        let tried = self.tried.iter().chain(&self.current).filter(|path| path.id().cluster == cluster).count();
        if tried >= CLUSTER_PATIENCE {
            self.leave(&cluster);
        }
    }

    /// Goes to other clusters next, as long as there are any.
    pub(crate) fn leave(&mut self, cluster: &ClusterName) {
        let rest = self.route.paths().into_iter().filter(|path| path.id().cluster == *cluster);
        self.excluded.extend(rest);
    }

    fn pick(&mut self) -> Option<Attempt> {
        if self.attempts == MAX_ATTEMPTS {
            return None;
        }
        if let Some(before) = self.current.take() {
            self.tried.push(before.clone());
            self.excluded.push(before);
        }
        let picked = self.route.pick(&self.excluded, self.avoid_gateways, self.attempts == 0);
        let attempt = match picked {
            None if self.excluded.len() > self.tried.len() => {
                self.excluded.clone_from(&self.tried);
                self.route.pick(&self.excluded, self.avoid_gateways, false)?
            }
            picked => picked?,
        };
        self.current = Some(attempt.path().clone());
        self.attempts += 1;
        Some(attempt)
    }
}

/// What becomes of those that lost the race is still news for the balancer.
fn report_in_background<T: Send + 'static>(dialer: &Dialer, mut racing: FuturesUnordered<Connecting<T>>) {
    if racing.is_empty() {
        return;
    }
    dialer.tasks().spawn(async move {
        while let Some((attempt, result)) = racing.next().await {
            if let Err(error) = result {
                attempt.finish(error.outcome(), error.endpoint());
            }
        }
    });
}
