//! The federation's own authority is replaced without a refused call.

use std::net::SocketAddr;
use std::time::Duration;

use federation_api::client::trust::operations::rotate_authority;
use federation_api::client::trust::{TrustCursor, renew};
use federation_api::trust::v1::RotateAuthorityResponse;
use federation_api::trust::v1::rotate_authority_request::Step;
use mesh_tls::{Identity, Purpose, TrustStore, new_key_and_csr};
use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe_identity::Bundle;
use tonic::{Code, Status};
use trust_bundle::authority::stored;

use crate::plane::{Plane, Watcher, assert_ended, assert_refused, channel, trust_domain, watch, within};

/// What an operator asks, with a certificate that it holds.
async fn ask(plane: &Plane, operator: &Identity, step: Step) -> Result<RotateAuthorityResponse, Status> {
    rotate_authority(plane.present_channel(plane.address(), operator), step).await
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn until_phase(plane: &Plane, operator: &Identity, phase: &str) -> RotateAuthorityResponse {
    let mut reached = RotateAuthorityResponse::default();
    until(phase, async || {
        reached = ask(plane, operator, Step::Show).await.unwrap_or_default();
        reached.phase == phase
    })
    .await;
    reached
}

/// The next update with roots.
async fn roots(watcher: &mut Watcher, acknowledge: bool) -> Vec<Vec<u8>> {
    loop {
        let update = watcher.update_again().await;
        if acknowledge {
            watcher.acks.applied(update.cursor(), Vec::new(), 0);
        }
        if !update.federation_roots.is_empty() {
            return update.federation_roots;
        }
    }
}

async fn renewed(plane: &Plane, address: SocketAddr, identity: &Identity) -> Identity {
    let (key, csr) = new_key_and_csr().unwrap();
    let answer = renew(plane.present_channel(address, identity), csr).await.unwrap();
    let chain = answer.certificate_chain.into_iter().map(CertificateDer::from).collect();
    Identity::from_der(chain, key).unwrap()
}

/// Whether a certificate is below this root.
fn is_below(identity: &Identity, root: &CertificateDer<'static>) -> bool {
    let (trust, trust_domain) = (TrustStore::new(), trust_domain());
    trust.insert(Bundle { trust_domain, x509_authorities: vec![root.clone()], sequence: 1, refresh_hint: None });
    trust.verify(&identity.chain(), Purpose::Client, UnixTime::now()).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_replaced_when_everybody_who_watches_knows_its_successor() {
    let plane = Plane::start().await;
    let (east, operator) = (plane.join("east").await, plane.operator());
    let old = plane.authority.root();
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    assert_eq!(roots(&mut watcher, true).await, [old.to_vec()]);
    assert_eq!(ask(&plane, &operator, Step::Show).await.unwrap().phase, "idle");
    let idle = ask(&plane, &operator, Step::Hurry).await;
    assert_refused(idle, Code::FailedPrecondition, "no rotation is under way");
    ask(&plane, &operator, Step::Begin).await.unwrap();
    let both = roots(&mut watcher, false).await;
    assert_eq!((both.len(), &both[0]), (2, &old.to_vec()));
    // It has not said that it applied them.
    let mut waiting = RotateAuthorityResponse::default();
    until("whom it waits for", async || {
        waiting = ask(&plane, &operator, Step::Show).await.unwrap();
        !waiting.waiting_for.is_empty()
    })
    .await;
    assert_eq!((waiting.phase.as_str(), waiting.waiting_for), ("preparing", vec![east.id().to_string()]));
    let twice = ask(&plane, &operator, Step::Begin).await;
    assert_refused(twice, Code::FailedPrecondition, "under way already");
    assert_eq!(plane.present_roots()[0], old, "the old one signs");

    drop(watcher);
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    assert_eq!(roots(&mut watcher, true).await, both);
    assert!(until_phase(&plane, &operator, "draining").await.not_before_ms > 0);
    // Both are believed on both sides; what is issued now is the new one's.
    let (old_operator, operator) = (operator.clone(), renewed(&plane, plane.address(), &operator).await);
    let new = CertificateDer::from(both[1].clone());
    assert!(is_below(&operator, &new) && is_below(&old_operator, &old));
    let late = ask(&plane, &operator, Step::Cancel).await;
    assert_refused(late, Code::FailedPrecondition, "signs already");
    let identity = renewed(&plane, plane.address(), &east.identity).await;
    assert_eq!(roots(&mut watcher, true).await.len(), 2, "the new one signs");
    assert_eq!(roots(&mut watcher, true).await, [new.to_vec()]);
    assert!(until_phase(&plane, &operator, "idle").await.waiting_for.is_empty());
    // The root before is worth nothing, on either side.
    assert!(ask(&plane, &old_operator, Step::Show).await.is_err());
    assert!(rotate_authority(channel(plane.address(), &plane.authority, Some(&operator)), Step::Show).await.is_err());
    renewed(&plane, plane.address(), &identity).await;
    assert_eq!(plane.present_roots(), [new]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_cannot_name_a_root_that_the_folder_does_not_hold() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let own = plane.authority.root();
    let foreign = crate::cluster::new_root(&trust_domain());
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    roots(&mut watcher, true).await;
    // With the root that is there, the very same is told again.
    plane.put("authority/state", stored(&plane.authority, std::slice::from_ref(&own)).encode_to_vec()).await;
    assert_eq!(roots(&mut watcher, true).await, [own.to_vec()]);
    for planted in [vec![own.clone(), foreign.clone()], vec![foreign.clone()]] {
        plane.put("authority/state", stored(&plane.authority, &planted).encode_to_vec()).await;
        assert_ended(&watcher.end().await, Code::Unavailable, "is not the federation's");
        let csr = new_key_and_csr().unwrap().1;
        let nothing = renew(plane.channel(Some(&east.identity)), csr).await;
        assert_refused(nothing, Code::Unavailable, "is not the federation's");
        plane.put("authority/state", stored(&plane.authority, std::slice::from_ref(&own)).encode_to_vec()).await;
        assert_eq!(roots(&mut watcher, true).await, [own.to_vec()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_given_up_before_the_new_root_signs() {
    let plane = Plane::start().await;
    let (east, operator) = (plane.join("east").await, plane.operator());
    let old = plane.authority.root();
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    roots(&mut watcher, false).await;
    ask(&plane, &operator, Step::Begin).await.unwrap();
    assert_eq!(roots(&mut watcher, false).await.len(), 2);
    assert_eq!(ask(&plane, &operator, Step::Cancel).await.unwrap().phase, "idle");
    assert_eq!(roots(&mut watcher, false).await, [old.to_vec()]);
    assert_eq!(plane.present_roots(), [old]);
    let recorded: Vec<_> = plane.audit().await.into_iter().filter(|entry| entry.action == "authority.rotate").collect();
    assert_eq!(recorded.iter().map(|entry| entry.detail.as_str()).collect::<Vec<_>>(), ["begin", "cancel"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_waits_for_nobody() {
    let plane = Plane::start().await;
    let (east, operator) = (plane.join("east").await, plane.operator());
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    roots(&mut watcher, false).await;
    ask(&plane, &operator, Step::Begin).await.unwrap();
    roots(&mut watcher, false).await;
    // Nobody has acknowledged anything; the answer may come over a connection that ends with the old root.
    let _ = ask(&plane, &operator, Step::Hurry).await;
    until("the new root alone", async || {
        let present = plane.present_roots();
        present.len() == 1 && present[0] != plane.authority.root()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_goes_on_after_the_service_was_killed_in_each_phase() {
    let plane = Plane::start().await;
    let (east, operator) = (plane.join("east").await, plane.operator());
    let old = plane.authority.root();
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    roots(&mut watcher, false).await;
    ask(&plane, &operator, Step::Begin).await.unwrap();
    assert_eq!(roots(&mut watcher, false).await.len(), 2);
    drop(watcher);

    let plane = plane.kill().await;
    assert_eq!(until_phase(&plane, &operator, "preparing").await.phase, "preparing");
    // Whoever comes back acknowledges, and the rotation goes on.
    let mut watcher = watch(plane.present_channel(plane.address(), &east.identity), TrustCursor::default());
    assert_eq!(roots(&mut watcher, true).await.len(), 2);
    until_phase(&plane, &operator, "draining").await;
    let operator = renewed(&plane, plane.address(), &operator).await;
    let identity = renewed(&plane, plane.address(), &east.identity).await;
    drop(watcher);

    let plane = plane.kill().await;
    let new = plane.present_roots()[0].clone();
    assert!(new != old && is_below(&operator, &new) && is_below(&identity, &new));
    until("the retirement", async || plane.present_roots().len() == 1).await;

    // It waits until whoever watched has unlearnt the old root, and is killed once more.
    let plane = plane.kill().await;
    let mut watcher = watch(plane.present_channel(plane.address(), &identity), TrustCursor::default());
    while roots(&mut watcher, true).await.len() > 1 {}
    until_phase(&plane, &operator, "idle").await;
    assert_eq!(plane.present_roots(), [new]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_follows_the_one_that_drives_and_takes_its_place() {
    let plane = Plane::start().await;
    let other = plane.replica().await;
    let (east, operator) = (plane.join("east").await, plane.operator());
    let mut at_other = watch(channel(other.address, &plane.authority, Some(&east.identity)), TrustCursor::default());
    roots(&mut at_other, true).await;
    // Left at one replica, acted on by whichever drives, told by both.
    rotate_authority(plane.present_channel(other.address, &operator), Step::Begin).await.unwrap();
    assert_eq!(roots(&mut at_other, true).await.len(), 2);
    until_phase(&plane, &operator, "draining").await;
    let new = plane.present_roots()[0].clone();
    for address in [plane.address(), other.address] {
        until("the new signer at each replica", async || {
            is_below(&renewed(&plane, address, &east.identity).await, &new)
        })
        .await;
    }
    drop(other);
    until("the retirement", async || plane.present_roots() == [new.clone()]).await;
}
