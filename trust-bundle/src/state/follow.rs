//! Keeping the trust state equal to the store.

use std::sync::Arc;

use federation_store::{Change, Entry, FollowError, Followed, Revision, Store, StoreError, follow, layout};
use tokio::sync::watch;
use tracing::error;

use super::TrustState;
use crate::authority::PlaneAuthority;
use crate::metrics::Metrics;
use crate::verify::Verifier;
use crate::watchers::Watchers;

/// The state as it was read, and where to go on from.
#[derive(Debug)]
pub struct Loaded {
    /// The state.
    pub state: TrustState,
    /// The store's revision that was read.
    pub revision: Revision,
}

/// Reads the whole state; `watchers` hears of those that watch elsewhere.
///
/// # Errors
/// The store's.
pub async fn load<S: Store>(
    store: &S,
    verifier: &Verifier,
    authority: &PlaneAuthority,
    metrics: &Metrics,
    watchers: &Watchers,
) -> Result<Loaded, StoreError> {
    let snapshot = store.snapshot("").await?;
    watchers.heard_all(&snapshot.entries);
    let mut state = TrustState { incarnation: store.incarnation().await?.to_string(), ..TrustState::default() };
    take_all(&mut state, &snapshot.entries, (verifier, authority), metrics);
    metrics.show(&state);
    Ok(Loaded { state, revision: snapshot.revision })
}

/// Keeps `published` equal to the store until that ends, from the revision on that `reached` says, which moves with it;
/// `watchers` hears of what other replicas say of theirs. A watch that has to start over from a snapshot takes nothing from
/// anybody.
///
/// # Errors
/// The store's, when it cannot go on.
pub async fn publish<S: Store>(
    store: S,
    reached: watch::Sender<Revision>,
    published: watch::Sender<Arc<TrustState>>,
    verifier: &Verifier,
    authority: &PlaneAuthority,
    metrics: &Metrics,
    watchers: &Watchers,
) -> Result<(), FollowError> {
    let after = *reached.borrow();
    follow(&store, "", after, |followed| {
        let (revision, entries, deleted) = match followed {
            Followed::Snapshot(snapshot) => {
                watchers.heard_all(&snapshot.entries);
                (snapshot.revision, snapshot.entries, Vec::new())
            }
            Followed::Batch(batch) => {
                let (entries, deleted) = split(batch.changes);
                watchers.heard(&entries, &deleted);
                (batch.revision, entries, deleted)
            }
        };
        published.send_if_modified(|state| {
            let changed = take_all(Arc::make_mut(state), &entries, (verifier, authority), metrics);
            for key in deleted.iter().filter(|key| state.misses(verifier, key)) {
                error!(key, "somebody deleted this from the store: keeping the last good one");
            }
            metrics.show(state);
            changed
        });
        reached.send_replace(revision);
    })
    .await
}

fn split(changes: Vec<Change>) -> (Vec<Entry>, Vec<String>) {
    let (mut entries, mut deleted) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Put(entry) => entries.push(entry),
            Change::Delete { key } => deleted.push(key),
        }
    }
    (entries, deleted)
}

/// What is judged by something else comes after that: a member by the deny-list, a departure and a bundle by the member.
fn place(key: &str) -> u8 {
    match key {
        layout::QUARANTINE => 0,
        key if key.starts_with(layout::DEPARTURES) => 2,
        key if key.starts_with(layout::BUNDLES) => 3,
        _ => 1,
    }
}

/// Takes all that counts and reports the rest; says whether anything changed.
fn take_all(
    state: &mut TrustState,
    entries: &[Entry],
    (verifier, authority): (&Verifier, &PlaneAuthority),
    metrics: &Metrics,
) -> bool {
    // The folder may have caught up since.
    let unfollowed = state.unfollowed.clone();
    let mut ordered: Vec<_> = unfollowed.iter().chain(entries).collect();
    ordered.sort_by_key(|entry| place(&entry.key));
    let (mut changed, lagged) = (false, state.lags());
    for entry in ordered {
        match state.take(verifier, authority, entry) {
            Ok(taken) => changed |= taken,
            Err(error) => {
                metrics.ignored.inc();
                error!(key = entry.key, %error, "a stored value is not believed: keeping the last good one");
            }
        }
    }
    // Those who watch must hear of it, in either direction.
    changed || lagged != state.lags()
}
