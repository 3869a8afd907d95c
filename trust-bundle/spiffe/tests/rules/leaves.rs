use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use spiffe_identity::{BACKDATE, CertificateError, IdError, LeafError, Validity, check_leaf, validity};

use crate::certificates::{
    ALTERNATIVE_NAMES, BASIC_CONSTRAINTS, DIGITAL_SIGNATURE, KEY_USAGE, UNKNOWN, extension, leaf, root, signed, uri,
};

const CART: &str = "spiffe://east.mesh.example/ns/shop/sa/cart";

fn judged(change: impl Fn(&mut CertificateParams)) -> Result<String, LeafError> {
    let mut params = leaf();
    change(&mut params);
    check_leaf(signed(&params).der()).map(|id| id.to_string())
}

/// What breaks a rule, its twin that does not, and the rule.
type Case = (fn(&mut CertificateParams), fn(&mut CertificateParams), LeafError);

fn check_table(table: &[Case]) {
    for (breaks, twin, error) in table {
        assert_eq!(judged(breaks), Err(error.clone()));
        assert_eq!(judged(twin), Ok(CART.to_owned()), "the twin of {error}");
    }
}

#[test]
fn a_leaf_names_exactly_one_spiffe_id_with_a_path() {
    check_table(&[
        (|p| p.subject_alt_names.clear(), |_| {}, LeafError::UriNames(0)),
        (
            |p| p.subject_alt_names = vec![SanType::DnsName("cart.example".try_into().unwrap())],
            |p| p.subject_alt_names.push(SanType::DnsName("cart.example".try_into().unwrap())),
            LeafError::UriNames(0),
        ),
        (
            |p| p.subject_alt_names.push(uri("spiffe://east.mesh.example/ns/shop/sa/root")),
            |p| p.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into())),
            LeafError::UriNames(2),
        ),
        (|p| p.subject_alt_names.push(uri("https://cart.example/")), |_| {}, LeafError::UriNames(2)),
        (|p| p.subject_alt_names.push(uri(CART)), |_| {}, LeafError::UriNames(2)),
        (
            |p| p.subject_alt_names = vec![uri("spiffe://east.mesh.example")],
            |_| {},
            LeafError::NoPath("spiffe://east.mesh.example".parse().unwrap()),
        ),
        (
            |p| p.subject_alt_names = vec![uri("spiffe://east.mesh.example/ns/shop%2fsa/cart")],
            |_| {},
            LeafError::Id(IdError::Character('%')),
        ),
        (
            |p| p.subject_alt_names = vec![uri("Spiffe://east.mesh.example/ns/shop/sa/cart")],
            |_| {},
            LeafError::Id(IdError::Scheme),
        ),
        (
            |p| p.subject_alt_names = vec![uri("https://east.mesh.example/ns/shop/sa/cart")],
            |_| {},
            LeafError::Id(IdError::Scheme),
        ),
    ]);
}

#[test]
fn a_leaf_says_that_it_is_no_authority() {
    check_table(&[
        (|p| p.is_ca = IsCa::NoCa, |p| p.is_ca = IsCa::ExplicitNoCa, LeafError::NoBasicConstraints),
        (|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), |_| {}, LeafError::IsAuthority),
    ]);
    assert_eq!(check_leaf(signed(&root()).der()), Err(LeafError::IsAuthority), "a root used as a leaf");
}

#[test]
fn a_leaf_s_key_usage_is_critical_and_signs_no_certificates() {
    check_table(&[
        (|p| p.key_usages.clear(), |_| {}, LeafError::NoKeyUsage),
        (
            |p| {
                p.key_usages.clear();
                p.custom_extensions.push(extension(KEY_USAGE, false, DIGITAL_SIGNATURE));
            },
            |p| {
                p.key_usages.clear();
                p.custom_extensions.push(extension(KEY_USAGE, true, DIGITAL_SIGNATURE));
            },
            LeafError::KeyUsageNotCritical,
        ),
        (
            |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            |p| p.key_usages.push(KeyUsagePurpose::KeyEncipherment),
            LeafError::NoDigitalSignature,
        ),
        (
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            |p| p.key_usages.push(KeyUsagePurpose::KeyAgreement),
            LeafError::SigningKeyUsage("keyCertSign"),
        ),
        (|p| p.key_usages.push(KeyUsagePurpose::CrlSign), |_| {}, LeafError::SigningKeyUsage("cRLSign")),
    ]);
}

#[test]
fn extended_key_usage_has_both_roles_or_is_absent() {
    check_table(&[
        (
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            |p| p.extended_key_usages.clear(),
            LeafError::ExtendedKeyUsage("serverAuth"),
        ),
        (
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning),
            LeafError::ExtendedKeyUsage("clientAuth"),
        ),
        (
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any],
            |_| {},
            LeafError::ExtendedKeyUsage("serverAuth"),
        ),
    ]);
}

#[test]
fn extensions_are_known_or_not_critical_and_stand_once_and_whole() {
    let unknown = CertificateError::UnknownCriticalExtension("1.3.6.1.4.1.99999.1".into());
    let twice = CertificateError::DuplicateExtension("2.5.29.15".into());
    let malformed = |oid: &str| LeafError::Certificate(CertificateError::MalformedExtension(oid.into()));
    check_table(&[
        (
            |p| p.custom_extensions.push(extension(UNKNOWN, true, &[5, 0])),
            |p| p.custom_extensions.push(extension(UNKNOWN, false, &[5, 0])),
            unknown.into(),
        ),
        (|p| p.custom_extensions.push(extension(KEY_USAGE, true, DIGITAL_SIGNATURE)), |_| {}, twice.into()),
        (
            |p| {
                p.key_usages.clear();
                p.custom_extensions.push(extension(KEY_USAGE, true, &[3, 2, 7, 0x80, 0]));
            },
            |p| {
                p.key_usages.clear();
                p.custom_extensions.push(extension(KEY_USAGE, true, &[3, 2, 7, 0x80]));
            },
            malformed("2.5.29.15"),
        ),
        (
            |p| {
                p.is_ca = IsCa::NoCa;
                p.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 1]));
            },
            |p| {
                p.is_ca = IsCa::NoCa;
                p.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0]));
            },
            malformed("2.5.29.19"),
        ),
        (
            // A second URI that is no UTF-8 must not be passed over in silence.
            |p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(extension(ALTERNATIVE_NAMES, false, &names(&[CART.as_bytes(), b"\xff"])));
            },
            |p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(extension(ALTERNATIVE_NAMES, false, &names(&[CART.as_bytes()])));
            },
            malformed("2.5.29.17"),
        ),
    ]);
}

/// DER of alternative names that are all URIs, whatever their bytes.
fn names(uris: &[&[u8]]) -> Vec<u8> {
    let mut content = Vec::new();
    for uri in uris {
        content.extend([0x86, u8::try_from(uri.len()).unwrap()]);
        content.extend(*uri);
    }
    [&[0x30, u8::try_from(content.len()).unwrap()], content.as_slice()].concat()
}

#[test]
fn nothing_follows_a_certificate_and_nothing_is_missing() {
    let der = signed(&leaf()).der().to_vec();
    assert!(check_leaf(&der).is_ok());
    let longer = [der.as_slice(), &[0]].concat();
    assert_eq!(check_leaf(&longer), Err(CertificateError::TrailingData(1).into()));
    assert_eq!(check_leaf(der.split_last().unwrap().1), Err(CertificateError::Malformed.into()));
    assert_eq!(check_leaf(&[]), Err(CertificateError::Malformed.into()));
}

#[test]
fn both_ends_of_a_validity_belong_to_it() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut params = leaf();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = now.into();
    let validity = validity(signed(&params).der()).unwrap();
    let second = Duration::from_secs(1);
    assert!(validity.contains(now) && validity.contains(validity.not_before));
    assert!(validity.contains(now + Duration::from_millis(999)));
    assert!(!validity.contains(now + second));
    assert!(!validity.contains(validity.not_before - second));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(check_leaf(&bytes).is_err());
    }

    #[test]
    fn a_damaged_leaf_is_judged_without_panic(places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut der = signed(&leaf()).der().to_vec();
        for (place, byte) in places {
            let place = place.index(der.len());
            der[place] = byte;
        }
        // Most of it is not covered by these checks (that takes the signature); it must only never panic, and what it names
        // must be a valid ID.
        if let Ok(id) = check_leaf(&der) {
            prop_assert!(!id.path().is_empty());
        }
    }
}

#[test]
fn a_part_of_a_life_counts_from_the_issuing_and_not_from_the_backdated_beginning() {
    let hour = Duration::from_secs(3600);
    let issued = SystemTime::UNIX_EPOCH + 500_000 * hour;
    for life in [Duration::from_secs(20), hour, 24 * hour] {
        let validity = Validity { not_before: issued - BACKDATE, not_after: issued + life };
        assert_eq!(validity.after(0.0), issued);
        assert_eq!(validity.after(0.5), issued + life / 2);
        assert_eq!(validity.after(1.0), issued + life);
    }
    // Of one that is not backdated as the mesh does it.
    let short = Validity { not_before: issued, not_after: issued + BACKDATE / 2 };
    assert_eq!(short.after(0.5), issued + BACKDATE / 4);
}
