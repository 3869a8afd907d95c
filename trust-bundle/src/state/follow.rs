//! Keeping the trust state equal to the store.

use std::sync::Arc;

use federation_store::{Change, Entry, FollowError, Followed, Revision, Store, StoreError, follow, layout};
use tokio::sync::watch;
use tracing::error;

use super::TrustState;
use crate::metrics::Metrics;
use crate::verify::Verifier;

/// The state as it was read, and where to go on from.
#[derive(Debug)]
pub struct Loaded {
    /// The state.
    pub state: TrustState,
    /// The store's revision that was read.
    pub revision: Revision,
}

/// Reads the whole state.
///
/// # Errors
/// The store's.
pub async fn load<S: Store>(store: &S, verifier: &Verifier, metrics: &Metrics) -> Result<Loaded, StoreError> {
    let snapshot = store.snapshot("").await?;
    let mut state = TrustState { incarnation: store.incarnation().await?.to_string(), ..TrustState::default() };
    take_all(&mut state, &snapshot.entries, verifier, metrics);
    metrics.show(&state);
    Ok(Loaded { state, revision: snapshot.revision })
}

/// Keeps `published` equal to the store, from `after` on and until the store ends. A watch that has to start over from a
/// snapshot takes nothing from anybody.
///
/// # Errors
/// The store's, when it cannot go on.
pub async fn publish<S: Store>(
    store: S,
    after: Revision,
    published: watch::Sender<Arc<TrustState>>,
    verifier: &Verifier,
    metrics: &Metrics,
) -> Result<(), FollowError> {
    follow(&store, "", after, |followed| {
        let entries = match followed {
            Followed::Snapshot(snapshot) => snapshot.entries,
            Followed::Batch(batch) => batch.changes.into_iter().filter_map(put).collect(),
        };
        published.send_if_modified(|state| {
            let changed = take_all(Arc::make_mut(state), &entries, verifier, metrics);
            metrics.show(state);
            changed
        });
    })
    .await
}

fn put(change: Change) -> Option<Entry> {
    match change {
        Change::Put(entry) => Some(entry),
        Change::Delete { key } => {
            if key == layout::QUARANTINE || key.starts_with(layout::MEMBERS) || key.starts_with(layout::BUNDLES) {
                error!(key, "somebody deleted this from the store: keeping the last good one");
            }
            None
        }
    }
}

/// Takes what counts and reports the rest; says whether anything changed.
fn take_all(state: &mut TrustState, entries: &[Entry], verifier: &Verifier, metrics: &Metrics) -> bool {
    // A bundle is judged by its member, and both may have changed at once.
    let (bundles, others): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.key.starts_with(layout::BUNDLES));
    let mut changed = false;
    for entry in others.into_iter().chain(bundles) {
        match state.take(verifier, entry) {
            Ok(taken) => changed |= taken,
            Err(error) => {
                metrics.ignored.inc();
                error!(key = entry.key, %error, "a stored value is not believed: keeping the last good one");
            }
        }
    }
    changed
}
