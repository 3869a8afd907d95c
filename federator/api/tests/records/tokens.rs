//! Join tokens.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use federation::delegation::NamespaceSet;
use federation_api::record::v1 as wire;
use federation_api::signing::{MembershipRoot, PublishKey, TokenKey};
use federation_api::token::{JoinToken, MAX_TOKEN_BYTES, PREFIX, TokenError, TokenRequest, id_of};
use federation_api::verify::{MemberError, verify_member};
use proptest::prelude::*;
use prost::Message as _;

use crate::fixture::{East, created, east, federation, request};

fn message_of(token: &JoinToken) -> wire::JoinToken {
    let text = token.to_string();
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap();
    let (message, _checksum) = bytes.split_last_chunk::<8>().unwrap();
    wire::JoinToken::decode(message).unwrap()
}

fn text_of(message: &wire::JoinToken) -> String {
    let mut bytes = message.encode_to_vec();
    let sum = digest(&SHA256, &bytes);
    bytes.extend(&sum.as_ref()[..8]);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[test]
fn a_token_comes_back_from_its_text() {
    let root = MembershipRoot::generate().unwrap();
    let token = JoinToken::create(&root, request()).unwrap();
    let text = token.to_string();
    assert!(text.starts_with("isthmus-join-") && text.bytes().all(|byte| byte.is_ascii_graphic()));
    let read: JoinToken = format!(" {text}\n").parse().unwrap();
    assert_eq!((read.federation(), read.cluster()), (&federation(), &east()));
    assert_eq!(read.generation(), 1_800_000_000_000);
    assert_eq!(read.expires(), created() + Duration::from_secs(900));
    assert_eq!(read.membership_root(), root.public());
    assert_eq!(read.public(), token.public());
    assert_eq!(read.federation_roots(), [vec![1, 2, 3]]);
    assert_eq!(read.trust_bundle_addresses(), ["trust.example:15012"]);
    assert_eq!(read.federator_addresses(), ["federator.example:15012"]);
    assert_eq!(read.to_string(), text);
}

#[test]
fn a_token_makes_a_member_with_what_was_delegated() {
    let namespaces = NamespaceSet::Some(BTreeSet::from(["shop".parse().unwrap()]));
    let request = TokenRequest {
        namespaces: namespaces.clone(),
        address_ranges: vec!["192.0.2.0/24".parse().unwrap()],
        host_names: vec!["*.east.example".to_owned()],
        ..request()
    };
    let root = MembershipRoot::generate().unwrap();
    let token = JoinToken::create(&root, request).unwrap();
    let key = PublishKey::generate().unwrap();
    let member = token.member(&key.public(), created());
    let verified = verify_member(&root.public(), &federation(), &member, Some(created())).unwrap();
    assert_eq!(verified.cluster(), &east());
    assert_eq!(verified.token(), &token.public());
    assert_eq!(verified.joined(), created());
    let delegation = verified.delegation();
    assert_eq!(delegation.namespaces, namespaces);
    assert!(delegation.allows_address("192.0.2.9".parse().unwrap()));
    assert!(!delegation.allows_address("198.51.100.9".parse().unwrap()));
    assert!(delegation.allows_host("gateway.east.example") && !delegation.allows_host("east.example.org"));
}

#[test]
fn a_token_can_be_used_until_it_expires_and_its_membership_outlives_it() {
    let root = MembershipRoot::generate().unwrap();
    let token = JoinToken::create(&root, request()).unwrap();
    let member = token.member(&PublishKey::generate().unwrap().public(), created());
    let at = |now: Option<SystemTime>| verify_member(&root.public(), &federation(), &member, now);
    assert!(at(Some(token.expires() - Duration::from_millis(1))).is_ok());
    assert_eq!(at(Some(token.expires())).unwrap_err(), MemberError::Expired);
    assert!(at(None).is_ok());
}

#[test]
fn a_token_whose_parts_do_not_belong_together_is_refused() {
    let root = MembershipRoot::generate().unwrap();
    let good = message_of(&JoinToken::create(&root, request()).unwrap());
    let other = message_of(&JoinToken::create(&MembershipRoot::generate().unwrap(), request()).unwrap());
    let refused = |change: &dyn Fn(&mut wire::JoinToken)| {
        let mut message = good.clone();
        change(&mut message);
        text_of(&message).parse::<JoinToken>().unwrap_err()
    };
    let error = refused(&|token| token.membership_root = other.membership_root.clone());
    assert_eq!(error, TokenError::Delegation(MemberError::Signature("delegation")));
    assert_eq!(refused(&|token| token.token_key = TokenKey::generate().unwrap().seed().unwrap()), TokenError::OtherKey);
    assert!(matches!(refused(&|token| token.token_key.truncate(31)), TokenError::Key(_)));
    assert_eq!(refused(&|token| token.delegation = None), TokenError::Missing("delegation"));
    assert_eq!(refused(&|token| token.federation_roots.clear()), TokenError::Missing("federation root"));
    assert_eq!(refused(&|token| token.trust_bundle_addresses.clear()), TokenError::Missing("trust-bundle address"));
    assert_eq!(refused(&|token| token.federator_addresses.clear()), TokenError::Missing("federator address"));
}

#[test]
fn garbage_is_no_token() {
    let text = JoinToken::create(&MembershipRoot::generate().unwrap(), request()).unwrap().to_string();
    let huge = format!("{PREFIX}{}", "A".repeat(MAX_TOKEN_BYTES + 1));
    for (garbage, expected) in [
        ("", TokenError::Prefix),
        ("isthmus-join", TokenError::Prefix),
        (text.strip_prefix("isthmus-").unwrap(), TokenError::Prefix),
        (&format!("{text}="), TokenError::Damaged),
        (&format!("{PREFIX}ä"), TokenError::Damaged),
        (&huge, TokenError::Damaged),
    ] {
        assert_eq!(garbage.parse::<JoinToken>().unwrap_err(), expected);
    }
    for cut in PREFIX.len()..text.len() {
        assert!(text[..cut].parse::<JoinToken>().is_err(), "cut at {cut}");
    }
}

#[test]
fn a_token_with_any_character_changed_is_damaged() {
    let text = JoinToken::create(&MembershipRoot::generate().unwrap(), request()).unwrap().to_string();
    for place in PREFIX.len()..text.len() {
        let other = if text.as_bytes()[place] == b'A' { "B" } else { "A" };
        let changed = format!("{}{other}{}", &text[..place], &text[place + 1..]);
        assert_eq!(changed.parse::<JoinToken>().unwrap_err(), TokenError::Damaged, "changed at {place}");
    }
}

#[test]
fn an_address_that_is_none_is_refused_when_the_token_is_made() {
    for address in ["", "trust.example", "trust.example:", "trust.example:0", ":15012", "trust example:15012", "a\0:1"]
    {
        let request = TokenRequest { federator_addresses: vec![address.to_owned()], ..request() };
        let refused = JoinToken::create(&MembershipRoot::generate().unwrap(), request).unwrap_err();
        assert_eq!(refused, TokenError::Address(address.to_owned()));
    }
}

#[test]
fn a_token_does_not_show_in_debug() {
    let token = JoinToken::create(&MembershipRoot::generate().unwrap(), request()).unwrap();
    let message = message_of(&token);
    let secret = format!("{:?}", message.token_key);
    for shown in [format!("{token:?}"), format!("{message:?}")] {
        assert!(!shown.contains(&secret) && !shown.contains("token_key"), "{shown}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(text.parse::<JoinToken>().is_err());
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        prop_assert!(text.parse::<JoinToken>().is_err());
    }
}

#[test]
fn a_token_has_an_id_that_does_not_reveal_it() {
    let (one, other) = (East::new().token, East::new().token);
    assert_eq!(one.id(), id_of(&one.public()));
    assert!(one.id().len() == 16 && one.id().bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", one.id());
    assert_ne!(one.id(), other.id());
    assert_eq!(one.signed_delegation(), one.member(&other.public(), created()).delegation.as_ref());
}
