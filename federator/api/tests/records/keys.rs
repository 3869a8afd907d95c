//! Keys and what they sign.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use federation_api::record::v1::{Delegation, DenyList, PublishKeyGrant, Signed, Statement};
use federation_api::signing::{KeyError, MembershipRoot, PublicKey, PublishKey, Purpose, SequenceClock, TokenKey};
use std::time::{Duration, UNIX_EPOCH};

/// RFC 8410, section 10.
const RFC_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----\n";
const RFC_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
    -----END PUBLIC KEY-----\n";

#[test]
fn keys_are_the_pem_of_rfc_8410() {
    let key = MembershipRoot::from_pem(RFC_PRIVATE).unwrap();
    assert_eq!(key.to_pem().unwrap(), RFC_PRIVATE);
    assert_eq!(key.public().to_pem(), RFC_PUBLIC);
    assert_eq!(PublicKey::from_pem(RFC_PUBLIC).unwrap(), key.public());
}

#[test]
fn keys_come_back_from_what_they_were_written_as() {
    let publish = PublishKey::generate().unwrap();
    assert_eq!(PublishKey::from_pkcs8(&publish.to_pkcs8().unwrap()).unwrap().public(), publish.public());
    let token = TokenKey::generate().unwrap();
    assert_eq!(TokenKey::from_seed(&token.seed().unwrap()).unwrap().public(), token.public());
}

#[test]
fn what_is_no_key_is_refused() {
    assert_eq!(PublicKey::from_bytes(&[0; 31]).unwrap_err(), KeyError::Length(31));
    assert_eq!(TokenKey::from_seed(&[0; 33]).unwrap_err(), KeyError::Length(33));
    for pem in ["", RFC_PUBLIC, "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----", &RFC_PRIVATE[..60]] {
        assert!(matches!(MembershipRoot::from_pem(pem), Err(KeyError::Pem(_))), "{pem:?}");
    }
    let rsa = "-----BEGIN PUBLIC KEY-----\nMCwwBwYDK2VuBQADIQAZv0QJaYTN/oVBusFn3DuWyFCGqjC2tssMXDitcDFm4Q==\n-----END PUBLIC KEY-----\n";
    assert!(matches!(PublicKey::from_pem(rsa), Err(KeyError::Rejected(_))));
}

#[test]
fn secrets_do_not_show_in_debug() {
    let key = TokenKey::from_pem(RFC_PRIVATE).unwrap();
    let shown = format!("{key:?}");
    assert!(shown.contains(&key.public().to_string()) && !shown.contains("d4ee72"), "{shown}");
}

/// Every signature this crate can make, with what it is for.
fn signatures(root: &MembershipRoot, publish: &PublishKey) -> [(Purpose, PublicKey, Signed); 4] {
    [
        (Purpose::Delegation, root.public(), root.delegate(&Delegation::default())),
        (Purpose::DenyList, root.public(), root.deny(&DenyList::default())),
        (Purpose::PublishKeyGrant, publish.public(), publish.grant(&PublishKeyGrant::default())),
        (Purpose::Record, publish.public(), publish.sign_statement(&Statement::default())),
    ]
}

#[test]
fn a_signature_is_over_context_zero_and_message() {
    let key = PublishKey::generate().unwrap();
    let signed = key.sign_statement(&Statement { sequence: 7, ..Statement::default() });
    let bytes = [b"isthmus.record.v1\0", signed.message.as_ref()].concat();
    UnparsedPublicKey::new(&ED25519, key.public().as_bytes()).verify(&bytes, &signed.signature).unwrap();
}

#[test]
fn a_signature_for_one_purpose_is_void_for_every_other() {
    let purposes = [Purpose::Delegation, Purpose::DenyList, Purpose::PublishKeyGrant, Purpose::Record];
    let (root, publish) = (MembershipRoot::generate().unwrap(), PublishKey::generate().unwrap());
    for (made_for, key, signed) in signatures(&root, &publish) {
        for purpose in purposes {
            assert_eq!(key.verifies(purpose, &signed), purpose == made_for, "{made_for:?} as {purpose:?}");
        }
        for other in [root.public(), publish.public()] {
            assert_eq!(other.verifies(made_for, &signed), other == key);
        }
    }
}

#[test]
fn a_signature_of_another_length_is_void() {
    let key = PublishKey::generate().unwrap();
    let signed = key.sign_statement(&Statement::default());
    let longer = [signed.signature.as_ref(), &[0]].concat();
    for signature in [&signed.signature[..63], &signed.signature[..0], &longer] {
        let other = Signed { signature: signature.to_vec().into(), ..signed.clone() };
        assert!(!key.public().verifies(Purpose::Record, &other), "{} bytes", signature.len());
    }
}

#[test]
fn sequences_follow_the_clock_and_never_go_back() {
    let at = |microseconds| UNIX_EPOCH + Duration::from_micros(microseconds);
    let mut clock = SequenceClock::after(0);
    // (now, expected): forward, the same microsecond, a clock stepped back, far back, forward again.
    for (now, expected) in [(500, 500), (500, 501), (499, 502), (0, 503), (900, 900)] {
        assert_eq!(clock.next(at(now)), expected);
    }
    assert_eq!(SequenceClock::after(clock.last()).next(at(1)), 901);
    assert_eq!(SequenceClock::after(0).next(UNIX_EPOCH - Duration::from_secs(1)), 1);
    assert_eq!(SequenceClock::after(u64::MAX).next(at(1)), u64::MAX);
}
