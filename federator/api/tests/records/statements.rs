//! What is believed of a record, and what is not.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use federation::delegation::{MAX_CAPACITY, NamespaceSet};
use federation::{Gateway, GatewayAddress, HeadlessEndpoint, Locality, RecordKey, ZoneCapacity};
use federation_api::payload::{Payload, Slice};
use federation_api::record::v1::{Signed, Statement, statement};
use federation_api::signing::PublishKey;
use federation_api::token::TokenRequest;
use federation_api::verify::{MAX_RECORD_BYTES, RecordError};
use prost::Message as _;

use crate::fixture::{East, created, export, export_of, request, service};

fn statement() -> Statement {
    let (key, _) = export_of("shop", "cart");
    Statement {
        federation: "mesh.example".to_owned(),
        cluster: "east".to_owned(),
        generation: 1_800_000_000_000,
        sequence: 9,
        key: key.to_string(),
        issued_at_ms: 5,
        payload: Some(statement::Payload::Export((&export(&service("shop", "cart"))).into())),
    }
}

#[test]
fn a_record_is_what_its_cluster_said() {
    let east = East::new();
    let said = east.verified.verify(&east.speaker.key.sign_statement(&statement())).unwrap();
    assert_eq!((said.cluster.as_str(), said.generation, said.sequence), ("east", 1_800_000_000_000, 9));
    assert_eq!(said.issued, UNIX_EPOCH + Duration::from_millis(5));
    let (key, payload) = export_of("shop", "cart");
    assert_eq!((said.key, said.payload), (key, payload));
    assert!(said.refused.is_empty());
}

#[test]
fn every_changed_byte_of_a_record_is_noticed() {
    let east = East::new();
    let good = east.speaker.key.sign_statement(&statement());
    assert!(east.verified.verify(&good).is_ok());
    for bit in [0x01, 0x80] {
        for index in 0..good.message.len() {
            let mut message = good.message.to_vec();
            message[index] ^= bit;
            let bad = Signed { message: message.into(), ..good.clone() };
            assert_eq!(east.verified.verify(&bad).unwrap_err(), RecordError::Signature, "message byte {index}");
        }
        for index in 0..good.signature.len() {
            let mut signature = good.signature.to_vec();
            signature[index] ^= bit;
            let bad = Signed { signature: signature.into(), ..good.clone() };
            assert_eq!(east.verified.verify(&bad).unwrap_err(), RecordError::Signature, "signature byte {index}");
        }
    }
}

#[test]
fn a_record_of_somebody_else_is_refused() {
    let east = East::new();
    let refused = |statement| east.verified.verify(&east.speaker.key.sign_statement(&statement)).unwrap_err();
    for (statement, expected) in [
        (
            Statement { federation: "other.example".to_owned(), ..statement() },
            RecordError::Federation("\"other.example\"".to_owned()),
        ),
        (Statement { cluster: "west".to_owned(), ..statement() }, RecordError::Cluster("\"west\"".to_owned())),
        (Statement { generation: 1, ..statement() }, RecordError::Generation { found: 1, expected: 1_800_000_000_000 }),
        (Statement { sequence: 0, ..statement() }, RecordError::Sequence(0)),
    ] {
        assert_eq!(refused(statement), expected);
    }
    let stranger = PublishKey::generate().unwrap();
    assert_eq!(east.verified.verify(&stranger.sign_statement(&statement())).unwrap_err(), RecordError::Signature);
}

#[test]
fn a_signature_of_the_publish_key_for_a_grant_is_no_record() {
    let east = East::new();
    let grant = east.member.grants[0].clone();
    assert_eq!(east.verified.verify(&grant).unwrap_err(), RecordError::Signature);
    let next = federation_api::token::rotate(&east.speaker.key, &east.verified, &east.speaker.key.public(), 5);
    assert_eq!(east.verified.verify(&next).unwrap_err(), RecordError::Signature);
}

#[test]
fn the_payload_must_be_what_the_key_says() {
    let east = East::new();
    let slice = Slice { service: service("shop", "cart"), name: "cart-1".to_owned(), endpoints: Vec::new() };
    let bundle = Payload::Bundle { trust_domain: "east.mesh.example".to_owned(), jwks: b"{}".to_vec() };
    let payloads = [
        export_of("shop", "cart").1,
        Payload::Slice(slice),
        Payload::Gateways(Vec::new()),
        bundle,
        Payload::Heads(vec![]),
    ];
    let keys = ["exports/shop/cart", "slices/shop/cart/cart-1", "gateways", "bundle", "heads"];
    for (i, key) in keys.iter().enumerate() {
        let key: RecordKey = key.parse().unwrap();
        for (j, payload) in payloads.iter().enumerate() {
            let signed = east.speaker.sign(1, created(), &key, payload);
            assert_eq!(signed.is_ok(), i == j, "{key} with {}", payload.kind());
            // The same, made by a program that does not care.
            let own: RecordKey = keys[j].parse().unwrap();
            let mut statement = Statement::decode(east.sign(1, &own, payload).message).unwrap();
            statement.key = key.to_string();
            let verified = east.verified.verify(&east.speaker.key.sign_statement(&statement));
            assert_eq!(verified.is_ok(), i == j, "{key} with {}: {verified:?}", payload.kind());
        }
    }
    for (key, other) in
        [("exports/shop/cart", export_of("shop", "other").1), ("exports/other/cart", export_of("shop", "cart").1)]
    {
        assert!(east.speaker.sign(1, created(), &key.parse().unwrap(), &other).is_err(), "{key}");
    }
}

#[test]
fn only_what_can_be_withdrawn_is() {
    let east = East::new();
    for (key, allowed) in [
        ("exports/shop/cart", true),
        ("slices/shop/cart/a", true),
        ("gateways", true),
        ("bundle", false),
        ("heads", false),
    ] {
        let key: RecordKey = key.parse().unwrap();
        let signed = east.speaker.sign(1, created(), &key, &Payload::Withdrawal);
        assert_eq!(signed.is_ok(), allowed, "{key}");
        if let Ok(signed) = signed {
            assert!(!east.verified.verify(&signed).unwrap().is_live());
        }
    }
}

#[test]
fn a_payload_of_a_later_version_is_kept_without_its_meaning() {
    let east = East::new();
    let mut bytes = Statement { payload: None, ..statement() }.encode_to_vec();
    // Field 99, length-delimited, "new".
    bytes.extend([0x9a, 0x06, 3, b'n', b'e', b'w']);
    let later = Statement::decode(bytes.as_slice()).unwrap();
    assert_eq!(later.payload, None);
    let signed = east.speaker.key.sign_statement(&later);
    let said = east.verified.verify(&signed).unwrap();
    assert_eq!((&said.payload, &said.signed), (&Payload::Unknown, &signed));
    assert!(east.speaker.sign(1, created(), &said.key, &Payload::Unknown).is_err(), "nobody says it on purpose");
}

#[test]
fn a_record_that_is_too_large_is_not_looked_at() {
    let east = East::new();
    let signed = Signed { message: vec![0; MAX_RECORD_BYTES + 1].into(), signature: vec![0; 64].into() };
    assert_eq!(east.verified.verify(&signed).unwrap_err(), RecordError::Size(MAX_RECORD_BYTES + 1));
}

fn narrow() -> East {
    East::delegated(TokenRequest {
        namespaces: NamespaceSet::Some(BTreeSet::from(["shop".parse().unwrap()])),
        address_ranges: vec!["192.0.2.0/24".parse().unwrap()],
        host_names: vec!["*.east.example".to_owned()],
        ..request()
    })
}

#[test]
fn nothing_from_a_namespace_that_is_not_delegated_is_believed() {
    let east = narrow();
    let slice = |namespace: &str| {
        let slice = Slice { service: service(namespace, "cart"), name: "a".to_owned(), endpoints: Vec::new() };
        (RecordKey::Slice(slice.service.clone(), slice.name.clone()), Payload::Slice(slice))
    };
    for (namespace, allowed) in [("shop", true), ("bank", false)] {
        let (key, payload) = export_of(namespace, "cart");
        for (key, payload) in [(key.clone(), payload), (key, Payload::Withdrawal), slice(namespace)] {
            let verified = east.verified.verify(&east.sign(1, &key, &payload));
            assert_eq!(verified.is_ok(), allowed, "{key}");
            assert!(allowed || matches!(verified, Err(RecordError::NotDelegated(_))));
        }
    }
}

#[test]
fn an_exports_claims_are_held_to_bounds() {
    let east = East::new();
    let mut claim = export(&service("shop", "cart"));
    claim.created = UNIX_EPOCH;
    claim.zones = vec![ZoneCapacity { locality: Locality::new("r", "z"), total: u32::MAX, ready: u32::MAX }];
    let said = east.say(1, &RecordKey::Export(claim.service.clone()), &Payload::Export(Box::new(claim)));
    let Payload::Export(believed) = said.payload else { panic!("{said:?}") };
    assert_eq!(believed.created, created(), "not before the join");
    assert_eq!((believed.zones[0].total, believed.zones[0].ready), (MAX_CAPACITY, MAX_CAPACITY));
}

#[test]
fn gateways_and_addresses_outside_of_the_delegation_are_left_out_and_named() {
    let east = narrow();
    let gateway = |name: &str, address: &str| Gateway {
        name: name.to_owned(),
        address: address.parse().map_or_else(|_| GatewayAddress::Host(address.to_owned()), GatewayAddress::Ip),
        port: 15443,
        locality: Locality::default(),
        draining: false,
    };
    let gateways = vec![
        gateway("a", "192.0.2.1"),
        gateway("b", "127.0.0.1"),
        gateway("c", "169.254.169.254"),
        gateway("d", "gateway.east.example"),
        gateway("e", "gateway.west.example"),
    ];
    let said = east.say(1, &RecordKey::Gateways, &Payload::Gateways(gateways));
    let Payload::Gateways(believed) = said.payload else { panic!("{said:?}") };
    assert_eq!(believed.iter().map(|gateway| gateway.name.as_str()).collect::<Vec<_>>(), ["a", "d"]);
    assert_eq!(said.refused.len(), 3);
}

#[test]
fn an_endpoints_own_addresses_are_nobodys_to_refuse_for_they_mean_nothing_elsewhere() {
    let east = narrow();
    let endpoint = HeadlessEndpoint {
        hostname: Some("db-0".parse().unwrap()),
        addresses: vec!["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()],
        locality: Locality::default(),
        ready: true,
        service_account: "db".to_owned(),
    };
    let slice = Slice { service: service("shop", "db"), name: "db-x".to_owned(), endpoints: vec![endpoint.clone()] };
    let said = east.say(1, &RecordKey::Slice(slice.service.clone(), slice.name.clone()), &Payload::Slice(slice));
    let Payload::Slice(believed) = said.payload else { panic!("{said:?}") };
    assert_eq!((believed.endpoints, said.refused.len()), (vec![endpoint], 0));
}

#[test]
fn a_bundle_of_another_trust_domain_is_refused() {
    let east = East::new();
    for (trust_domain, allowed) in
        [("east.mesh.example", true), ("west.mesh.example", false), ("mesh.example", false), ("", false)]
    {
        let payload = Payload::Bundle { trust_domain: trust_domain.to_owned(), jwks: Vec::new() };
        let verified = east.verified.verify(&east.sign(1, &RecordKey::Bundle, &payload));
        assert_eq!(verified.is_ok(), allowed, "{trust_domain}");
    }
}
