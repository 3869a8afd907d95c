//! What the verifier says of chains, without sockets.

use std::time::{Duration, SystemTime};

use mesh_tls::{DenyList, ExpectedPeer, PeerError, Purpose, TrustStore, new_key_and_csr};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe_identity::{AuthorityError, LeafError, SpiffeId};

use crate::domain::{Domain, HOUR, authority_params, leaf_params, sign, trusting, uri};

fn judged_at(trust: &TrustStore, chain: &[&CertificateDer<'static>], now: SystemTime) -> Result<SpiffeId, PeerError> {
    let chain: Vec<_> = chain.iter().map(|der| (*der).clone()).collect();
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let as_client = trust.verify(&chain, Purpose::Client, now);
    assert_eq!(as_client, trust.verify(&chain, Purpose::Server, now), "both roles judge alike");
    as_client
}

fn judged(trust: &TrustStore, chain: &[&CertificateDer<'static>]) -> Result<SpiffeId, PeerError> {
    judged_at(trust, chain, SystemTime::now())
}

#[test]
fn a_leaf_is_judged_by_the_roots_of_its_own_trust_domain() {
    let (east, west) = (Domain::new("east.mesh.example"), Domain::new("west.mesh.example"));
    let trust = trusting([&east, &west]);
    assert_eq!(judged(&trust, &[&east.leaf("cart").der]), Ok(east.id("cart")));
    assert_eq!(judged(&trust, &[&west.leaf("cart").der]), Ok(west.id("cart")));
    // West's identity signed by east's root, which is trusted, though not for west.
    let forged = east.sign(&leaf_params(&west.id("cart")));
    assert_eq!(judged(&trust, &[&forged.der]), Err(PeerError::UnknownIssuer(west.id("cart"))));
    assert_eq!(judged(&trust, &[&forged.der, &east.root]), Err(intermediate_of(&west, &east, "cart")));
}

/// The second certificate names `found` where `expected` was to sign.
fn intermediate_of(expected: &Domain, found: &Domain, service_account: &str) -> PeerError {
    let (id, expected, found) = (expected.id(service_account), expected.name.clone(), found.name.clone());
    PeerError::Intermediate { id, position: 1, source: AuthorityError::TrustDomain { expected, found } }
}

#[test]
fn a_root_cross_signed_by_another_trust_domain_gains_nothing() {
    let (east, west) = (Domain::new("east.mesh.example"), Domain::new("west.mesh.example"));
    let east_key = KeyPair::generate().unwrap();
    let params = authority_params(&east.name);
    let crossed = params.signed_by(&east_key, &west.issuer).unwrap().der().clone();
    let east_signer = Issuer::new(params, east_key);
    let as_west = sign(&leaf_params(&west.id("cart")), &east_signer);
    assert_eq!(judged(&trusting([&west]), &[&as_west.der, &crossed]), Err(intermediate_of(&west, &east, "cart")));
    let as_east = sign(&leaf_params(&east.id("cart")), &east_signer);
    let west_alone = judged(&trusting([&west]), &[&as_east.der, &crossed]);
    assert_eq!(west_alone, Err(PeerError::UnknownTrustDomain(east.id("cart"))));
}

#[test]
fn a_trust_domain_without_bundle_roots_or_valid_roots_has_no_peers() {
    let east = Domain::new("east.mesh.example");
    let leaf = east.leaf("cart");
    let trust = TrustStore::new();
    assert_eq!(judged(&trust, &[&leaf.der]), Err(PeerError::UnknownTrustDomain(east.id("cart"))));
    trust.insert(east.bundle_of([]));
    assert_eq!(judged(&trust, &[&leaf.der]), Err(PeerError::NoRoots(east.id("cart"))));
    trust.insert(east.bundle());
    assert!(judged(&trust, &[&leaf.der]).is_ok());
    trust.remove(&east.name);
    assert_eq!(judged(&trust, &[&leaf.der]), Err(PeerError::UnknownTrustDomain(east.id("cart"))));
}

#[test]
fn validity_ends_are_kept_to_the_second() {
    let east = Domain::new("east.mesh.example");
    let now = SystemTime::now();
    let second = Duration::from_secs(1);
    let mut params = leaf_params(&east.id("cart"));
    params.not_before = now.into();
    params.not_after = (now + HOUR).into();
    let leaf = east.sign(&params);
    let trust = trusting([&east]);
    let at = |time| judged_at(&trust, &[&leaf.der], time);
    assert_eq!(at(now - 10 * second), Err(PeerError::NotYetValid(east.id("cart"))));
    assert!(at(now + 10 * second).is_ok());
    assert!(at(now + HOUR - 10 * second).is_ok());
    assert_eq!(at(now + HOUR + 10 * second), Err(PeerError::Expired(east.id("cart"))));
}

#[test]
fn an_expired_root_signs_for_nobody_and_the_others_still_do() {
    let now = SystemTime::now();
    let old = Domain::with_root("east.mesh.example", |params| params.not_after = (now + HOUR / 4).into());
    let new = Domain::new("east.mesh.example");
    let trust = TrustStore::new();
    trust.insert(old.bundle_of([old.root.clone(), new.root.clone()]));
    let (by_old, by_new) = (old.leaf("cart"), new.leaf("cart"));
    assert!(judged(&trust, &[&by_old.der]).is_ok() && judged(&trust, &[&by_new.der]).is_ok());
    let later = now + HOUR / 2;
    assert_eq!(judged_at(&trust, &[&by_old.der], later), Err(PeerError::UnknownIssuer(old.id("cart"))));
    assert!(judged_at(&trust, &[&by_new.der], later).is_ok());
    trust.insert(old.bundle());
    assert_eq!(judged_at(&trust, &[&by_old.der], later), Err(PeerError::NoRoots(old.id("cart"))));
}

#[test]
fn intermediates_are_accepted_when_each_may_sign() {
    let east = Domain::new("east.mesh.example");
    let trust = trusting([&east]);
    let judge = |change: fn(&mut CertificateParams)| {
        let (intermediate, issuer) = east.intermediate(change);
        let leaf = sign(&leaf_params(&east.id("cart")), &issuer);
        judged(&trust, &[&leaf.der, &intermediate])
    };
    let refused = |source| Err(PeerError::Intermediate { id: east.id("cart"), position: 1, source });
    assert!(judge(|_| {}).is_ok());
    assert!(judge(|params| params.subject_alt_names.clear()).is_ok());
    assert_eq!(judge(|params| params.is_ca = IsCa::ExplicitNoCa), refused(AuthorityError::NotAuthority));
    let sign_lists = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
    assert_eq!(judge(sign_lists), refused(AuthorityError::NoCertificateSigning));
    let expired = judge(|params| params.not_after = (SystemTime::now() - HOUR / 2).into());
    assert_eq!(expired, Err(PeerError::Expired(east.id("cart"))));
    // A leaf that signs another leaf.
    let cart = east.leaf("cart");
    let forged = sign(&leaf_params(&east.id("cart")), &Issuer::new(leaf_params(&east.id("cart")), cart.key));
    assert_eq!(judged(&trust, &[&forged.der, &cart.der]), refused(AuthorityError::NotAuthority));
}

#[test]
fn a_chain_has_four_certificates_at_most() {
    let east = Domain::new("east.mesh.example");
    let (one, first) = east.intermediate(|_| {});
    let (params_two, params_three) = (authority_params(&east.name), authority_params(&east.name));
    let two = sign(&params_two, &first);
    let second = Issuer::new(params_two, two.key);
    let three = sign(&params_three, &second);
    let third = Issuer::new(params_three, three.key);
    let leaf = sign(&leaf_params(&east.id("cart")), &third);
    let trust = trusting([&east]);
    assert!(judged(&trust, &[&leaf.der, &three.der, &two.der, &one]).is_ok());
    let long = judged(&trust, &[&leaf.der, &three.der, &two.der, &one, &east.root]);
    assert_eq!(long, Err(PeerError::ChainTooLong(5)));
    assert_eq!(judged(&trust, &[]), Err(PeerError::NoCertificate));
    assert_eq!(judged(&trust, &[&leaf.der]), Err(PeerError::UnknownIssuer(east.id("cart"))));
}

#[test]
fn a_root_is_no_leaf_and_web_certificates_are_no_svids() {
    let east = Domain::new("east.mesh.example");
    let trust = trusting([&east]);
    assert_eq!(judged(&trust, &[&east.root]), Err(PeerError::Leaf(LeafError::IsAuthority)));
    let judge = |change: fn(&mut CertificateParams)| {
        let mut params = leaf_params(&east.id("cart"));
        change(&mut params);
        judged(&trust, &[&east.sign(&params).der])
    };
    assert!(judge(|_| {}).is_ok());
    assert_eq!(judge(|params| params.subject_alt_names.clear()), Err(PeerError::Leaf(LeafError::UriNames(0))));
    let two = judge(|params| params.subject_alt_names.push(uri("spiffe://east.mesh.example/ns/shop/sa/root")));
    assert_eq!(two, Err(PeerError::Leaf(LeafError::UriNames(2))));
    let client_only = judge(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(client_only, Err(PeerError::Leaf(LeafError::ExtendedKeyUsage("serverAuth"))));
}

#[test]
fn sixteen_roots_of_one_subject_still_find_the_right_one() {
    let named = |_| {
        Domain::with_root("east.mesh.example", |params| {
            params.distinguished_name.push(DnType::CommonName, "the same for all");
        })
    };
    let roots: Vec<Domain> = (0..17).map(named).collect();
    let trust = TrustStore::new();
    trust.insert(roots[0].bundle_of(roots.iter().map(|domain| domain.root.clone())));
    assert!(judged(&trust, &[&roots[15].leaf("cart").der]).is_ok());
    let beyond = judged(&trust, &[&roots[16].leaf("cart").der]);
    assert_eq!(beyond, Err(PeerError::UnknownIssuer(roots[16].id("cart"))), "the seventeenth root is left out");
}

#[test]
fn an_unfit_root_in_a_bundle_is_left_out() {
    let east = Domain::new("east.mesh.example");
    let unfit = Domain::with_root("east.mesh.example", |params| params.is_ca = IsCa::ExplicitNoCa);
    let foreign = Domain::new("west.mesh.example");
    let trust = TrustStore::new();
    trust.insert(east.bundle_of([unfit.root.clone(), foreign.root.clone(), east.root.clone()]));
    assert!(judged(&trust, &[&east.leaf("cart").der]).is_ok());
    assert_eq!(judged(&trust, &[&unfit.leaf("cart").der]), Err(PeerError::UnknownIssuer(east.id("cart"))));
    let foreign_signed = foreign.sign(&leaf_params(&east.id("cart")));
    assert_eq!(judged(&trust, &[&foreign_signed.der]), Err(PeerError::UnknownIssuer(east.id("cart"))));
}

#[test]
fn of_two_bundles_for_one_trust_domain_the_first_counts() {
    let (first, second) = (Domain::new("east.mesh.example"), Domain::new("east.mesh.example"));
    let trust = trusting([&first, &second]);
    assert!(judged(&trust, &[&first.leaf("cart").der]).is_ok());
    assert_eq!(judged(&trust, &[&second.leaf("cart").der]), Err(PeerError::UnknownIssuer(second.id("cart"))));
}

#[test]
fn the_deny_list_overrides_bundles_that_arrive_later() {
    let (east, west) = (Domain::new("east.mesh.example"), Domain::new("west.mesh.example"));
    let trust = trusting([&west]);
    trust.deny(DenyList { trust_domains: [east.name.clone()].into(), ids: [west.id("cart")].into() });
    trust.replace([east.bundle(), west.bundle()]);
    assert_eq!(judged(&trust, &[&east.leaf("cart").der]), Err(PeerError::Denied(east.id("cart"))));
    assert_eq!(judged(&trust, &[&west.leaf("cart").der]), Err(PeerError::Denied(west.id("cart"))));
    assert!(judged(&trust, &[&west.leaf("till").der]).is_ok());
    trust.deny(DenyList::default());
    assert!(judged(&trust, &[&east.leaf("cart").der]).is_ok());
}

#[test]
fn each_change_is_counted() {
    let east = Domain::new("east.mesh.example");
    let trust = TrustStore::new();
    let mut changed = trust.changed();
    changed.borrow_and_update();
    trust.insert(east.bundle());
    assert!(changed.has_changed().unwrap());
    assert_eq!(trust.trust_domains(), std::slice::from_ref(&east.name));
    assert_eq!(trust.bundle(&east.name), Some(east.bundle()));
}

#[test]
fn errors_say_who_came_and_who_was_expected() {
    let east = Domain::new("east.mesh.example");
    let not_expected = |expected| PeerError::NotExpected { id: east.id("till"), expected }.to_string();
    assert_eq!(
        not_expected(ExpectedPeer::exactly(east.id("cart"))),
        "peer spiffe://east.mesh.example/ns/shop/sa/till is not among the expected identities: \
         spiffe://east.mesh.example/ns/shop/sa/cart"
    );
    let many: Vec<SpiffeId> = (0..7).map(|number| east.id(&format!("cart-{number}"))).collect();
    assert!(not_expected(ExpectedPeer::AnyOf(many.into())).ends_with("/cart-3 and 3 more"));
    assert!(not_expected(ExpectedPeer::AnyOf([].into())).ends_with(": none"));
}

#[test]
fn a_new_key_comes_with_a_request_that_names_nobody() {
    let (key, csr) = new_key_and_csr().unwrap();
    let (_, other) = new_key_and_csr().unwrap();
    assert_ne!(csr, other);
    let parsed = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
    let pair = KeyPair::try_from(&key).unwrap();
    assert_eq!(
        rcgen::PublicKeyData::subject_public_key_info(&parsed.public_key),
        rcgen::PublicKeyData::subject_public_key_info(&pair)
    );
    assert!(parsed.params.subject_alt_names.is_empty());
}
