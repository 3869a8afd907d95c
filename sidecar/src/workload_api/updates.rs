//! A stream of whole states: the first at once, then each that differs from the one before.

use std::sync::Arc;

use futures_util::{Stream, stream};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::answers::Source;
use super::standing::Learnt;

/// An open stream: counted until it is dropped.
pub(super) struct Open {
    _permit: OwnedSemaphorePermit,
    streams: Gauge,
}

impl Open {
    pub(super) fn new(permit: OwnedSemaphorePermit, streams: Gauge) -> Self {
        streams.inc();
        Self { _permit: permit, streams }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.dec();
    }
}

struct Updates<T> {
    source: Arc<Source>,
    read: fn(&Source) -> Result<T, Status>,
    sent: Option<T>,
    identity: watch::Receiver<u64>,
    trust: watch::Receiver<u64>,
    standing: watch::Receiver<Learnt>,
    stopped: CancellationToken,
    ended: bool,
    _open: Open,
}

/// What `read` makes of the source, whenever that is news. A slow reader is told the newest state only. An error ends it.
pub(super) fn updates<T>(
    source: Arc<Source>,
    read: fn(&Source) -> Result<T, Status>,
    stopped: CancellationToken,
    open: Open,
) -> impl Stream<Item = Result<T, Status>> + Send
where
    T: Clone + PartialEq + Send + Sync + 'static,
{
    let updates = Updates {
        identity: source.identity.changed(),
        trust: source.trust.changed(),
        standing: source.standing.changed(),
        source,
        read,
        sent: None,
        stopped,
        ended: false,
        _open: open,
    };
    stream::unfold(updates, |mut updates| async move {
        let next = updates.next().await?;
        Some((next, updates))
    })
}

impl<T: Clone + PartialEq> Updates<T> {
    async fn next(&mut self) -> Option<Result<T, Status>> {
        if self.ended {
            return None;
        }
        loop {
            self.identity.borrow_and_update();
            self.trust.borrow_and_update();
            self.standing.borrow_and_update();
            match (self.read)(&self.source) {
                Ok(state) if self.sent.as_ref() != Some(&state) => {
                    self.sent = Some(state.clone());
                    return Some(Ok(state));
                }
                Ok(_) => {}
                Err(status) => return self.end(status),
            }
            let changed = tokio::select! {
                () = self.stopped.cancelled() => false,
                changed = self.identity.changed() => changed.is_ok(),
                changed = self.trust.changed() => changed.is_ok(),
                changed = self.standing.changed() => changed.is_ok(),
            };
            if !changed {
                return self.end(Status::unavailable("the sidecar is going away"));
            }
        }
    }

    fn end(&mut self, status: Status) -> Option<Result<T, Status>> {
        self.ended = true;
        Some(Err(status))
    }
}
