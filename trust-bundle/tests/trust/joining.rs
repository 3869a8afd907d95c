//! A token becomes a membership, once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use federation::RecordKey;
use federation_api::client::trust::TrustCursor;
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, PublishKeyGrant, Signed};
use federation_api::signing::{MembershipRoot, PublishKey};
use federation_api::token::JoinToken;
use prost::Message;
use tonic::Code;

use crate::cluster::{Attempt, Cluster, bundle_payload, control_plane, new_root};
use crate::plane::{HOUR, Plane, Shut, assert_refused, domain, token_request};

#[tokio::test]
async fn a_token_makes_a_member_whose_certificate_is_its_control_planes() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    assert_eq!(east.id(), control_plane("east"));
    assert_eq!(east.federation_roots, [plane.authority.root().to_vec()]);
    let left = east.identity.not_after().unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left <= 24 * HOUR && left > 23 * HOUR, "{left:?}");
    let stored = plane.stored().await;
    assert_eq!(stored["members/east"], east.member.encode_to_vec());
    assert_eq!(stored["bundles/east.mesh.example"], east.bundle.encode_to_vec());
    assert_eq!(stored.len(), 3, "and its token");
    // The answer comes when this replica knows the member: its next call is not refused.
    let update = plane.watch(&east.identity, TrustCursor::default()).update().await;
    assert_eq!(update.members, [east.member]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_joiners_with_one_token_one_wins() {
    let plane = Plane::start().await;
    let token = plane.token("east", SystemTime::now());
    let attempts: Vec<_> = (0..100).map(|_| Attempt::new(&token)).collect();
    let outcomes = futures_util::future::join_all(attempts.iter().map(|attempt| plane.send(attempt))).await;
    let mut winners = Vec::new();
    for (attempt, outcome) in attempts.into_iter().zip(outcomes) {
        match outcome {
            Ok(response) => winners.push(Cluster::joined(attempt, response)),
            refused => assert_refused(refused, Code::FailedPrecondition, "used already"),
        }
    }
    let [winner] = winners.as_slice() else { panic!("{} winners", winners.len()) };
    assert_eq!(winner.id(), control_plane("east"));
    let stored = plane.stored().await;
    assert_eq!(stored["members/east"], winner.member.encode_to_vec());
    assert_eq!(stored["bundles/east.mesh.example"], winner.bundle.encode_to_vec());
}

#[tokio::test]
async fn a_token_that_is_void_makes_no_member() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let refused = async |what: &str, token: &JoinToken, code, words| {
        assert_refused(plane.send(&Attempt::new(token)).await, code, words);
        assert_eq!(plane.stored().await, BTreeMap::new(), "{what}");
    };
    let expired = plane.token("east", now - HOUR);
    refused("expired", &expired, Code::FailedPrecondition, "expired").await;
    let mut request = token_request("east", now);
    request.federation = "other.example".parse().unwrap();
    let other_federation = JoinToken::create(&plane.root, request).unwrap();
    refused("another federation", &other_federation, Code::FailedPrecondition, "other.example").await;
    let other_root = MembershipRoot::generate().unwrap();
    let other_root = JoinToken::create(&other_root, token_request("east", now)).unwrap();
    refused("another root", &other_root, Code::Unauthenticated, "signature of delegation").await;
}

#[tokio::test]
async fn a_membership_that_was_tampered_with_is_refused() {
    type Spoil = fn(&mut Member, &Plane);
    let cases: [(&str, Spoil, Code, &str); 9] = [
        ("no delegation", |it, _| it.delegation = None, Code::InvalidArgument, "delegation is missing"),
        (
            "a changed delegation",
            |it, _| rename(it.delegation.as_mut().unwrap()),
            Code::Unauthenticated,
            "signature of delegation",
        ),
        (
            "a cut signature",
            |it, _| it.delegation.as_mut().unwrap().signature.truncate(63),
            Code::Unauthenticated,
            "signature of delegation",
        ),
        (
            "another token's delegation",
            |it, plane| it.delegation = Attempt::new(&plane.token("west", SystemTime::now())).member.delegation,
            Code::Unauthenticated,
            "signature",
        ),
        ("no grant", |it, _| it.grants.clear(), Code::InvalidArgument, "grant"),
        ("a changed grant", |it, _| rename(&mut it.grants[0]), Code::Unauthenticated, "signature"),
        (
            "a grant under a key of its own",
            |it, _| it.grants[0] = PublishKey::generate().unwrap().grant(&grant_of(it)),
            Code::Unauthenticated,
            "signature",
        ),
        ("the grant twice", |it, _| it.grants.push(it.grants[0].clone()), Code::Unauthenticated, "signature"),
        ("nothing", |it, _| *it = Member::default(), Code::InvalidArgument, "delegation is missing"),
    ];
    let plane = Plane::start().await;
    for (what, spoil, code, words) in cases {
        let mut attempt = Attempt::new(&plane.token("east", SystemTime::now()));
        spoil(&mut attempt.member, &plane);
        assert_refused(plane.send(&attempt).await, code, words);
        assert_eq!(plane.stored().await, BTreeMap::new(), "{what}");
    }
}

#[tokio::test]
async fn a_join_takes_one_grant_made_between_the_token_and_now() {
    let plane = Plane::start().await;
    let token = plane.token("east", SystemTime::now());
    let refused = async |what: &str, spoil: &dyn Fn(&mut Attempt), words| {
        let mut attempt = Attempt::new(&token);
        spoil(&mut attempt);
        assert_refused(plane.send(&attempt).await, Code::InvalidArgument, words);
        assert_eq!(plane.stored().await, BTreeMap::new(), "{what}");
    };
    let joined = |at: SystemTime| {
        let token = &token;
        move |it: &mut Attempt| it.member = token.member(&it.speaker.key.public(), at)
    };
    // Receivers hold creation times to it, and the oldest export wins a conflict.
    refused("long ago", &joined(SystemTime::UNIX_EPOCH), "joined_at_ms").await;
    refused("before the token", &joined(SystemTime::now() - Duration::from_secs(600)), "joined_at_ms").await;
    refused("in the future", &joined(SystemTime::now() + Duration::from_secs(600)), "joined_at_ms").await;
    let rotated = |it: &mut Attempt| {
        let next = PublishKey::generate().unwrap();
        let grant = PublishKeyGrant {
            publish_public_key: next.public().as_bytes().to_vec(),
            after_sequence: 5,
            ..grant_of(&it.member)
        };
        it.member.grants.push(it.speaker.key.grant(&grant));
        it.speaker.key = next;
        it.bundle = it.sign(&RecordKey::Bundle, &bundle_payload(&new_root(&own("east")), &own("east"), 1));
    };
    refused("a second grant", &rotated, "one grant, not 2").await;
    plane.join_with(&token).await;
}

#[tokio::test]
async fn a_request_that_cannot_succeed_does_not_use_the_token_up() {
    type Spoil = fn(&mut Attempt);
    let cases: [(&str, Spoil, Code, &str); 9] = [
        ("no request", |it| it.csr.clear(), Code::InvalidArgument, "csr: "),
        ("garbage", |it| it.csr = vec![0x30; 200], Code::InvalidArgument, "csr: "),
        ("a request under another key", |it| *it.csr.last_mut().unwrap() ^= 1, Code::InvalidArgument, "csr: "),
        ("no bundle", |it| it.bundle = Signed::default(), Code::Unauthenticated, "bundle: "),
        (
            "a bundle under another key",
            |it| it.bundle.signature = vec![7; 64].into(),
            Code::Unauthenticated,
            "bundle: the record's signature",
        ),
        (
            "a bundle of another cluster",
            |it| it.bundle = it.sign(&RecordKey::Bundle, &bundle_payload(&new_root(&own("west")), &own("west"), 1)),
            Code::InvalidArgument,
            "west.mesh.example",
        ),
        (
            "another cluster's root",
            |it| it.bundle = it.sign(&RecordKey::Bundle, &of_root(&new_root(&own("west")), "east.mesh.example")),
            Code::InvalidArgument,
            "bundle: keys[0]",
        ),
        (
            "no bundle but gateways",
            |it| it.bundle = it.sign(&RecordKey::Gateways, &Payload::Gateways(Vec::new())),
            Code::InvalidArgument,
            "\"gateways\"",
        ),
        (
            "a bundle for all of the disk",
            |it| {
                let (trust_domain, jwks) = ("east.mesh.example".to_owned(), vec![b' '; 100_000]);
                it.bundle = it.sign(&RecordKey::Bundle, &Payload::Bundle { trust_domain, jwks });
            },
            Code::InvalidArgument,
            "allowed are 65536",
        ),
    ];
    let plane = Plane::start().await;
    let token = plane.token("east", SystemTime::now());
    for (what, spoil, code, words) in cases {
        let mut attempt = Attempt::new(&token);
        spoil(&mut attempt);
        assert_refused(plane.send(&attempt).await, code, words);
        assert_eq!(plane.stored().await, BTreeMap::new(), "{what}");
    }
    assert_eq!(plane.join_with(&token).await.id(), control_plane("east"));
}

#[tokio::test]
async fn only_a_higher_generation_replaces_a_member() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let (first, second) = (plane.token("east", now), plane.token("east", now));
    let (older, newer) = (plane.token("east", now - HOUR / 2), plane.token("east", now + Duration::from_millis(1)));
    let member = plane.join_with(&first).await;
    for (token, what) in [(&first, "used already"), (&second, "generation"), (&older, "generation")] {
        assert_refused(plane.send(&Attempt::new(token)).await, Code::FailedPrecondition, what);
        assert_eq!(plane.stored().await["members/east"], member.member.encode_to_vec());
    }
    let successor = plane.join_with(&newer).await;
    let stored = plane.stored().await;
    assert_eq!(stored["members/east"], successor.member.encode_to_vec());
    assert_eq!(stored["bundles/east.mesh.example"], successor.bundle.encode_to_vec());
}

#[tokio::test]
async fn who_is_shut_out_cannot_join_and_keeps_the_token() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let token = plane.token("east", now);
    plane.store_deny_list(1, &[Shut::Cluster("east")]).await;
    assert_refused(plane.send(&Attempt::new(&token)).await, Code::PermissionDenied, "quarantined");
    plane.store_deny_list(2, &[Shut::Generation("east", token.generation())]).await;
    assert_refused(plane.send(&Attempt::new(&token)).await, Code::PermissionDenied, "evicted");
    let nobody_joined: Vec<_> = plane.stored().await.into_keys().collect();
    assert_eq!(nobody_joined, ["quarantine"]);
    assert_eq!(plane.join("west").await.id(), control_plane("west"), "others are not concerned");
    // An evicted cluster comes back with a new token.
    let newer = plane.token("east", now + Duration::from_millis(1));
    assert_eq!(plane.join_with(&newer).await.id(), control_plane("east"));
    // A released one with the token it has.
    let token = plane.token("north", now);
    plane.store_deny_list(3, &[Shut::Cluster("north")]).await;
    assert_refused(plane.send(&Attempt::new(&token)).await, Code::PermissionDenied, "quarantined");
    plane.store_deny_list(4, &[]).await;
    assert_eq!(plane.join_with(&token).await.id(), control_plane("north"));
}

fn own(cluster: &str) -> spiffe_identity::TrustDomain {
    domain().trust_domain(&cluster.parse().unwrap()).parse().unwrap()
}

/// A root under another trust domain's name.
fn of_root(root: &rustls_pki_types::CertificateDer<'static>, trust_domain: &str) -> Payload {
    let Payload::Bundle { jwks, .. } = bundle_payload(root, &own("west"), 1) else { unreachable!() };
    Payload::Bundle { trust_domain: trust_domain.to_owned(), jwks }
}

fn grant_of(member: &Member) -> PublishKeyGrant {
    PublishKeyGrant::decode(member.grants[0].message.as_ref()).unwrap()
}

/// Changes the signed bytes: east becomes west.
fn rename(signed: &mut Signed) {
    let mut message = signed.message.to_vec();
    let at = message.windows(4).position(|part| part == b"east").unwrap();
    message[at..at + 4].copy_from_slice(b"west");
    signed.message = message.into();
}
