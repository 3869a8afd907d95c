//! Keeping a copy of a prefix: a snapshot, then every change, for as long as the store lives.

use std::time::Duration;

use futures_util::StreamExt;
use tracing::warn;

use crate::{Revision, Snapshot, Store, StoreError, WatchBatch, WatchError};

/// How long to wait after a watch broke before watching again.
const RETRY: Duration = Duration::from_millis(200);

/// What a copy is made of.
#[derive(Debug)]
pub enum Followed {
    /// The whole prefix as of a revision: it replaces what the copy held.
    Snapshot(Snapshot),
    /// The changes of one revision after that.
    Batch(WatchBatch),
}

/// Why a copy cannot be kept any longer.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// Reading failed for good.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Watching failed for good.
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// Hands every change below `prefix` later than `after` to `take`, in order. A watch that was compacted away is
/// replaced by a snapshot; one that broke is started again where it was.
///
/// # Errors
/// When the store is closed or its disk failed. It never returns otherwise.
pub async fn follow<S: Store>(
    store: &S,
    prefix: &str,
    after: Revision,
    mut take: impl FnMut(Followed) + Send,
) -> Result<(), FollowError> {
    let mut reached = after;
    loop {
        let mut batches = store.watch(prefix, reached);
        while let Some(batch) = batches.next().await {
            match batch {
                Ok(batch) => {
                    reached = batch.revision;
                    take(Followed::Batch(batch));
                }
                Err(WatchError::Compacted { .. }) => {
                    warn!(prefix, reached, "the store compacted past this watch: reading everything again");
                    let snapshot = read(store, prefix).await?;
                    reached = snapshot.revision;
                    take(Followed::Snapshot(snapshot));
                    break;
                }
                Err(error @ (WatchError::Closed | WatchError::Storage(_))) => return Err(error.into()),
                Err(error) => {
                    warn!(prefix, reached, %error, "watch broke");
                    break;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn read<S: Store>(store: &S, prefix: &str) -> Result<Snapshot, StoreError> {
    loop {
        match store.snapshot(prefix).await {
            Err(StoreError::Unavailable(error)) => {
                warn!(prefix, %error, "the store cannot be read");
                tokio::time::sleep(RETRY).await;
            }
            outcome => return outcome,
        }
    }
}
