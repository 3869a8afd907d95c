//! A member puts its own bundle, and only newer ones.

use std::time::{Duration, SystemTime};

use federation::RecordKey;
use federation_api::client::trust::{TrustCursor, leave, publish_bundle, renew};
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use mesh_tls::new_key_and_csr;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use spiffe_identity::TrustDomain;
use tonic::{Code, Status};

use crate::cluster::{Attempt, Cluster, bundle_payload, new_root};
use crate::plane::{Plane, Shut, assert_refused};

const KEY: &str = "bundles/east.mesh.example";

async fn put(plane: &Plane, cluster: &Cluster, bundle: &Signed) -> Result<(), Status> {
    publish_bundle(plane.channel(Some(&cluster.identity)), bundle.clone()).await
}

#[tokio::test]
async fn a_newer_bundle_is_stored_and_told() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let mut watcher = plane.watch(&west.identity, TrustCursor::default());
    assert!(watcher.update().await.bundles.contains(&east.bundle));
    let newer = east.bundle(11, 2);
    put(&plane, &east, &newer).await.unwrap();
    assert_eq!(plane.stored().await[KEY], newer.encode_to_vec());
    assert_eq!(watcher.update().await.bundles, [newer]);
}

#[tokio::test]
async fn what_is_not_newer_is_refused() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let current = east.bundle(20, 5);
    put(&plane, &east, &current).await.unwrap();
    let before = plane.store.activity().revision;
    put(&plane, &east, &current).await.unwrap();
    assert_eq!(plane.store.activity().revision, before, "the same again changes nothing");
    for (bundle, words) in [
        (east.bundle.clone(), "record sequence 10 is not above 20"),
        (east.bundle(19, 6), "record sequence 19 is not above 20"),
        (east.bundle(20, 6), "record sequence 20 is not above 20"),
        (east.bundle(21, 4), "spiffe_sequence 4 is not above 5"),
        (east.bundle(21, 5), "spiffe_sequence 5 is not above 5"),
    ] {
        assert_refused(put(&plane, &east, &bundle).await, Code::FailedPrecondition, words);
        assert_eq!(plane.stored().await[KEY], current.encode_to_vec(), "{words}");
    }
    put(&plane, &east, &east.bundle(21, 6)).await.unwrap();
}

#[tokio::test]
async fn what_is_not_the_callers_own_bundle_is_refused() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let before = plane.stored().await;
    // A cluster that relays another's word, and one that names another's trust domain in its own word.
    let refused = put(&plane, &west, &east.bundle(11, 2)).await;
    assert_refused(refused, Code::Unauthenticated, "signature");
    let trust_domain = "east.mesh.example".parse().unwrap();
    let of_east = west.say(11, &RecordKey::Bundle, &bundle_payload(&new_root(&trust_domain), &trust_domain, 2));
    assert_refused(put(&plane, &west, &of_east).await, Code::InvalidArgument, "not the cluster's own");
    let gateways = east.say(11, &RecordKey::Gateways, &Payload::Gateways(Vec::new()));
    assert_refused(put(&plane, &east, &gateways).await, Code::InvalidArgument, "gateways");
    let (trust_domain, jwks) = ("east.mesh.example".to_owned(), b"{}".to_vec());
    let keyless = east.say(11, &RecordKey::Bundle, &Payload::Bundle { trust_domain, jwks });
    assert_refused(put(&plane, &east, &keyless).await, Code::InvalidArgument, "no \"keys\"");
    let by_federator = publish_bundle(plane.channel(Some(&plane.federator())), east.bundle(11, 2)).await;
    assert_refused(by_federator, Code::PermissionDenied, "speaks for no cluster");
    assert_eq!(plane.stored().await, before);
}

#[tokio::test]
async fn a_replaced_membership_has_no_say_over_its_successors_bundle() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let replaced = plane.join_with(&plane.token("east", now)).await;
    let successor = plane.join_with(&plane.token("east", now + Duration::from_millis(1))).await;
    let refused = put(&plane, &replaced, &replaced.bundle(u64::MAX, u64::MAX)).await;
    assert_refused(refused, Code::PermissionDenied, "was replaced by generation");
    assert_eq!(plane.stored().await[KEY], successor.bundle.encode_to_vec());
    // The successor's certificate may be in the wrong hands as well: it takes the publish key.
    let refused = put(&plane, &successor, &replaced.bundle(u64::MAX, u64::MAX)).await;
    assert_refused(refused, Code::Unauthenticated, "signature");
    put(&plane, &successor, &successor.bundle(11, 2)).await.unwrap();
}

#[tokio::test]
async fn a_race_between_bundles_ends_with_the_newest() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let bundles: Vec<_> = (11..31).map(|sequence| east.bundle(sequence, sequence)).collect();
    let outcomes = futures_util::future::join_all(bundles.iter().map(|bundle| put(&plane, &east, bundle))).await;
    for outcome in outcomes.iter().filter(|outcome| outcome.is_err()) {
        assert_refused(outcome.clone(), Code::FailedPrecondition, "not above");
    }
    assert!(outcomes.last().unwrap().is_ok());
    assert_eq!(plane.stored().await[KEY], bundles.last().unwrap().encode_to_vec());
}

#[tokio::test]
async fn who_is_shut_out_puts_no_bundle() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    plane.store_deny_list(1, &[Shut::Cluster("east")]).await;
    assert_refused(put(&plane, &east, &east.bundle(11, 2)).await, Code::PermissionDenied, "quarantined");
    plane.store_deny_list(2, &[Shut::Generation("east", u64::MAX)]).await;
    assert_refused(put(&plane, &east, &east.bundle(11, 2)).await, Code::PermissionDenied, "evicted");
    assert_eq!(plane.stored().await[KEY], east.bundle.encode_to_vec());
}

#[tokio::test]
async fn a_member_that_calls_over_and_over_is_told_to_wait_and_others_are_not() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    watcher.update().await;
    let channel = plane.channel(Some(&east.identity));
    for _ in 0..100 {
        publish_bundle(channel.clone(), east.bundle.clone()).await.unwrap();
    }
    // Else it could push everything that it did before out of the audit record.
    let refused = publish_bundle(channel.clone(), east.bundle(11, 2)).await;
    assert_refused(refused, Code::ResourceExhausted, "too often");
    let refused = renew(channel, new_key_and_csr().unwrap().1).await;
    assert_refused(refused, Code::ResourceExhausted, "too often");
    let told = west.bundle(11, 2);
    put(&plane, &west, &told).await.unwrap();
    assert_eq!(watcher.update().await.bundles, [told], "it is told what others do as ever");
    // An operator who waits for a rotation asks over and over.
    let (operations, csr) = (plane.operations(), new_key_and_csr().unwrap().1);
    for _ in 0..101 {
        renew(operations.clone(), csr.clone()).await.unwrap();
    }
    let audit = plane.audit().await;
    assert!(audit.iter().any(|entry| entry.action == "bundle.put" && entry.refused.contains("too often")));
}

#[tokio::test]
async fn a_root_key_is_one_clusters_only() {
    let plane = Plane::start().await;
    let [shared, own] = [(); 2].map(|()| KeyPair::generate().unwrap());
    let with_key = |attempt: &Attempt, key: &KeyPair| {
        let trust_domain = format!("{}.mesh.example", attempt.speaker.cluster).parse().unwrap();
        attempt.sign(&RecordKey::Bundle, &bundle_payload(&root_with(&trust_domain, key), &trust_domain, 1))
    };
    let mut east = Attempt::new(&plane.token("east", SystemTime::now()));
    east.bundle = with_key(&east, &shared);
    let response = plane.send(&east).await.unwrap();
    let east = Cluster::joined(east, response);
    // At the join, which leaves the token as it was.
    let mut west = Attempt::new(&plane.token("west", SystemTime::now()));
    west.bundle = with_key(&west, &shared);
    let refused = plane.send(&west).await;
    assert_refused(refused, Code::FailedPrecondition, "holds a root's key of east.mesh.example");
    west.bundle = with_key(&west, &own);
    let response = plane.send(&west).await.unwrap();
    let west = Cluster::joined(west, response);
    // And later on.
    let trust_domain = "west.mesh.example".parse().unwrap();
    let say = |sequence, key| {
        let payload = bundle_payload(&root_with(&trust_domain, key), &trust_domain, sequence);
        west.say(10 + sequence, &RecordKey::Bundle, &payload)
    };
    let refused = put(&plane, &west, &say(2, &shared)).await;
    assert_refused(refused, Code::FailedPrecondition, "holds a root's key of east.mesh.example");
    put(&plane, &west, &say(3, &own)).await.unwrap();
    // It is nobody's once its cluster has left.
    leave(plane.channel(Some(&east.identity)), east.departure()).await.unwrap();
    put(&plane, &west, &say(4, &shared)).await.unwrap();
}

/// A root of this key.
fn root_with(trust_domain: &TrustDomain, key: &KeyPair) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, trust_domain.as_str());
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.self_signed(key).unwrap().der().clone()
}
