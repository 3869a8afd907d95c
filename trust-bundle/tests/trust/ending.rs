//! How a membership goes on, and how it ends.

use std::time::{Duration, SystemTime};

use federation::RecordKey;
use federation_api::client::trust::operations::{list_members, put_deny_list};
use federation_api::client::trust::{TrustCursor, leave, list_watchers, publish_bundle, publish_member, renew};
use federation_api::payload::Payload;
use federation_api::verify::verify_member;
use mesh_tls::new_key_and_csr;
use prost::Message;
use tonic::Code;

use crate::cluster::{Attempt, Cluster};
use crate::plane::{Plane, Shut, assert_ended, assert_refused, domain};

fn csr() -> Vec<u8> {
    new_key_and_csr().unwrap().1
}

#[tokio::test]
async fn a_lost_answer_does_not_burn_the_token() {
    let plane = Plane::start().await;
    let token = plane.token("east", SystemTime::now());
    let mut attempt = Attempt::new(&token);
    plane.send(&attempt).await.unwrap();
    let again = plane.send(&attempt).await.unwrap();
    let before = plane.stored().await;
    // Everybody in the federation knows the membership and the bundle: the key of the request makes the difference.
    let own = std::mem::replace(&mut attempt.csr, csr());
    assert_refused(plane.send(&attempt).await, Code::FailedPrecondition, "used already");
    attempt.csr = own;
    // Another publish key is another membership.
    assert_refused(plane.send(&Attempt::new(&token)).await, Code::FailedPrecondition, "used already");
    assert_eq!(plane.stored().await, before);
    let east = Cluster::joined(attempt, again);
    publish_bundle(plane.channel(Some(&east.identity)), east.bundle(11, 2)).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_given_again_only_while_the_membership_stands() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let attempt = Attempt::new(&plane.token("east", now));
    plane.send(&attempt).await.unwrap();
    put_deny_list(plane.operations(), plane.deny_list(1, &[Shut::Cluster("east")])).await.unwrap();
    assert_refused(plane.send(&attempt).await, Code::PermissionDenied, "quarantined");
    put_deny_list(plane.operations(), plane.deny_list(2, &[])).await.unwrap();
    plane.send(&attempt).await.unwrap();
    plane.join_with(&plane.token("east", now + Duration::from_millis(1))).await;
    assert_refused(plane.send(&attempt).await, Code::FailedPrecondition, "used already");
}

#[tokio::test]
async fn a_certificate_of_a_replaced_membership_is_good_for_nothing() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let lost = plane.join_with(&plane.token("east", now)).await;
    let mut watching = plane.watch(&lost.identity, TrustCursor::default());
    watching.update().await;
    // The cluster lost its disk and joins with a new token.
    let east = plane.join_with(&plane.token("east", now + Duration::from_millis(1))).await;
    let words = format!("was replaced by generation {}", east.generation());
    assert_ended(&watching.end().await, Code::PermissionDenied, &words);
    let of_lost = || plane.channel(Some(&lost.identity));
    assert_refused(renew(of_lost(), csr()).await, Code::PermissionDenied, &words);
    assert_refused(list_watchers(of_lost()).await, Code::PermissionDenied, &words);
    assert_refused(leave(of_lost(), lost.departure()).await, Code::PermissionDenied, &words);
    // A renewal does not launder it, a certificate without a word of its membership neither.
    let unmarked = plane.identity(&east.id());
    let refused = renew(plane.channel(Some(&unmarked)), csr()).await;
    assert_refused(refused, Code::PermissionDenied, "issued for no membership");
    renew(plane.channel(Some(&east.identity)), csr()).await.unwrap();
    plane.watch(&east.identity, TrustCursor::default()).update().await;
}

#[tokio::test]
async fn a_member_leaves_by_its_own_word_and_comes_back_with_a_new_token() {
    let plane = Plane::start().await;
    let token = plane.token("east", SystemTime::now());
    let (east, west) = (plane.join_with(&token).await, plane.join("west").await);
    let mut of_east = plane.watch(&east.identity, TrustCursor::default());
    let mut of_west = plane.watch(&west.identity, TrustCursor::default());
    of_east.update().await;
    let before = of_west.update().await;
    leave(plane.channel(Some(&east.identity)), east.departure()).await.unwrap();

    let told = of_west.update().await;
    assert!(told.members.is_empty() && told.bundles.is_empty());
    let member = verify_member(&plane.root.public(), &domain(), &east.member, None).unwrap();
    assert_eq!(told.departures.len(), 1);
    member.verify_departure(&told.departures[0]).unwrap();
    assert_ended(&of_east.end().await, Code::PermissionDenied, "has left");
    assert_eq!(list_members(plane.operations()).await.unwrap().len(), 1);

    let plane = plane.restart().await;
    let full = plane.watch(&west.identity, TrustCursor::default()).update().await;
    assert_eq!((full.members.as_slice(), &full.departures), (std::slice::from_ref(&west.member), &told.departures));
    let resumed = plane.watch(&west.identity, before.cursor()).update().await;
    assert!(!resumed.full);
    assert_eq!(resumed.departures, told.departures);
    let refused = renew(plane.channel(Some(&east.identity)), csr()).await;
    assert_refused(refused, Code::PermissionDenied, "has left: it takes a new token");
    let older = plane.token("east", SystemTime::now() - Duration::from_secs(60));
    assert_refused(plane.send(&Attempt::new(&older)).await, Code::FailedPrecondition, "generation");
    assert_refused(plane.send(&Attempt::new(&token)).await, Code::FailedPrecondition, "used already");
    let back = plane.join("east").await;
    let full = plane.watch(&west.identity, TrustCursor::default()).update().await;
    assert!(full.departures.is_empty() && full.members.contains(&back.member));
}

#[tokio::test]
async fn nobody_but_the_member_itself_says_that_it_leaves() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let before = plane.stored().await;
    let of_east = || plane.channel(Some(&east.identity));
    let other_key = east.say(100, &RecordKey::Gateways, &Payload::Withdrawal);
    for (channel, statement, code, words) in [
        (of_east(), west.departure(), Code::Unauthenticated, "signature"),
        (of_east(), other_key, Code::InvalidArgument, "gateways"),
        (plane.channel(Some(&west.identity)), east.departure(), Code::Unauthenticated, "signature"),
        (plane.operations(), east.departure(), Code::PermissionDenied, "speaks for no cluster"),
        (plane.channel(None), east.departure(), Code::Unauthenticated, "client certificate"),
    ] {
        assert_refused(leave(channel, statement).await, code, words);
        assert_eq!(plane.stored().await, before, "{words}");
    }
    put_deny_list(plane.operations(), plane.deny_list(1, &[Shut::Cluster("east")])).await.unwrap();
    assert_refused(leave(of_east(), east.departure()).await, Code::PermissionDenied, "quarantined");
    put_deny_list(plane.operations(), plane.deny_list(2, &[])).await.unwrap();
    leave(of_east(), east.departure()).await.unwrap();
}

#[tokio::test]
async fn an_evicted_cluster_is_no_member_and_comes_back_with_a_new_token() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let (token, unused) = (plane.token("east", now), plane.token("east", now));
    let (east, west) = (plane.join_with(&token).await, plane.join("west").await);
    let list = plane.deny_list(1, &[Shut::Generation("east", token.generation())]);
    put_deny_list(plane.operations(), list).await.unwrap();
    let members = list_members(plane.operations()).await.unwrap();
    assert_eq!(members.iter().map(|it| it.member.clone().unwrap()).collect::<Vec<_>>(), [west.member]);
    let stored = plane.stored().await;
    assert!(!stored.contains_key("members/east") && !stored.contains_key("bundles/east.mesh.example"));
    let refused = renew(plane.channel(Some(&east.identity)), csr()).await;
    assert_refused(refused, Code::PermissionDenied, "was evicted: it takes a new token");
    assert_refused(plane.send(&Attempt::new(&unused)).await, Code::PermissionDenied, "evicted");
    // A restored store that has the member still brings nobody back.
    plane.put("members/east", east.member.encode_to_vec()).await;
    let plane = plane.restart().await;
    assert_eq!(list_members(plane.operations()).await.unwrap().len(), 1);
    let back = plane.join_with(&plane.token("east", now + Duration::from_millis(1))).await;
    assert_eq!(list_members(plane.operations()).await.unwrap().len(), 2);
    renew(plane.channel(Some(&back.identity)), csr()).await.unwrap();
    let refused = renew(plane.channel(Some(&east.identity)), csr()).await;
    assert_refused(refused, Code::PermissionDenied, "was evicted");
}

#[tokio::test]
async fn a_publish_key_is_replaced_by_the_one_before_it() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let (first, root) = (east.member.clone(), plane.root.public());
    let mut watcher = plane.watch(&west.identity, TrustCursor::default());
    watcher.update().await;
    let identity = east.identity.clone();
    let of_east = || plane.channel(Some(&identity));
    let east = east.with_next_key(50, &root);
    let epoch = publish_member(of_east(), east.member.clone()).await.unwrap();
    let told = watcher.update().await;
    assert_eq!((told.epoch, told.members.as_slice()), (epoch, std::slice::from_ref(&east.member)));
    assert_eq!(publish_member(of_east(), east.member.clone()).await.unwrap(), epoch, "the same again");
    publish_bundle(of_east(), east.bundle(51, 2)).await.unwrap();

    let west = west.with_next_key(50, &root);
    let mut forged = east.member.clone();
    forged.grants.push(west.member.grants[1].clone());
    let mut other = first.clone();
    other.grants.push(forged.grants[2].clone());
    for (member, code, words) in [
        (first, Code::FailedPrecondition, "does not follow"),
        (forged, Code::Unauthenticated, "signature"),
        (other, Code::Unauthenticated, "signature"),
        (west.member.clone(), Code::InvalidArgument, "not the caller's own"),
    ] {
        assert_refused(publish_member(of_east(), member).await, code, words);
        assert_eq!(plane.stored().await["members/east"], east.member.encode_to_vec(), "{words}");
    }
    let third = east.with_next_key(60, &root);
    publish_member(of_east(), third.member.clone()).await.unwrap();
}
