use rcgen::{CertificateParams, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize};
use spiffe_identity::{AuthorityError, CertificateError, IdError, JwkError, check_authority};

use crate::certificates::{UNKNOWN, extension, leaf, root, signed, trust_domain, uri};

fn judged(change: impl Fn(&mut CertificateParams)) -> Result<(), AuthorityError> {
    let mut params = root();
    change(&mut params);
    check_authority(signed(&params).der(), &trust_domain())
}

/// What breaks a rule, its twin that does not, and the rule.
type Case = (fn(&mut CertificateParams), fn(&mut CertificateParams), AuthorityError);

#[test]
fn each_rule_of_a_signing_certificate_refuses_what_breaks_it_and_accepts_its_twin() {
    let unknown = CertificateError::UnknownCriticalExtension("1.3.6.1.4.1.99999.1".into());
    let table: Vec<Case> = vec![
        (|p| p.is_ca = IsCa::ExplicitNoCa, |_| {}, AuthorityError::NotAuthority),
        (|p| p.is_ca = IsCa::NoCa, |_| {}, AuthorityError::NotAuthority),
        (|p| p.key_usages.clear(), |_| {}, AuthorityError::NoCertificateSigning),
        (
            |p| p.key_usages = vec![KeyUsagePurpose::CrlSign],
            |p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign],
            AuthorityError::NoCertificateSigning,
        ),
        (
            |p| p.subject_alt_names.push(uri("spiffe://east.mesh.example")),
            |p| p.subject_alt_names.clear(),
            AuthorityError::UriNames(2),
        ),
        (
            |p| p.subject_alt_names = vec![uri("spiffe://East.mesh.example")],
            |_| {},
            AuthorityError::Id(IdError::TrustDomain(spiffe_identity::TrustDomainError::Character('E'))),
        ),
        (
            |p| p.subject_alt_names = vec![uri("spiffe://east.mesh.example/ca")],
            |_| {},
            AuthorityError::Path("spiffe://east.mesh.example/ca".parse().unwrap()),
        ),
        (
            |p| p.subject_alt_names = vec![uri("spiffe://west.mesh.example")],
            |_| {},
            AuthorityError::TrustDomain { expected: trust_domain(), found: "west.mesh.example".parse().unwrap() },
        ),
        (
            |p| p.custom_extensions.push(extension(UNKNOWN, true, &[5, 0])),
            |p| p.custom_extensions.push(extension(UNKNOWN, false, &[5, 0])),
            unknown.into(),
        ),
    ];
    for (breaks, twin, error) in table {
        assert_eq!(judged(breaks), Err(error.clone()));
        assert_eq!(judged(twin), Ok(()), "the twin of {error}");
    }
    assert_eq!(check_authority(signed(&leaf()).der(), &trust_domain()), Err(AuthorityError::NotAuthority));
}

#[test]
fn an_authority_s_key_is_one_that_every_reader_knows() {
    let with = |key: KeyPair| check_authority(root().self_signed(&key).unwrap().der(), &trust_domain());
    let key = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    assert_eq!(with(key(&rcgen::PKCS_ECDSA_P256_SHA256)), Ok(()));
    assert_eq!(with(key(&rcgen::PKCS_ECDSA_P384_SHA384)), Ok(()));
    assert_eq!(with(KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()), Ok(()));
    assert_eq!(with(key(&rcgen::PKCS_ED25519)), Err(JwkError::Kind.into()));
    assert_eq!(with(key(&rcgen::PKCS_ECDSA_P521_SHA256)), Err(JwkError::Kind.into()));
}

#[test]
fn nothing_follows_an_authority_s_certificate() {
    let der = signed(&root()).der().to_vec();
    let longer = [der.as_slice(), &[0, 0]].concat();
    assert_eq!(check_authority(&longer, &trust_domain()), Err(CertificateError::TrailingData(2).into()));
}
