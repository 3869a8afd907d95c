//! One watch: from the log while it is behind, then from memory.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::watch;

use super::read::{self, LogPiece};
use super::recent::Following;
use super::shared::Shared;
use crate::{Revision, StoreError, WatchBatch, WatchError, WatchStream};

/// A watch that has seen nothing of its prefix for so many revisions says how far it is, so that its owner can resume
/// from there after the older ones are compacted.
const PROGRESS: Revision = 256;

pub(super) struct Watcher {
    shared: Arc<Shared>,
    /// Moves after the ring has the revision, and closes after the writer stopped.
    head: watch::Receiver<Revision>,
    prefix: String,
    /// Every revision up to this one was looked at.
    position: Revision,
    /// What the watch's owner knows of the position.
    reported: Revision,
    /// Read and not handed out yet: the rest of one piece of the log, or one revision.
    ready: VecDeque<WatchBatch>,
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, head: watch::Receiver<Revision>, prefix: &str, after: Revision) -> Self {
        let prefix = prefix.to_owned();
        Self { shared, head, prefix, position: after, reported: after, ready: VecDeque::new() }
    }

    /// The batches; the stream ends after an error.
    pub(super) fn into_stream(self) -> WatchStream {
        stream::unfold(Some(self), |watcher| async {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(batch) => Some((Ok(batch), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        loop {
            if let Some(batch) = self.take_ready() {
                self.reported = batch.revision;
                return Ok(batch);
            }
            self.head.borrow_and_update();
            // A statement of its own: the ring's lock must be gone before anything is awaited.
            let following = self.shared.recent().following(self.position);
            match following {
                Following::Revised(revised) => {
                    self.position = revised.revision;
                    self.ready.extend(revised.below(&self.prefix));
                }
                Following::InLog => self.read_log().await?,
                Following::Nothing => {
                    if self.head.changed().await.is_err() {
                        return Err(as_watch_error(self.shared.stopped()));
                    }
                }
            }
        }
    }

    fn take_ready(&mut self) -> Option<WatchBatch> {
        if let Some(batch) = self.ready.pop_front() {
            return Some(batch);
        }
        let silent = self.position.saturating_sub(self.reported) >= PROGRESS;
        silent.then_some(WatchBatch { revision: self.position, changes: Vec::new() })
    }

    async fn read_log(&mut self) -> Result<(), WatchError> {
        let (prefix, position) = (self.prefix.clone(), self.position);
        let piece = self.shared.read(move |database| read::log(database, &prefix, position)).await;
        match piece.map_err(as_watch_error)? {
            LogPiece::Read { batches, until } => {
                self.ready.extend(batches);
                self.position = until;
                Ok(())
            }
            LogPiece::Compacted { oldest } => Err(WatchError::Compacted { oldest }),
        }
    }
}

fn as_watch_error(error: StoreError) -> WatchError {
    match error {
        StoreError::Closed => WatchError::Closed,
        StoreError::Unavailable(source) => WatchError::Unavailable(source),
        StoreError::Storage(source) => WatchError::Storage(source),
        other => WatchError::Storage(other.into()),
    }
}
