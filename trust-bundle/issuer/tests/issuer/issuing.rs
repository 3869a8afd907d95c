//! An authority on a real disk, and requests that ask for more than they get.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{BACKDATE, SpiffeId, TrustDomain, check_authority, check_leaf, pem, validity};
use svid_issuer::{Authority, AuthorityFiles, IssueError, OpenError, RequestError, key_digest, mark};
use tempfile::TempDir;

use crate::{DAY, authority, cart, east, now, parse, plain_request, request, spki};

#[test]
fn an_issued_svid_is_a_leaf_of_the_requested_key_below_an_intermediate() {
    let (_directory, authority) = authority();
    let (key, csr) = plain_request();
    let svid = authority.issue(&csr, &cart(), DAY, now()).unwrap();
    assert_eq!(svid.chain.len(), 2, "the root is not sent");
    assert_eq!(check_leaf(&svid.chain[0]), Ok(cart()));
    let (root, leaf) = (authority.root(), parse(&svid.chain[0]));
    let intermediate = parse(&svid.chain[1]);
    assert_eq!(check_authority(&root, &east()), Ok(()));
    assert_eq!(check_authority(&svid.chain[1], &east()), Ok(()));
    assert_eq!(leaf.public_key().raw, spki(&key));
    assert_eq!(leaf.issuer().as_raw(), intermediate.subject().as_raw());
    leaf.verify_signature(Some(intermediate.public_key())).unwrap();
    assert_eq!(intermediate.issuer().as_raw(), parse(&root).subject().as_raw());
    intermediate.verify_signature(Some(parse(&root).public_key())).unwrap();
    assert_eq!(intermediate.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth);
}

#[test]
fn the_issuer_reads_its_own_mark_back_and_a_request_sets_none() {
    let (_directory, authority) = authority();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec![]).unwrap();
    greedy.distinguished_name.push(DnType::OrganizationalUnitName, "generation 9");
    let csr = request(&greedy, &key);
    let plain = authority.issue(&csr, &cart(), DAY, now()).unwrap();
    assert_eq!(mark(&plain.chain[0]), None);
    let marked = authority.issue_marked(&csr, &cart(), "generation 7", DAY, now()).unwrap();
    assert_eq!(mark(&marked.chain[0]).as_deref(), Some("generation 7"));
    assert_eq!(check_leaf(&marked.chain[0]), Ok(cart()));
    assert_eq!(key_digest(&marked.chain[0]), key_digest(&plain.chain[0]));
    assert_ne!(key_digest(&marked.chain[0]), key_digest(&marked.chain[1]));
}

#[test]
fn validity_begins_five_minutes_ago_and_ends_after_the_lifetime() {
    let (_directory, authority) = authority();
    let (_, csr) = plain_request();
    let svid = authority.issue(&csr, &cart(), DAY, now() + Duration::from_millis(700)).unwrap();
    let validity = validity(&svid.chain[0]).unwrap();
    assert_eq!(validity.not_before, now() - BACKDATE);
    assert_eq!(validity.not_after, now() + DAY);
    assert_eq!(svid.not_after, validity.not_after);
}

#[test]
fn an_svid_never_outlives_its_issuer() {
    let (_directory, authority) = authority();
    let (_, csr) = plain_request();
    let end = authority.not_after();
    let svid = authority.issue(&csr, &cart(), DAY, end - Duration::from_secs(60)).unwrap();
    assert_eq!(svid.not_after, end);
    assert_eq!(validity(&svid.chain[0]).unwrap().not_after, end);
    let endless = authority.issue(&csr, &cart(), Duration::MAX, now()).unwrap();
    assert_eq!(endless.not_after, end);
    assert!(matches!(authority.issue(&csr, &cart(), DAY, end), Err(IssueError::NoLifetime)));
    assert!(matches!(authority.issue(&csr, &cart(), Duration::ZERO, now()), Err(IssueError::NoLifetime)));
}

#[test]
fn nothing_a_request_asks_for_is_granted() {
    let (_directory, authority) = authority();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["root.example".to_owned()]).unwrap();
    greedy.distinguished_name.push(DnType::CommonName, "root");
    greedy.subject_alt_names.push(SanType::URI("spiffe://west.mesh.example/ns/a/sa/b".try_into().unwrap()));
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let svid = authority.issue(&request(&greedy, &key), &cart(), DAY, now()).unwrap();
    assert_eq!(check_leaf(&svid.chain[0]), Ok(cart()));
    let leaf = parse(&svid.chain[0]);
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    assert!(!leaf.is_ca());
    assert_eq!(leaf.public_key().raw, spki(&key));
    let names: Vec<_> = leaf.subject().iter_common_name().collect();
    assert!(names.is_empty());
}

#[test]
fn a_request_proves_possession_of_its_key() {
    let (_directory, authority) = authority();
    let (key, csr) = plain_request();
    assert!(authority.issue(&csr, &cart(), DAY, now()).is_ok());
    // Another's public key in one's own request, at the same place and of the same length.
    let (others_key, _) = plain_request();
    let (own, other) = (spki(&key), spki(&others_key));
    let place = csr.windows(own.len()).position(|window| window == own).unwrap();
    let mut forged = csr.clone();
    forged[place..place + other.len()].copy_from_slice(&other);
    let refused = authority.issue(&forged, &cart(), DAY, now());
    assert!(matches!(refused, Err(IssueError::Request(RequestError::Signature))), "{refused:?}");
}

#[test]
fn malformed_large_and_foreign_requests_are_refused() {
    let (_directory, authority) = authority();
    let refusal = |csr: &[u8]| match authority.issue(csr, &cart(), DAY, now()) {
        Err(IssueError::Request(error)) => error,
        other => panic!("{other:?}"),
    };
    let (_, csr) = plain_request();
    assert_eq!(refusal(&[csr.as_slice(), &[0]].concat()), RequestError::Malformed);
    assert_eq!(refusal(&csr[1..]), RequestError::Malformed);
    assert_eq!(refusal(&[]), RequestError::Malformed);
    assert_eq!(refusal(&vec![0x30; 16 * 1024 + 1]), RequestError::TooLarge(16 * 1024 + 1));
    let of = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        request(&CertificateParams::default(), &key)
    };
    assert_eq!(refusal(&of(&rcgen::PKCS_ED25519)), RequestError::KeyKind);
    assert_eq!(refusal(&of(&rcgen::PKCS_ECDSA_P521_SHA256)), RequestError::KeyKind);
    assert!(authority.issue(&of(&rcgen::PKCS_ECDSA_P384_SHA384), &cart(), DAY, now()).is_ok());
}

#[test]
fn an_authority_signs_for_workloads_of_its_own_trust_domain_only() {
    let (_directory, authority) = authority();
    let (_, csr) = plain_request();
    let west = "spiffe://west.mesh.example/ns/shop/sa/cart".parse().unwrap();
    assert!(matches!(authority.issue(&csr, &west, DAY, now()), Err(IssueError::TrustDomain { .. })));
    let itself = SpiffeId::of_trust_domain(&east());
    assert!(matches!(authority.issue(&csr, &itself, DAY, now()), Err(IssueError::NoPath(_))));
}

#[test]
fn serials_differ_even_for_the_same_request() {
    let (_directory, authority) = authority();
    let (_, csr) = plain_request();
    let serial = || {
        let svid = authority.issue(&csr, &cart(), DAY, now()).unwrap();
        parse(&svid.chain[0]).raw_serial().to_vec()
    };
    let (one, other) = (serial(), serial());
    assert_ne!(one, other);
    assert!(one.len() <= 20 && one[0] & 0x80 == 0);
}

#[test]
fn roots_have_subjects_of_their_own() {
    let subject = || parse(&authority().1.root()).subject().as_raw().to_vec();
    assert_ne!(subject(), subject());
}

#[test]
fn a_root_survives_a_restart_and_its_key_is_private() {
    let (directory, first) = authority();
    let again = Authority::open_or_create(directory.path(), &east(), now() + DAY).unwrap();
    assert_eq!(again.root(), first.root());
    assert_eq!(Authority::open(directory.path(), &east()).unwrap().root(), first.root());
    let mode = |name: &str| fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), mode("ca.crt")), (0o600, 0o644));
    let mut names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ca.crt", "ca.key"], "nothing else is left behind");
}

#[test]
fn a_key_is_never_written_into_a_file_that_others_prepared() {
    let directory = TempDir::new().unwrap();
    let beside = directory.path().join(format!("ca.key.{}.new", std::process::id()));
    fs::write(&beside, "old").unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o666)).unwrap();
    Authority::open_or_create(directory.path(), &east(), now()).unwrap();
    let mode = fs::metadata(directory.path().join("ca.key")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn an_interrupted_creation_is_finished_and_a_lost_key_is_an_error() {
    let (directory, first) = authority();
    fs::remove_file(directory.path().join("ca.crt")).unwrap();
    let second = Authority::open_or_create(directory.path(), &east(), now()).unwrap();
    assert_ne!(second.root(), first.root());
    fs::remove_file(directory.path().join("ca.key")).unwrap();
    let lost = Authority::open_or_create(directory.path(), &east(), now());
    assert!(matches!(lost, Err(OpenError::KeyMissing { .. })), "{lost:?}");
    assert!(directory.path().join("ca.crt").exists());
}

#[test]
fn files_of_another_trust_domain_or_key_are_refused() {
    let (directory, _) = authority();
    let west: TrustDomain = "west.mesh.example".parse().unwrap();
    assert!(matches!(Authority::open(directory.path(), &west), Err(OpenError::Authority { position: 1, .. })));
    let (other, _) = authority();
    fs::copy(other.path().join("ca.key"), directory.path().join("ca.key")).unwrap();
    assert!(matches!(Authority::open(directory.path(), &east()), Err(OpenError::KeyMismatch)));
    fs::write(directory.path().join("ca.key"), "no key").unwrap();
    let error = Authority::open(directory.path(), &east()).unwrap_err().to_string();
    assert!(error.contains("ca.key") && error.contains("no private key"), "{error}");
    assert!(matches!(Authority::open(Path::new("/nonexistent"), &east()), Err(OpenError::File { .. })));
}

/// A corporate root, an intermediate below it, and the intermediate's key: what an operator may bring.
pub(crate) struct Brought {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) intermediate: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

pub(crate) fn brought(change: impl Fn(&mut CertificateParams)) -> Brought {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root_params = ca_params("corporate root");
    let root = root_params.self_signed(&root_key).unwrap().der().clone();
    let mut params = ca_params("east intermediate");
    change(&mut params);
    let intermediate = params.signed_by(&key, &Issuer::new(root_params, root_key)).unwrap().der().clone();
    Brought { root, intermediate, key }
}

pub(crate) fn open(certificates: &[&CertificateDer<'_>], key: &KeyPair) -> Result<Authority, OpenError> {
    let directory = TempDir::new().unwrap();
    let files = AuthorityFiles::in_directory(directory.path());
    fs::write(&files.certificates, pem::certificates_to_pem(certificates.iter().copied())).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    Authority::open_files(&files, &east())
}

#[test]
fn an_operator_s_chain_signs_and_publishes_its_root() {
    let end = now() + DAY;
    let Brought { root, intermediate, key } = brought(|params| params.not_after = end.into());
    let authority = open(&[&intermediate, &root], &key).unwrap();
    assert_eq!(authority.root(), root);
    let (_, csr) = plain_request();
    let svid = authority.issue(&csr, &cart(), 7 * DAY, now()).unwrap();
    assert_eq!(svid.chain[1..], [intermediate], "the chain goes up to the root, without it");
    assert_eq!(svid.not_after, end, "never past the intermediate's end");
}

#[test]
fn an_operator_s_chain_is_complete_in_order_and_may_sign() {
    let Brought { root, intermediate, key } = brought(|_| {});
    assert!(open(&[&intermediate, &root], &key).is_ok());
    assert!(matches!(open(&[&intermediate], &key), Err(OpenError::Order(1))), "the root is missing");
    assert!(matches!(open(&[&root, &intermediate], &key), Err(OpenError::Order(1))));
    let stranger = brought(|_| {}).root;
    assert!(matches!(open(&[&intermediate, &stranger], &key), Err(OpenError::Order(1))), "same name, another key");
    assert!(matches!(open(&[&intermediate, &root, &root, &root, &root], &key), Err(OpenError::Length(5))));
    let leaf = brought(|params| params.is_ca = IsCa::ExplicitNoCa);
    assert!(matches!(
        open(&[&leaf.intermediate, &leaf.root], &leaf.key),
        Err(OpenError::Authority { position: 1, .. })
    ));
}
