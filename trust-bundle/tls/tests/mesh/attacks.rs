//! Chains that somebody forged, each beside a twin that differs in one thing and is believed.

use std::time::{Duration, SystemTime};

use mesh_tls::{PeerError, Purpose, TrustStore};
use rcgen::{CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe_identity::{CertificateError, IdError, LeafError, SpiffeId, TrustDomainError};

use crate::domain::{Domain, HOUR, authority_params, leaf_params, sign, trusting, uri};

/// How far from a validity's end a certificate is shown.
const STEP: Duration = Duration::from_secs(10);

fn judged(
    trust: &TrustStore,
    chain: &[&CertificateDer<'static>],
    purpose: Purpose,
    now: SystemTime,
) -> Result<SpiffeId, PeerError> {
    let chain: Vec<_> = chain.iter().map(|der| (*der).clone()).collect();
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    trust.verify(&chain, purpose, now)
}

/// `spiffe://east.mesh.example/…` of this many bytes.
fn id_of(bytes: usize) -> String {
    let start = "spiffe://east.mesh.example/";
    format!("{start}{}", "a".repeat(bytes - start.len()))
}

fn named(params: &mut CertificateParams, id: &str) {
    params.subject_alt_names = vec![uri(id)];
}

fn key_usage(params: &mut CertificateParams, critical: bool) {
    params.key_usages.clear();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
    extension.set_criticality(critical);
    params.custom_extensions.push(extension);
}

fn unknown(params: &mut CertificateParams, critical: bool) {
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    extension.set_criticality(critical);
    params.custom_extensions.push(extension);
}

type Change = Box<dyn Fn(&mut CertificateParams)>;

/// What forges a leaf, its twin, and why it is refused.
fn forged_leaves() -> Vec<(Change, Change, LeafError)> {
    let name = |bad: &str, good: &str, error: LeafError| -> (Change, Change, LeafError) {
        let (bad, good) = (bad.to_owned(), good.to_owned());
        (Box::new(move |params| named(params, &bad)), Box::new(move |params| named(params, &good)), error)
    };
    let id = |error: IdError| LeafError::Id(error);
    let cart = "spiffe://east.mesh.example/ns/shop/sa/cart";
    let unknown_oid = CertificateError::UnknownCriticalExtension("1.3.6.1.4.1.99999.1".into());
    vec![
        name("spiffe://east.mesh.example", cart, LeafError::NoPath("spiffe://east.mesh.example".parse().unwrap())),
        name("SPIFFE://east.mesh.example/ns/shop/sa/cart", cart, id(IdError::Scheme)),
        name("spiffe://East.mesh.example/ns/shop/sa/cart", cart, id(TrustDomainError::Character('E').into())),
        name("spiffe://east.mesh.example/ns%2fshop", "spiffe://east.mesh.example/ns/shop", id(IdError::Character('%'))),
        name(
            "spiffe://east.mesh.example/ns/../shop",
            "spiffe://east.mesh.example/ns/...shop",
            id(IdError::DotSegment("..".into())),
        ),
        name(&id_of(2049), &id_of(2048), id(IdError::TooLong(2049))),
        (
            Box::new(|params| key_usage(params, false)),
            Box::new(|params| key_usage(params, true)),
            LeafError::KeyUsageNotCritical,
        ),
        (Box::new(|params| unknown(params, true)), Box::new(|params| unknown(params, false)), unknown_oid.into()),
        (
            Box::new(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            Box::new(|params| params.key_usages.push(KeyUsagePurpose::KeyAgreement)),
            LeafError::SigningKeyUsage("keyCertSign"),
        ),
        (Box::new(|params| params.is_ca = IsCa::NoCa), Box::new(|_| {}), LeafError::NoBasicConstraints),
    ]
}

#[test]
fn a_forged_leaf_is_refused_by_clients_and_servers_and_its_twin_is_not() {
    let east = Domain::new("east.mesh.example");
    let trust = trusting([&east]);
    let now = SystemTime::now();
    for (forge, twin, error) in forged_leaves() {
        for purpose in [Purpose::Client, Purpose::Server] {
            let judge = |change: &Change| {
                let mut params = leaf_params(&east.id("cart"));
                change(&mut params);
                judged(&trust, &[&east.sign(&params).der], purpose, now)
            };
            assert_eq!(judge(&forge), Err(PeerError::Leaf(error.clone())));
            assert!(judge(&twin).is_ok(), "the twin of {error}: {:?}", judge(&twin));
        }
    }
}

#[test]
fn bytes_behind_any_certificate_of_a_chain_are_refused() {
    let east = Domain::new("east.mesh.example");
    let trust = trusting([&east]);
    let (intermediate, issuer) = east.intermediate(|_| {});
    let leaf = sign(&leaf_params(&east.id("cart")), &issuer).der;
    let longer = |der: &CertificateDer<'_>| CertificateDer::from([der.as_ref(), &[0]].concat());
    let judge = |chain: &[&CertificateDer<'static>]| judged(&trust, chain, Purpose::Client, SystemTime::now());
    assert!(judge(&[&leaf, &intermediate]).is_ok());
    let trailing = CertificateError::TrailingData(1);
    assert_eq!(judge(&[&longer(&leaf), &intermediate]), Err(PeerError::Leaf(trailing.clone().into())));
    let refused = judge(&[&leaf, &longer(&intermediate)]);
    let (id, source) = (east.id("cart"), trailing.into());
    assert_eq!(refused, Err(PeerError::Intermediate { id, position: 1, source }));
}

#[test]
fn both_ends_of_every_certificate_s_validity_are_kept() {
    let now = SystemTime::now();
    let (start, end) = (now - HOUR / 2, now + HOUR / 2);
    let cut = |params: &mut CertificateParams| {
        params.not_before = start.into();
        params.not_after = end.into();
    };
    let whole = |_: &mut CertificateParams| {};
    let judge_all = |root: &dyn Fn(&mut CertificateParams), middle: &dyn Fn(&mut CertificateParams), leaf: bool| {
        let east = Domain::with_root("east.mesh.example", root);
        let (intermediate, issuer) = east.intermediate(middle);
        let mut params = leaf_params(&east.id("cart"));
        if leaf {
            cut(&mut params);
        }
        let leaf = sign(&params, &issuer).der;
        let trust = trusting([&east]);
        let at = |time| judged(&trust, &[&leaf, &intermediate], Purpose::Server, time);
        let inside = [at(start + STEP), at(end - STEP)];
        assert!(inside.iter().all(Result::is_ok), "{inside:?}");
        (at(start - STEP), at(end + STEP), east.id("cart"))
    };
    let (early, late, id) = judge_all(&whole, &whole, true);
    assert_eq!((early, late), (Err(PeerError::NotYetValid(id.clone())), Err(PeerError::Expired(id))), "the leaf's");
    let (early, late, id) = judge_all(&whole, &cut, false);
    let expected = (Err(PeerError::NotYetValid(id.clone())), Err(PeerError::Expired(id)));
    assert_eq!((early, late), expected, "the intermediate's");
    let (early, late, id) = judge_all(&cut, &whole, false);
    assert_eq!((early, late), (Err(PeerError::NoRoots(id.clone())), Err(PeerError::NoRoots(id))), "the root's");
}

#[test]
fn a_cross_signed_root_is_believed_where_its_own_is_published_and_nowhere_else() {
    let west = Domain::new("west.mesh.example");
    let key = KeyPair::generate().unwrap();
    let params = authority_params(&"east.mesh.example".parse().unwrap());
    let root = params.self_signed(&key).unwrap().der().clone();
    let crossed = params.signed_by(&key, &west.issuer).unwrap().der().clone();
    let east = Domain { name: "east.mesh.example".parse().unwrap(), root, issuer: Issuer::new(params, key) };
    let leaf = east.leaf("cart").der;
    let chain = [&leaf, &crossed];
    let now = SystemTime::now();
    assert_eq!(judged(&trusting([&east, &west]), &chain, Purpose::Client, now), Ok(east.id("cart")));
    let other_root = Domain::new("east.mesh.example");
    let refused = judged(&trusting([&other_root, &west]), &chain, Purpose::Client, now);
    assert_eq!(refused, Err(PeerError::UnknownIssuer(east.id("cart"))));
}
