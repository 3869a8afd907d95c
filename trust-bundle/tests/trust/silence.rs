//! A replica that is cut off from its store confirms nothing to anybody.

use std::time::Duration;

use federation_api::client::trust::TrustCursor;
use federation_store::{
    Committed, EmbeddedStore, Entry, Incarnation, LeaseId, Page, RangePage, Revision, Store, StoreError, Transaction,
    WatchStream,
};
use tokio::sync::watch::{self, Receiver};
use tokio_stream::StreamExt;
use tonic::Code;

use crate::plane::{Plane, Shut, assert_ended, channel_to, watch};

/// How long the store may be silent here.
const SILENCE: Duration = Duration::from_millis(1_500);

/// A store behind a network that can be cut: requests fail, and watches say nothing.
#[derive(Clone)]
struct Distant {
    store: EmbeddedStore,
    cut: Receiver<bool>,
}

impl Distant {
    fn reach(&self) -> Result<&EmbeddedStore, StoreError> {
        if *self.cut.borrow() { Err(StoreError::Unavailable("the network is cut".into())) } else { Ok(&self.store) }
    }
}

impl Store for Distant {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.reach()?.get(key).await
    }

    async fn range(&self, prefix: &str, page: Page) -> Result<RangePage, StoreError> {
        self.reach()?.range(prefix, page).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        self.reach()?.commit(transaction).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        let cut = self.cut.clone();
        Box::pin(self.store.watch(prefix, after).then(move |batch| {
            let mut cut = cut.clone();
            async move {
                let _ = cut.wait_for(|cut| !cut).await;
                batch
            }
        }))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.reach()?.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.reach()?.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.reach()?.revoke(lease).await
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        self.reach()?.compact(at).await
    }

    async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        self.store.incarnation().await
    }
}

#[tokio::test]
async fn a_replica_cut_off_from_its_store_sends_its_watchers_to_one_that_hears_a_quarantine() {
    let (cut, is_cut) = watch::channel(false);
    let plane = Plane::start_impatient(SILENCE, |store| Distant { store, cut: is_cut }).await;
    let other = plane.replica().await;
    let (east, _west) = (plane.join("east").await, plane.join("west").await);
    let both = [plane.address(), other.address];
    let mut watcher = watch(channel_to(&both, &plane.authority, Some(&east.identity)), TrustCursor::default());
    let before = watcher.update().await;
    assert_eq!(before.members.len(), 2);
    watcher.acks.applied(before.cursor(), Vec::new(), 0);
    // As long as the store answers, nobody is sent away, though it has nothing to say.
    assert!(tokio::time::timeout(2 * SILENCE, watcher.end()).await.is_err());
    cut.send_replace(true);
    plane.store_deny_list(1, &[Shut::Cluster("west")]).await;
    let told = watcher.update_again().await;
    assert!(told.deny_list.is_some() && !told.full, "the other replica goes on where the first one stopped");
}

#[tokio::test]
async fn a_replica_says_that_it_does_not_hear_its_store_and_serves_again_when_it_does() {
    let (cut, is_cut) = watch::channel(false);
    let plane = Plane::start_impatient(SILENCE, |store| Distant { store, cut: is_cut }).await;
    let east = plane.join("east").await;
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    let before = watcher.update().await;
    cut.send_replace(true);
    assert_ended(&watcher.end().await, Code::Unavailable, "does not hear its store");
    let mut late = plane.watch(&east.identity, before.cursor());
    assert_ended(&late.end().await, Code::Unavailable, "does not hear its store");
    cut.send_replace(false);
    assert_eq!(late.update_again().await.epoch, before.epoch);
}
