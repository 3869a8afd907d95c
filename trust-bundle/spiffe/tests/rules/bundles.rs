use std::time::Duration;

use proptest::prelude::*;
use rcgen::{KeyPair, RsaKeySize};
use serde_json::{Value, json};
use spiffe_identity::{AuthorityError, Bundle, BundleError, CertificateDer, JwkError, KeyError, pem};

use crate::certificates::{leaf, root, signed, trust_domain};

fn read(document: &Value) -> Result<Bundle, BundleError> {
    Bundle::from_jwks(trust_domain(), document.to_string().as_bytes())
}

fn bundle_of(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Bundle {
    Bundle {
        trust_domain: trust_domain(),
        x509_authorities: roots.into_iter().collect(),
        sequence: 7,
        refresh_hint: Some(Duration::from_secs(60)),
    }
}

fn new_root() -> CertificateDer<'static> {
    signed(&root()).der().clone()
}

/// A document with one good key, to be broken.
fn document() -> Value {
    serde_json::from_str(&bundle_of([new_root()]).to_jwks()).unwrap()
}

fn broken(change: impl Fn(&mut Value)) -> Result<Bundle, BundleError> {
    let mut document = document();
    change(&mut document);
    read(&document)
}

fn key_error(source: impl Into<KeyError>) -> Result<Bundle, BundleError> {
    Err(BundleError::Key { index: 0, source: source.into() })
}

#[test]
fn what_is_written_reads_back_for_each_kind_of_key() {
    let with = |key: &KeyPair| root().self_signed(key).unwrap().der().clone();
    let keys = [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ];
    let bundle = bundle_of(keys.iter().map(with));
    assert_eq!(Bundle::from_jwks(trust_domain(), bundle.to_jwks().as_bytes()), Ok(bundle));
}

#[test]
fn the_written_bundle_has_the_members_of_the_standard_and_no_others() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let bundle = bundle_of([new_root(), root().self_signed(&rsa).unwrap().der().clone()]);
    let written: Value = serde_json::from_str(&bundle.to_jwks()).unwrap();
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(members(&written), "keys spiffe_refresh_hint spiffe_sequence");
    assert_eq!(members(&written["keys"][0]), "crv kty use x x5c y");
    assert_eq!(members(&written["keys"][1]), "e kty n use x5c");
    assert_eq!(written["keys"][1]["e"], "AQAB");
    assert_eq!(written["spiffe_refresh_hint"], 60);
}

#[test]
fn missing_keys_is_an_error_and_empty_keys_a_bundle_without_roots() {
    assert_eq!(read(&json!({"spiffe_sequence": 1})), Err(BundleError::MissingKeys));
    assert_eq!(read(&json!({"keys": null})), Err(BundleError::Type("keys", "an array")));
    assert_eq!(read(&json!({"keys": {}})), Err(BundleError::Type("keys", "an array")));
    let empty = read(&json!({"keys": []})).unwrap();
    assert_eq!((empty.x509_authorities.len(), empty.sequence, empty.refresh_hint), (0, 0, None));
    assert_eq!(read(&json!([])), Err(BundleError::NotAnObject));
}

#[test]
fn keys_of_unknown_or_missing_use_or_type_are_passed_over() {
    for (member, value) in [
        ("use", json!("x509-svid-next")),
        ("use", Value::Null),
        ("kty", json!("OKP")),
        ("kty", json!("oct")),
        ("kty", Value::Null),
    ] {
        let bundle = broken(|document| document["keys"][0][member] = value.clone()).unwrap();
        assert!(bundle.x509_authorities.is_empty(), "{member} = {value}");
    }
    let with_jwt = broken(|document| {
        let jwt = json!({"use": "jwt-svid", "kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"});
        document["keys"].as_array_mut().unwrap().push(jwt);
    });
    assert_eq!(with_jwt.unwrap().x509_authorities.len(), 1);
}

#[test]
fn an_x509_key_has_exactly_one_certificate_and_no_key_id() {
    let certificate = document()["keys"][0]["x5c"][0].clone();
    for x5c in [json!([]), json!([certificate, certificate]), json!([1]), json!("x"), Value::Null] {
        assert_eq!(
            broken(|document| document["keys"][0]["x5c"] = x5c.clone()),
            key_error(KeyError::CertificateCount),
            "{x5c}"
        );
    }
    for text in ["!!!!", "AA==\n", "AA"] {
        assert_eq!(
            broken(|document| document["keys"][0]["x5c"][0] = json!(text)),
            key_error(KeyError::Base64),
            "{text:?}"
        );
    }
    assert_eq!(broken(|document| document["keys"][0]["kid"] = json!("a")), key_error(KeyError::UnexpectedKeyId));
    assert_eq!(broken(|document| document["keys"][0] = json!("key")), key_error(KeyError::NotAnObject));
    assert!(broken(|_| {}).is_ok());
}

#[test]
fn a_jwt_key_has_a_key_id() {
    let jwt = |kid: Value| read(&json!({"keys": [{"use": "jwt-svid", "kty": "EC", "kid": kid}]}));
    assert_eq!(jwt(Value::Null), key_error(KeyError::MissingKeyId));
    assert_eq!(jwt(json!("")), key_error(KeyError::MissingKeyId));
    assert!(jwt(json!("a")).is_ok());
}

#[test]
fn the_certificate_is_an_authority_of_the_bundle_s_own_trust_domain() {
    let holding = |der: &[u8]| {
        let mut document = document();
        let text = pem::certificates_to_pem([&CertificateDer::from(der)]);
        let encoded: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        document["keys"][0]["x5c"][0] = json!(encoded);
        read(&document)
    };
    assert_eq!(holding(signed(&leaf()).der()), key_error(AuthorityError::NotAuthority));
    assert!(matches!(
        holding(b"no certificate"),
        Err(BundleError::Key { source: KeyError::Authority(AuthorityError::Certificate(_)), .. })
    ));
    let foreign = Bundle::from_jwks("west.mesh.example".parse().unwrap(), document().to_string().as_bytes());
    assert!(matches!(
        foreign,
        Err(BundleError::Key { source: KeyError::Authority(AuthorityError::TrustDomain { .. }), .. })
    ));
    // Another root's certificate beside this key.
    assert_eq!(holding(&new_root()), key_error(JwkError::Mismatch("x")));
}

#[test]
fn the_key_beside_a_certificate_is_its_own() {
    for (member, value) in [("crv", json!("P-384")), ("x", json!("AA")), ("y", Value::Null)] {
        assert_eq!(
            broken(|document| document["keys"][0][member] = value.clone()),
            key_error(JwkError::Mismatch(member))
        );
    }
    assert_eq!(broken(|document| document["keys"][0]["kty"] = json!("RSA")), key_error(JwkError::Mismatch("kty")));
}

#[test]
fn duplicate_members_are_refused_at_every_depth() {
    let good = document().to_string();
    let at_top = good.replacen('{', r#"{"keys":[],"#, 1);
    let in_key = good.replacen(r#""kty":"EC""#, r#""kty":"EC","kty":"EC""#, 1);
    let in_unknown = good.replacen('{', r#"{"x":{"a":1,"a":2},"#, 1);
    for text in [at_top, in_key, in_unknown] {
        let refused = Bundle::from_jwks(trust_domain(), text.as_bytes());
        assert!(
            matches!(&refused, Err(BundleError::Json(error)) if error.to_string().contains("occurs twice")),
            "{refused:?}"
        );
    }
    let unknown_once = good.replacen('{', r#"{"x":{"a":1,"b":2},"#, 1);
    assert!(Bundle::from_jwks(trust_domain(), unknown_once.as_bytes()).is_ok());
}

#[test]
fn a_sequence_is_any_unsigned_64_bit_number() {
    let sequence = |text: &str| {
        let document = format!(r#"{{"keys":[],"spiffe_sequence":{text}}}"#);
        Bundle::from_jwks(trust_domain(), document.as_bytes()).map(|bundle| bundle.sequence)
    };
    assert_eq!(sequence("0"), Ok(0));
    assert_eq!(sequence("18446744073709551615"), Ok(u64::MAX));
    for text in ["18446744073709551616", "-1", "1.0", "1e3", "\"1\"", "null"] {
        assert_eq!(sequence(text), Err(BundleError::Type("spiffe_sequence", "an unsigned 64-bit number")), "{text}");
    }
}

#[test]
fn a_refresh_hint_is_brought_into_15_seconds_to_an_hour() {
    let hint =
        |value: Value| read(&json!({"keys": [], "spiffe_refresh_hint": value})).map(|bundle| bundle.refresh_hint);
    for (seconds, clamped) in
        [(0, 15), (-5, 15), (14, 15), (15, 15), (300, 300), (3600, 3600), (3601, 3600), (10_i64.pow(12), 3600)]
    {
        assert_eq!(hint(json!(seconds)), Ok(Some(Duration::from_secs(clamped))), "{seconds}");
    }
    let refused = Err(BundleError::Type("spiffe_refresh_hint", "a whole number of seconds"));
    assert_eq!(hint(json!(1.5)), refused);
    assert_eq!(hint(json!("300")), refused);
}

#[test]
fn sixteen_roots_are_the_most_and_equal_ones_count_once() {
    let roots: Vec<_> = (0..17).map(|_| new_root()).collect();
    let read_back = |roots: &[CertificateDer<'static>]| {
        let bundle = bundle_of(roots.iter().cloned());
        Bundle::from_jwks(trust_domain(), bundle.to_jwks().as_bytes()).map(|bundle| bundle.x509_authorities.len())
    };
    assert_eq!(read_back(&roots[..16]), Ok(16));
    assert_eq!(read_back(&roots), Err(BundleError::TooManyAuthorities(17)));
    assert_eq!(read_back(&[roots[0].clone(), roots[0].clone()]), Ok(1));
}

#[test]
fn a_bundle_ends_at_one_mebibyte() {
    let padded = |bytes: usize| {
        let mut text = r#"{"keys":[]}"#.to_owned();
        text.push_str(&" ".repeat(bytes - text.len()));
        Bundle::from_jwks(trust_domain(), text.as_bytes())
    };
    assert!(padded(1 << 20).is_ok());
    assert_eq!(padded((1 << 20) + 1), Err(BundleError::TooLarge((1 << 20) + 1)));
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    let deep = format!(r#"{{"keys":[],"x":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(Bundle::from_jwks(trust_domain(), deep.as_bytes()), Err(BundleError::Json(_))));
}

#[test]
fn pem_text_reads_back_and_its_absence_is_named() {
    let roots = [new_root(), new_root()];
    let text = pem::certificates_to_pem(&roots);
    assert!(text.lines().all(|line| line.len() <= 64));
    assert_eq!(pem::certificates_from_pem(text.as_bytes()).unwrap(), roots);
    let key = KeyPair::generate().unwrap();
    let der = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    assert_eq!(pem::private_key_from_pem(pem::private_key_to_pem(&der).as_bytes()).unwrap(), der);
    assert!(matches!(pem::private_key_from_pem(text.as_bytes()), Err(pem::PemError::Missing("private key"))));
    assert!(matches!(pem::certificates_from_pem(b""), Err(pem::PemError::Missing("certificate"))));
    assert!(matches!(pem::certificates_from_pem(b"-----BEGIN CERTIFICATE-----\n"), Err(pem::PemError::Syntax(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Bundle::from_jwks(trust_domain(), &bytes);
    }

    #[test]
    fn any_text_near_json_is_read_without_panic(text in r#"[{}\[\]",:0-9a-zA-Z\\ -]{0,200}"#) {
        let _ = Bundle::from_jwks(trust_domain(), text.as_bytes());
    }
}
