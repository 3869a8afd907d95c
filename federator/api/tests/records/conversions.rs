//! From the domain to the wire and back, and what the wire may not say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use federation::export::IpFamily;
use federation::{
    Export, Gateway, GatewayAddress, HeadlessEndpoint, Locality, Port, Protocol, RecordKey, ServiceId, ServiceType,
    ZoneCapacity,
};
use federation_api::payload::{Payload, Slice};
use federation_api::record::v1 as wire;
use federation_api::records::{Head, HeadScope};
use federation_api::signing::PublicKey;
use federation_api::token::TokenRequest;
use federation_api::verify::RecordError;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use prost::Message as _;

use crate::fixture::{East, created, export, request, service};

/// Joined in 1970, so that every creation time stands.
static EAST: LazyLock<East> = LazyLock::new(|| {
    let mut east = East::delegated(TokenRequest { created: created(), ..request() });
    east.member = east.token.member(&east.speaker.key.public(), UNIX_EPOCH);
    let root: PublicKey = east.root.public();
    east.verified =
        federation_api::verify::verify_member(&root, &crate::fixture::federation(), &east.member, None).unwrap();
    east
});

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
}

fn service_id() -> impl Strategy<Value = ServiceId> {
    (label(), label()).prop_map(|(namespace, name)| service(&namespace, &name))
}

fn locality() -> impl Strategy<Value = Locality> {
    ("[a-z0-9-]{0,20}", "[a-z0-9-]{0,20}").prop_map(|(region, zone)| Locality::new(region, zone))
}

fn port(name: String, port: u16) -> impl Strategy<Value = Port> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    (protocol, "[a-z0-9./-]{0,30}").prop_map(move |(protocol, app_protocol)| Port {
        name: name.clone(),
        port,
        protocol,
        app_protocol,
    })
}

fn ports() -> impl Strategy<Value = Vec<Port>> {
    (btree_set(label(), 0..5), btree_set(1_u16.., 5)).prop_flat_map(|(names, numbers)| {
        names.into_iter().zip(numbers).map(|(name, number)| port(name, number)).collect::<Vec<_>>()
    })
}

fn zones() -> impl Strategy<Value = Vec<ZoneCapacity>> {
    let capacity = (0_u32..=100_000).prop_flat_map(|total| (Just(total), 0..=total));
    btree_map(locality(), capacity, 0..4).prop_map(|zones| {
        let zone = |(locality, (total, ready))| ZoneCapacity { locality, total, ready };
        zones.into_iter().map(zone).collect()
    })
}

fn ip_families() -> impl Strategy<Value = Vec<IpFamily>> {
    use IpFamily::{IPv4, IPv6};
    prop::sample::select(vec![vec![], vec![IPv4], vec![IPv6], vec![IPv4, IPv6], vec![IPv6, IPv4]])
}

prop_compose! {
    fn any_export()(
        service in service_id(),
        headless in any::<bool>(),
        ports in ports(),
        affinity in prop::option::of(1_u64..=86_400),
        ip_families in ip_families(),
        policies in ("(Local|Cluster)?", "(PreferClose)?"),
        labels in btree_map("[a-z./]{1,20}", "[a-zA-Z0-9._-]{0,63}", 0..4),
        annotations in btree_map("[a-z./]{1,20}", ".{0,40}", 0..4),
        created in 0_u64..=253_402_300_799,
        service_accounts in vec(label(), 0..4),
        zones in zones(),
    ) -> Export {
        Export {
            service,
            service_type: if headless { ServiceType::Headless } else { ServiceType::ClusterSetIP },
            ports,
            client_ip_affinity: affinity.map(Duration::from_secs),
            ip_families,
            internal_traffic_policy: policies.0,
            traffic_distribution: policies.1,
            labels,
            annotations,
            created: UNIX_EPOCH + Duration::from_secs(created),
            service_accounts,
            zones,
        }
    }
}

/// Addresses of ordinary networks: others are a matter of delegation.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::V4(Ipv4Addr::new(10, a, b, c)));
    let v6 =
        any::<[u16; 7]>().prop_map(|s| IpAddr::V6(Ipv6Addr::new(0x2001, s[0], s[1], s[2], s[3], s[4], s[5], s[6])));
    prop_oneof![v4, v6]
}

fn gateways() -> impl Strategy<Value = Vec<Gateway>> {
    let host = "[a-z]{1,9}(\\.[a-z]{1,9}){0,2}".prop_map(GatewayAddress::Host);
    let address = prop_oneof![address().prop_map(GatewayAddress::Ip), host];
    btree_map(label(), (address, 1_u16.., locality(), any::<bool>()), 0..5).prop_map(|gateways| {
        let gateway = |(name, (address, port, locality, draining))| Gateway { name, address, port, locality, draining };
        gateways.into_iter().map(gateway).collect()
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let endpoint = (prop::option::of(label()), vec(address(), 0..4), locality(), any::<bool>(), label());
    let endpoint = endpoint.prop_map(|(hostname, addresses, locality, ready, service_account)| HeadlessEndpoint {
        hostname: hostname.map(|hostname| hostname.parse().unwrap()),
        addresses,
        locality,
        ready,
        service_account,
    });
    let name = (label(), label()).prop_map(|(a, b)| format!("{a}.{b}"));
    (service_id(), name, vec(endpoint, 0..4)).prop_map(|(service, name, endpoints)| Slice { service, name, endpoints })
}

fn heads() -> impl Strategy<Value = Vec<Head>> {
    let head = (any::<u32>(), any::<[u8; 32]>());
    (btree_map(label(), head, 0..4), prop::option::of(head)).prop_map(|(namespaces, cluster)| {
        let scope = |text: &str| HeadScope::Namespace(text.parse().unwrap());
        let named = namespaces.into_iter().map(|(name, head)| (scope(&name), head));
        let all = named.chain(cluster.map(|head| (HeadScope::Cluster, head)));
        all.map(|(scope, (count, digest))| Head { scope, count, digest }).collect()
    })
}

fn record() -> impl Strategy<Value = (RecordKey, Payload)> {
    prop_oneof![
        any_export().prop_map(|it| (RecordKey::Export(it.service.clone()), Payload::Export(Box::new(it)))),
        slice().prop_map(|it| (RecordKey::Slice(it.service.clone(), it.name.clone()), Payload::Slice(it))),
        gateways().prop_map(|it| (RecordKey::Gateways, Payload::Gateways(it))),
        heads().prop_map(|it| (RecordKey::Heads, Payload::Heads(it))),
        vec(any::<u8>(), 0..64).prop_map(|jwks| {
            (RecordKey::Bundle, Payload::Bundle { trust_domain: "east.mesh.example".to_owned(), jwks })
        }),
        service_id().prop_map(|service| (RecordKey::Export(service), Payload::Withdrawal)),
    ]
}

proptest! {
    #[test]
    fn what_is_signed_is_what_is_read((key, payload) in record(), sequence in 1_u64..) {
        let said = EAST.say(sequence, &key, &payload);
        prop_assert_eq!((said.key, said.payload, said.sequence, said.refused), (key, payload, sequence, vec![]));
    }

    #[test]
    fn any_signed_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(statement) = wire::Statement::decode(bytes.as_slice()) {
            let _ = EAST.verified.verify(&EAST.speaker.key.sign_statement(&statement));
        }
    }

    #[test]
    fn any_export_message_is_read_without_a_panic(
        text in vec(".{0,80}", 4),
        numbers in vec(any::<u32>(), 4),
        created_at in any::<i64>(),
        kinds in vec(any::<i32>(), 4),
    ) {
        let port = wire::Port { name: text[0].clone(), port: numbers[0], protocol: kinds[0], app_protocol: text[1].clone() };
        let locality = wire::Locality { region: text[2].clone(), zone: text[3].clone() };
        let message = wire::Export {
            namespace: text[0].clone(),
            service: text[1].clone(),
            r#type: kinds[1],
            ports: vec![port],
            client_ip_affinity_seconds: numbers[1],
            ip_families: vec![kinds[2], kinds[3]],
            created_at,
            zones: vec![wire::ZoneCapacity { locality: Some(locality), total: numbers[2], ready: numbers[3] }],
            ..wire::Export::default()
        };
        let _ = Export::try_from(message);
    }
}

fn wire_export() -> wire::Export {
    let mut export = export(&service("shop", "cart"));
    let port =
        |name: &str, port| Port { name: name.to_owned(), port, protocol: Protocol::Tcp, app_protocol: String::new() };
    export.ports = vec![port("http", 80), port("grpc", 81)];
    (&export).into()
}

#[test]
fn an_export_with_a_bad_field_is_refused_by_the_fields_name() {
    type Change = fn(&mut wire::Export);
    let changes: [(&str, Change); 22] = [
        ("namespace", |export| export.namespace = "Shop".to_owned()),
        ("service", |export| export.service = String::new()),
        ("type", |export| export.r#type = 0),
        ("type", |export| export.r#type = 77),
        ("ports[1].port", |export| export.ports[1].port = 0),
        ("ports[1].port", |export| export.ports[1].port = 70_000),
        ("ports[1].port", |export| export.ports[1].port = 80),
        ("ports[1].name", |export| export.ports[1].name = "http".to_owned()),
        ("ports[0].name", |export| export.ports[0].name = "HTTP".to_owned()),
        ("ports[0].protocol", |export| export.ports[0].protocol = 0),
        ("ports[0].app_protocol", |export| export.ports[0].app_protocol = "a b".to_owned()),
        ("ports", |export| export.ports = vec![wire::Port::default(); 257]),
        ("client_ip_affinity_seconds", |export| export.client_ip_affinity_seconds = 86_401),
        ("ip_families[0].family", |export| export.ip_families = vec![9]),
        ("ip_families", |export| export.ip_families = vec![1, 1]),
        ("internal_traffic_policy", |export| export.internal_traffic_policy = "a\n".to_owned()),
        ("labels[\"app\"]", |export| drop(export.labels.insert("app".to_owned(), "x".repeat(64)))),
        ("annotations", |export| drop(export.annotations.insert("app".to_owned(), "x".repeat(300_000)))),
        ("service_accounts[0]", |export| export.service_accounts[0] = "../admin".to_owned()),
        ("zones[0].locality.zone", |export| {
            let locality = Some(wire::Locality { region: String::new(), zone: "x".repeat(64) });
            export.zones = vec![wire::ZoneCapacity { locality, total: 1, ready: 1 }];
        }),
        ("zones", |export| export.zones = vec![wire::ZoneCapacity::default(); 2]),
        ("zones", |export| export.zones = vec![wire::ZoneCapacity::default(); 257]),
    ];
    assert!(Export::try_from(wire_export()).is_ok());
    for (field, change) in changes {
        let mut message = wire_export();
        change(&mut message);
        assert_eq!(Export::try_from(message).unwrap_err().field, field);
    }
}

#[test]
fn a_gateways_address_is_an_address_or_a_host_name() {
    let gateway = |address: &str| wire::Gateway {
        name: "a".to_owned(),
        address: address.to_owned(),
        port: 15443,
        ..wire::Gateway::default()
    };
    for (text, expected) in [
        ("192.0.2.1", Some("192.0.2.1")),
        ("2001:db8::1", Some("2001:db8::1")),
        ("Gateway.East.Example.", Some("gateway.east.example")),
        // What resolvers take for 127.0.0.1 is no host name.
        ("127.1", None),
        ("2130706433", None),
        ("0x7f.0.0.1", None),
        ("", None),
        ("a..b", None),
        ("host:80", None),
        ("[::1]", None),
        ("fe80::1%eth0", None),
    ] {
        let parsed = Gateway::try_from(gateway(text)).map(|gateway| gateway.address.to_string());
        assert_eq!(parsed.ok().as_deref(), expected, "{text}");
    }
    for bad in [wire::Gateway { port: 0, ..gateway("a.b") }, wire::Gateway { name: String::new(), ..gateway("a.b") }] {
        assert!(Gateway::try_from(bad).is_err());
    }
}

#[test]
fn a_records_error_names_the_field_with_its_path() {
    let refused = |key: &str, payload: wire::statement::Payload| {
        let statement = wire::Statement {
            federation: "mesh.example".to_owned(),
            cluster: "east".to_owned(),
            generation: EAST.speaker.generation,
            sequence: 1,
            key: key.to_owned(),
            issued_at_ms: 0,
            payload: Some(payload),
        };
        match EAST.verified.verify(&EAST.speaker.key.sign_statement(&statement)) {
            Err(RecordError::Field(error)) => error.field,
            other => panic!("{key}: {other:?}"),
        }
    };
    use wire::statement::Payload;
    let gateway =
        |name: &str| wire::Gateway { name: name.to_owned(), address: "a.b".to_owned(), port: 1, ..Default::default() };
    let gateways = |names: &[&str]| {
        Payload::Gateways(wire::Gateways { gateways: names.iter().map(|name| gateway(name)).collect() })
    };
    assert_eq!(refused("gateways", gateways(&["a", "B"])), "gateways.gateways[1].name");
    assert_eq!(refused("gateways", gateways(&["a", "a"])), "gateways.gateways");
    let export = wire::Export { namespace: "a/b".to_owned(), ..wire_export() };
    assert_eq!(refused("exports/shop/cart", Payload::Export(export)), "export.namespace");
    let head = |scope: &str, bytes| wire::Head { scope: scope.to_owned(), count: 1, digest: vec![0; bytes] };
    let heads = |heads: Vec<wire::Head>| Payload::Heads(wire::Heads { heads });
    assert_eq!(refused("heads", heads(vec![head("cluster", 31)])), "heads.heads[0].digest");
    assert_eq!(refused("heads", heads(vec![head("ns/a", 32), head("ns/a", 32)])), "heads.heads[1].scope");
}

#[test]
fn heads_of_a_later_version_are_skipped() {
    let heads = wire::Heads { heads: vec![wire::Head { scope: "new/kind".to_owned(), count: 1, digest: vec![] }] };
    let statement = wire::Statement {
        federation: "mesh.example".to_owned(),
        cluster: "east".to_owned(),
        generation: EAST.speaker.generation,
        sequence: 1,
        key: "heads".to_owned(),
        issued_at_ms: 0,
        payload: Some(wire::statement::Payload::Heads(heads)),
    };
    let said = EAST.verified.verify(&EAST.speaker.key.sign_statement(&statement)).unwrap();
    assert_eq!(said.payload, Payload::Heads(vec![]));
}
