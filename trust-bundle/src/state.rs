//! The trust state: members, bundles and the deny-list of one revision of the store, and what a watcher lacks of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use federation_api::record::v1::{Member, Signed};
use federation_api::trust::v1::WatchResponse;
use federation_store::{
    Change, FollowError, Followed, Revision, Snapshot, Store, StoreError, WatchBatch, follow, layout,
};
use prost::Message;
use tokio::sync::watch;
use tracing::error;

/// A value and the revision that wrote it.
type Revised<T> = (Revision, Arc<T>);

/// Everything a watcher may learn, immutable.
#[derive(Debug, Default, Clone)]
pub struct TrustState {
    incarnation: String,
    epoch: Revision,
    members: BTreeMap<String, Revised<Member>>,
    bundles: BTreeMap<String, Revised<Signed>>,
    deny_list: Option<Revised<Signed>>,
}

impl TrustState {
    /// The number that watchers acknowledge: the store's revision.
    #[must_use]
    pub fn epoch(&self) -> Revision {
        self.epoch
    }

    /// Which history the epoch belongs to.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// A member by its cluster's name.
    #[must_use]
    pub fn member(&self, cluster: &str) -> Option<&Member> {
        self.members.get(cluster).map(|(_, member)| member.as_ref())
    }

    /// The names of all members.
    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// The trust domains with a bundle.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        self.bundles.keys().map(String::as_str)
    }

    /// The signed deny-list, if there ever was one.
    #[must_use]
    pub fn deny_list(&self) -> Option<&Signed> {
        self.deny_list.as_ref().map(|(_, signed)| signed.as_ref())
    }

    /// What somebody who has applied `cursor` (or nothing: `None`) lacks; `None` when that is nothing.
    #[must_use]
    pub fn since(&self, cursor: Option<Revision>) -> Option<WatchResponse> {
        let newer = cursor.unwrap_or(0);
        if cursor == Some(self.epoch) {
            return None;
        }
        let members = self.members.values().filter(|(revision, _)| *revision > newer);
        let bundles = self.bundles.values().filter(|(revision, _)| *revision > newer);
        let deny_list = self.deny_list.as_ref().filter(|(revision, _)| *revision > newer);
        Some(WatchResponse {
            incarnation: self.incarnation.clone(),
            epoch: self.epoch,
            full: cursor.is_none(),
            members: members.map(|(_, member)| member.as_ref().clone()).collect(),
            bundles: bundles.map(|(_, bundle)| bundle.as_ref().clone()).collect(),
            deny_list: deny_list.map(|(_, list)| list.as_ref().clone()),
            ..WatchResponse::default()
        })
    }

    /// Takes one change of the store. A value that does not decode is reported and changes nothing: the last good one stays.
    fn apply(&mut self, key: &str, revision: Revision, value: Option<&Bytes>) {
        if let Some(cluster) = layout::name_below(layout::MEMBERS, key) {
            put(&mut self.members, cluster, revision, value);
        } else if let Some(trust_domain) = layout::name_below(layout::BUNDLES, key) {
            put(&mut self.bundles, trust_domain, revision, value);
        } else if key == layout::QUARANTINE {
            self.deny_list = value.and_then(|value| decode(key, value)).map(|list| (revision, Arc::new(list)));
        }
    }
}

fn put<T: Message + Default>(
    map: &mut BTreeMap<String, Revised<T>>,
    name: &str,
    revision: Revision,
    value: Option<&Bytes>,
) {
    match value {
        None => drop(map.remove(name)),
        Some(value) => {
            if let Some(decoded) = decode(name, value) {
                map.insert(name.to_owned(), (revision, Arc::new(decoded)));
            }
        }
    }
}

fn decode<T: Message + Default>(key: &str, value: &Bytes) -> Option<T> {
    T::decode(value.clone())
        .inspect_err(|error| error!(key, %error, "stored value does not decode: keeping the last good one"))
        .ok()
}

/// Reads the whole state.
///
/// # Errors
/// The store's.
pub async fn load<S: Store>(store: &S) -> Result<TrustState, StoreError> {
    let snapshot = store.snapshot("").await?;
    Ok(from_snapshot(store.incarnation().await?.to_string(), &snapshot))
}

/// Keeps `published` equal to the store until the store ends. Where the watch had to start over from a snapshot, nothing
/// that watchers had is taken from them by that.
///
/// # Errors
/// The store's, when it cannot go on.
pub async fn publish<S: Store>(store: S, published: watch::Sender<Arc<TrustState>>) -> Result<(), FollowError> {
    let epoch = published.borrow().epoch;
    follow(&store, "", epoch, |followed| {
        published.send_modify(|state| {
            let state = Arc::make_mut(state);
            match followed {
                Followed::Snapshot(snapshot) => *state = from_snapshot(state.incarnation.clone(), &snapshot),
                Followed::Batch(batch) => advance(state, &batch),
            }
        });
    })
    .await
}

fn from_snapshot(incarnation: String, snapshot: &Snapshot) -> TrustState {
    let mut state = TrustState { incarnation, epoch: snapshot.revision, ..TrustState::default() };
    for entry in &snapshot.entries {
        state.apply(&entry.key, entry.modified, Some(&entry.value));
    }
    state
}

fn advance(state: &mut TrustState, batch: &WatchBatch) {
    for change in &batch.changes {
        match change {
            Change::Put(entry) => state.apply(&entry.key, entry.modified, Some(&entry.value)),
            Change::Delete { key, .. } => state.apply(key, batch.revision, None),
        }
    }
    state.epoch = batch.revision;
}
