//! What happens in the store between a check and its transaction.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use federation_api::client::trust::renew;
use federation_api::record::v1::Signed;
use federation_store::{
    Committed, EmbeddedStore, Entry, Incarnation, LeaseId, Page, RangePage, Revision, Store, StoreError, Transaction,
    WatchStream,
};
use mesh_tls::new_key_and_csr;
use prost::Message;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use trust_bundle::audit::AuditLog;
use trust_bundle::membership::{Membership, Refused};
use trust_bundle::standing::ShutOut;
use trust_bundle::state::TrustState;
use trust_bundle::verify::Verifier;

use crate::cluster::{Attempt, Cluster};
use crate::plane::{Plane, Shut, domain};

/// A store that somebody else changes right after a certain key was read for the first time, and whose watches lag.
#[derive(Clone)]
struct Meddled {
    store: EmbeddedStore,
    at: &'static str,
    meddling: Arc<Mutex<Option<Transaction>>>,
    lag: Duration,
}

impl Store for Meddled {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = self.store.get(key).await;
        let meddling = if key.starts_with(self.at) { self.meddling.lock().unwrap().take() } else { None };
        if let Some(transaction) = meddling {
            assert!(self.store.commit(transaction).await?.done().is_some());
        }
        read
    }

    async fn range(&self, prefix: &str, page: Page) -> Result<RangePage, StoreError> {
        self.store.range(prefix, page).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        self.store.commit(transaction).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        let lag = self.lag;
        Box::pin(self.store.watch(prefix, after).then(move |batch| async move {
            tokio::time::sleep(lag).await;
            batch
        }))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn compact(&self, at: Revision) -> Result<(), StoreError> {
        self.store.compact(at).await
    }

    async fn incarnation(&self) -> Result<Incarnation, StoreError> {
        self.store.incarnation().await
    }
}

/// Decides by the store alone: the published state is that of a replica which lags behind.
fn meddled(plane: &Plane, at: &'static str, transaction: Transaction) -> Membership<Meddled> {
    let meddling = Arc::new(Mutex::new(Some(transaction)));
    let store = Meddled { store: plane.store.clone(), at, meddling, lag: Duration::ZERO };
    let (_, lagging) = watch::channel(Arc::new(TrustState::default()));
    let audit = AuditLog::new(store.clone());
    Membership::new(store, Verifier::new(domain(), plane.root.public()), lagging, audit)
}

fn quarantine(plane: &Plane, cluster: &str) -> Transaction {
    Transaction::new().put("quarantine", plane.deny_list(1, &[Shut::Cluster(cluster)]).encode_to_vec())
}

async fn publish(membership: &Membership<Meddled>, cluster: &Cluster, bundle: &Signed) -> Result<Revision, Refused> {
    membership.publish_bundle("test", &cluster.name(), bundle).await
}

#[tokio::test]
async fn a_membership_replaced_in_between_does_not_overwrite_its_successors_bundle() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let east = plane.join_with(&plane.token("east", now)).await;
    let successor = Attempt::new(&plane.token("east", now + Duration::from_millis(1)));
    let bundle = successor.bundle.encode_to_vec();
    let replaced = Transaction::new()
        .put("members/east", successor.member.encode_to_vec())
        .put("bundles/east.mesh.example", bundle.clone());
    // Once between the reads, once between the last read and the transaction.
    for at in ["members/", "bundles/"] {
        let membership = meddled(&plane, at, replaced.clone());
        let refused = publish(&membership, &east, &east.bundle(11, 2)).await;
        assert!(matches!(refused, Err(Refused::Unverified { .. })), "{at}: {refused:?}");
        assert_eq!(plane.stored().await["bundles/east.mesh.example"], bundle, "{at}");
        plane.put("members/east", east.member.encode_to_vec()).await;
        plane.put("bundles/east.mesh.example", east.bundle.encode_to_vec()).await;
    }
}

#[tokio::test]
async fn a_quarantine_that_comes_in_between_counts() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let before = plane.stored().await;
    let attempt = Attempt::new(&plane.token("west", SystemTime::now()));

    let membership = meddled(&plane, "tokens/", quarantine(&plane, "west"));
    let joining = membership.examine(&attempt.member, &attempt.bundle, SystemTime::now()).unwrap();
    let refused = membership.admit(&joining, b"key").await;
    assert!(matches!(refused, Err(Refused::ShutOut(ShutOut::Quarantined(_)))), "{refused:?}");

    let membership = meddled(&plane, "bundles/", quarantine(&plane, "east"));
    let refused = publish(&membership, &east, &east.bundle(11, 2)).await;
    assert!(matches!(refused, Err(Refused::ShutOut(ShutOut::Quarantined(_)))), "{refused:?}");

    let mut after = plane.stored().await;
    assert!(after.remove("quarantine").is_some());
    assert_eq!(after, before, "neither member nor bundle");
}

#[tokio::test]
async fn a_newer_bundle_that_comes_in_between_stays() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let newer = east.bundle(12, 3);
    let put = Transaction::new().put("bundles/east.mesh.example", newer.encode_to_vec());
    let membership = meddled(&plane, "bundles/", put);
    let refused = publish(&membership, &east, &east.bundle(11, 2)).await;
    assert!(matches!(refused, Err(Refused::StaleBundle { .. })), "{refused:?}");
    assert_eq!(plane.stored().await["bundles/east.mesh.example"], newer.encode_to_vec());
}

#[tokio::test]
async fn a_new_member_is_known_where_it_joined_however_late_the_watch_is() {
    let lag = Duration::from_millis(700);
    let plane = Plane::start_on(|store| Meddled { store, at: "", meddling: Arc::default(), lag }).await;
    let east = plane.join("east").await;
    let csr = new_key_and_csr().unwrap().1;
    renew(plane.channel(Some(&east.identity)), csr).await.unwrap();
}
