//! Hellos that rustls writes, with and without the hybrid key share, cut at every boundary.

use std::sync::Arc;

use proptest::prelude::*;
use relay::{ClientHello, ClientHelloReader, alert};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};

use super::{
    LIMIT,
    hand_made::{Parts, alpn, extension, host_name, server_names},
    into_records, read_at_once, read_in_pieces,
};

const NAME: &str = "outbound_.8080_.c-east.e-3_.echo.shop.svc.clusterset.local";

/// What a genuine client sends first.
struct Flight {
    bytes: Vec<u8>,
    hello: ClientHello,
}

impl Flight {
    /// The handshake message, without the header of the one record rustls puts it in.
    fn message(&self) -> &[u8] {
        &self.bytes[5..]
    }
}

fn flight(hybrid: bool, name: &str, protocols: &[&[u8]]) -> Flight {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| hybrid || group.name() != NamedGroup::X25519MLKEM768);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name.clone()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    let mut hello = ClientHello::default();
    hello.server_name = matches!(name, ServerName::DnsName(_)).then(|| name.to_str().into_owned());
    hello.alpn = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Flight { bytes, hello }
}

fn flights() -> [Flight; 3] {
    [
        flight(true, NAME, &[b"isthmus-h2", b"isthmus-tcp"]),
        flight(false, NAME, &[b"istio-peer-exchange"]),
        flight(true, "127.0.0.1", &[]),
    ]
}

#[test]
fn a_genuine_hello_gives_its_name_and_protocols() {
    for Flight { bytes, hello } in flights() {
        assert_eq!(read_at_once(&bytes), Ok(Some(hello)));
    }
}

#[test]
fn the_hybrid_hello_is_larger_than_a_segment() {
    assert!(flight(true, NAME, &[]).bytes.len() > 1448);
    assert!(flight(false, NAME, &[]).bytes.len() < 1448);
}

#[test]
fn a_hello_cut_anywhere_is_read_when_its_last_byte_is_there() {
    for Flight { bytes, hello } in flights() {
        for cut in 0..bytes.len() {
            let mut reader = ClientHelloReader::new(LIMIT);
            assert_eq!(reader.push(&bytes[..cut]), Ok(None), "cut at {cut}");
            assert_eq!(reader.push(&bytes[cut..]), Ok(Some(hello.clone())), "cut at {cut}");
            assert_eq!(reader.buffered(), bytes);
        }
    }
}

#[test]
fn a_hello_byte_by_byte_is_read() {
    for Flight { bytes, hello } in flights() {
        assert_eq!(read_in_pieces(LIMIT, bytes.chunks(1)), Ok(Some(hello)));
    }
}

#[test]
fn a_hello_in_two_records_cut_anywhere_is_read() {
    for flight in flights() {
        for cut in 1..flight.message().len() {
            let records = into_records(flight.message(), &[cut, 1 << 14]);
            assert_eq!(read_at_once(&records), Ok(Some(flight.hello.clone())), "cut at {cut}");
        }
    }
}

#[test]
fn what_follows_the_hello_is_kept_to_be_sent_on() {
    let flight = flight(true, NAME, &[]);
    // A compatibility change_cipher_spec and early data may follow at once.
    let bytes = [flight.bytes.as_slice(), &[20, 3, 3, 0, 1, 1], &[23, 3, 3, 0, 2, 1, 2]].concat();
    let mut reader = ClientHelloReader::new(LIMIT);
    assert_eq!(reader.push(&bytes), Ok(Some(flight.hello)));
    assert_eq!(reader.push(b"more"), Ok(None));
    assert_eq!(*reader.into_buffered(), [bytes.as_slice(), b"more"].concat());
}

#[test]
fn the_limit_is_the_last_byte_of_the_hello_however_it_is_cut() {
    for flight in flights() {
        for lengths in [[1 << 14, 1 << 14], [1, 1 << 14], [3, 100], [1, 1]] {
            let records = into_records(flight.message(), &lengths);
            for piece in [1, 7, records.len()] {
                let exact = read_in_pieces(records.len(), records.chunks(piece));
                assert_eq!(exact, Ok(Some(flight.hello.clone())));
                let max_bytes = records.len() - 1;
                let refused = read_in_pieces(max_bytes, records.chunks(piece)).unwrap_err();
                assert_eq!(refused, relay::ClientHelloError::TooLarge { max_bytes });
                assert_eq!(refused.alert(), Some(alert::ILLEGAL_PARAMETER));
            }
        }
    }
}

#[test]
fn an_oversized_hello_is_refused_as_soon_as_it_says_its_length() {
    let mut reader = ClientHelloReader::new(16 * 1024);
    assert_eq!(
        reader.push(&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]),
        Err(relay::ClientHelloError::TooLarge { max_bytes: 16 * 1024 })
    );
}

#[test]
fn hellos_of_every_kind_that_routes_are_accepted() {
    let grease = |kind| extension(kind, &[0]);
    let named = |name: &str| {
        let mut hello = ClientHello::default();
        hello.server_name = Some(name.to_owned());
        hello
    };
    let longest = ["a"; 255].concat();
    let table: [(&str, Parts, ClientHello); 10] = [
        ("TLS 1.2 without extensions", Parts { extensions: None, ..Parts::default() }, ClientHello::default()),
        ("TLS 1.0", Parts { version: [3, 1], ..Parts::with_extensions(&[host_name(b"a.b")]) }, named("a.b")),
        ("an empty extension list", Parts::default(), ClientHello::default()),
        (
            "an empty session id",
            Parts { session_id: vec![], ..Parts::with_extensions(&[host_name(b"a.b")]) },
            named("a.b"),
        ),
        ("no server name", Parts::with_extensions(&[extension(43, &[2, 3, 4])]), ClientHello::default()),
        ("upper case", Parts::with_extensions(&[host_name(b"Echo.SHOP")]), named("echo.shop")),
        ("GREASE around", Parts::with_extensions(&[grease(0x1a1a), host_name(b"a.b"), grease(0xfafa)]), named("a.b")),
        ("GREASE twice", Parts::with_extensions(&[grease(0x1a1a), grease(0x1a1a), host_name(b"a.b")]), named("a.b")),
        (
            "an outer hello of ECH",
            Parts::with_extensions(&[extension(0xfe0d, &[0; 200]), host_name(b"public.name")]),
            named("public.name"),
        ),
        ("another name type first", Parts::with_extensions(&[server_names(&[(9, b"x"), (0, b"a.b")])]), named("a.b")),
    ];
    for (what, parts, hello) in table {
        assert_eq!(read_at_once(&parts.record()), Ok(Some(hello)), "{what}");
    }
    let longest_name = Parts::with_extensions(&[host_name(longest.as_bytes())]);
    assert_eq!(read_at_once(&longest_name.record()), Ok(Some(named(&longest))));
    let protocols = Parts::with_extensions(&[alpn(&[b"\x0a\x0a", b"h2"])]);
    assert_eq!(read_at_once(&protocols.record()).unwrap().unwrap().alpn, [b"\x0a\x0a".to_vec(), b"h2".to_vec()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_fragmentation_changes_a_genuine_hello(
        hybrid: bool,
        record_lengths in prop::collection::vec(1_usize..600, 1..8),
        piece_lengths in prop::collection::vec(1_usize..900, 1..8),
    ) {
        let flight = flight(hybrid, NAME, &[b"isthmus-h2"]);
        let records = into_records(flight.message(), &record_lengths);
        let mut reader = ClientHelloReader::new(LIMIT);
        let mut found = None;
        let (mut rest, mut lengths) = (records.as_slice(), piece_lengths.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*lengths.next().unwrap()).min(rest.len()));
            if let Some(hello) = reader.push(piece).unwrap() {
                prop_assert!(after.is_empty(), "complete before its last byte");
                found = Some(hello);
            }
            rest = after;
        }
        prop_assert_eq!(found, Some(flight.hello));
        prop_assert_eq!(&*reader.into_buffered(), records.as_slice());
    }
}
