//! Leases: expiry, keep-alive, attachment.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{current, done, next_changes, put, summary};
use crate::{LeaseId, Store, StoreError, Transaction};

/// The shortest time that etcd grants by default.
const TTL: Duration = Duration::from_secs(2);

/// Keys live exactly as long as their lease.
///
/// # Panics
///
/// When one does not.
pub async fn check_leases<S: Store>(make: &impl AsyncFn() -> S) {
    keys_go_with_their_lease(&make().await).await;
    a_lease_lives_while_it_is_kept_alive(&make().await).await;
    revoking_deletes_at_once(&make().await).await;
    the_last_put_decides_the_lease(&make().await).await;
    a_lease_that_is_gone_refuses(&make().await).await;
}

async fn leased<S: Store>(store: &S, ttl: Duration, keys: &[&str]) -> LeaseId {
    let lease = store.grant_lease(ttl).await.unwrap();
    let transaction = keys.iter().fold(Transaction::new(), |puts, key| puts.put_leased(*key, "", lease));
    done(store, transaction).await;
    lease
}

async fn keys_go_with_their_lease<S: Store>(store: &S) {
    put(store, "stays", "").await;
    let granted = Instant::now();
    let lease = leased(store, TTL, &["a", "b", "c"]).await;
    assert_eq!(store.get("b").await.unwrap().unwrap().lease, Some(lease));
    let mut watch = store.watch("", current(store).await);
    let batch = next_changes(&mut watch).await;
    let lived = granted.elapsed();
    assert_eq!(summary(&batch), ["-a", "-b", "-c"], "all its keys in one revision");
    assert!(lived >= TTL, "gone after {lived:?} of {TTL:?}");
    assert_eq!(store.get("a").await.unwrap(), None);
    assert!(store.get("stays").await.unwrap().is_some());
}

async fn a_lease_lives_while_it_is_kept_alive<S: Store>(store: &S) {
    let kept = leased(store, TTL, &["kept"]).await;
    let lost = leased(store, TTL, &["lost"]).await;
    let mut watch = store.watch("", current(store).await);
    let (mut rounds, mut gone) = (0, None);
    // A store whose leader changes may give every lease more time: the one is kept until the other is gone.
    while rounds < 9 || gone.is_none() {
        tokio::select! {
            batch = next_changes(&mut watch), if gone.is_none() => gone = Some(summary(&batch)),
            () = sleep(TTL / 3) => {
                store.keep_alive(kept).await.unwrap();
                rounds += 1;
            }
        }
    }
    assert_eq!(gone.unwrap(), ["-lost"]);
    let refused = store.keep_alive(lost).await;
    assert!(matches!(refused, Err(StoreError::LeaseNotFound { lease }) if lease == lost), "{refused:?}");
    assert!(store.get("kept").await.unwrap().is_some(), "alive after three times its time");
    assert_eq!(summary(&next_changes(&mut watch).await), ["-kept"], "and gone without more");
}

async fn revoking_deletes_at_once<S: Store>(store: &S) {
    let lease = leased(store, TTL * 1000, &["a", "b"]).await;
    let other = leased(store, TTL * 1000, &["c"]).await;
    assert_ne!(lease, other);
    let mut watch = store.watch("", current(store).await);
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(summary(&next_changes(&mut watch).await), ["-a", "-b"]);
    assert_eq!(store.get("c").await.unwrap().unwrap().lease, Some(other));
    let empty = store.grant_lease(TTL * 1000).await.unwrap();
    let before = current(store).await;
    store.revoke(empty).await.unwrap();
    assert_eq!(current(store).await, before, "a lease without keys is no change");
}

async fn the_last_put_decides_the_lease<S: Store>(store: &S) {
    let first = leased(store, TTL * 1000, &["moved", "freed", "same", "deleted"]).await;
    let second = store.grant_lease(TTL * 1000).await.unwrap();
    let rest = Transaction::new().put_leased("moved", "2", second).put("freed", "2").put_leased("same", "2", first);
    done(store, rest.delete("deleted")).await;
    put(store, "deleted", "2").await;
    assert_eq!(store.get("freed").await.unwrap().unwrap().lease, None);
    let mut watch = store.watch("", current(store).await);
    store.revoke(first).await.unwrap();
    assert_eq!(summary(&next_changes(&mut watch).await), ["-same"]);
    store.revoke(second).await.unwrap();
    assert_eq!(summary(&next_changes(&mut watch).await), ["-moved"]);
    for key in ["freed", "deleted"] {
        assert!(store.get(key).await.unwrap().is_some(), "{key} had left its lease");
    }
}

async fn a_lease_that_is_gone_refuses<S: Store>(store: &S) {
    let lease = leased(store, TTL * 1000, &["a"]).await;
    store.revoke(lease).await.unwrap();
    let not_found = |error: Option<StoreError>| {
        assert!(matches!(error, Some(StoreError::LeaseNotFound { lease: named }) if named == lease), "{error:?}");
    };
    not_found(store.revoke(lease).await.err());
    not_found(store.keep_alive(lease).await.err());
    let put = Transaction::new().put("b", "").put_leased("c", "", lease);
    not_found(store.commit(put.clone()).await.err());
    assert_eq!(store.get("b").await.unwrap(), None, "nothing of the transaction was applied");
    let conflict = store.commit(put.expecting("missing", 1)).await.unwrap();
    assert_eq!(conflict.done(), None, "an expectation that fails comes first");
}
