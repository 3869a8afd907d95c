//! Each refusal, its alert, and that it does not depend on how the bytes are cut.

use relay::{ClientHelloError as Error, ClientHelloReader, alert};

use super::{
    LIMIT,
    hand_made::{Parts, alpn, extension, host_name, message, server_names, vector16},
    into_records, read_at_once, read_in_pieces,
};

fn refused(what: &str, bytes: &[u8], error: Error, alert: Option<[u8; 7]>) {
    assert_eq!(read_at_once(bytes), Err(error), "{what}");
    assert_eq!(read_in_pieces(LIMIT, bytes.chunks(1)), Err(error), "{what}, byte by byte");
    assert_eq!(error.alert(), alert, "{what}");
}

fn refused_parts(what: &str, parts: &Parts, error: Error, alert: [u8; 7]) {
    refused(what, &parts.record(), error, Some(alert));
    refused(what, &into_records(&parts.message(), &[1]), error, Some(alert));
}

#[test]
fn bytes_that_are_not_tls_are_refused_without_an_alert() {
    let table: [(&str, &[u8]); 7] = [
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
        ("PROXY protocol", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"),
        ("a hello of SSL 2", &[0x80, 0x2e, 1, 0, 2, 0, 0x15]),
        ("zeros", &[0; 64]),
        ("a handshake type and no version", &[22, 9, 9, 0, 9, 1]),
        ("an alert type and no version", &[21, 4, 1, 0, 2, 2, 40]),
    ];
    for (what, bytes) in table {
        refused(what, bytes, Error::NotTls, None);
    }
}

#[test]
fn records_out_of_place_are_refused() {
    let hello = Parts::default().message();
    let after_first_half = |next: &[u8]| [into_records(&hello[..20], &[20]).as_slice(), next].concat();
    let unexpected = |content_type| Error::UnexpectedRecord { content_type };
    let table = [
        ("an alert", vec![21, 3, 3, 0, 2, 2, 40], unexpected(21), alert::UNEXPECTED_MESSAGE),
        ("change_cipher_spec", vec![20, 3, 3, 0, 1, 1], unexpected(20), alert::UNEXPECTED_MESSAGE),
        ("application data", vec![23, 3, 3, 0, 1, 1], unexpected(23), alert::UNEXPECTED_MESSAGE),
        (
            "an alert in the middle",
            after_first_half(&[21, 3, 3, 0, 2, 2, 40]),
            unexpected(21),
            alert::UNEXPECTED_MESSAGE,
        ),
        ("an unknown type in the middle", after_first_half(b"GET /"), unexpected(b'G'), alert::UNEXPECTED_MESSAGE),
        (
            "another version in the middle",
            after_first_half(&[22, 2, 0, 0, 1, 1]),
            Error::RecordVersion { major: 2, minor: 0 },
            alert::PROTOCOL_VERSION,
        ),
        ("an empty record", vec![22, 3, 1, 0, 0], Error::EmptyRecord, alert::UNEXPECTED_MESSAGE),
        (
            "an empty record in the middle",
            after_first_half(&[22, 3, 3, 0, 0]),
            Error::EmptyRecord,
            alert::UNEXPECTED_MESSAGE,
        ),
        ("a long record", vec![22, 3, 1, 0x40, 1], Error::RecordTooLong { length: 16385 }, alert::RECORD_OVERFLOW),
        (
            "a ServerHello",
            vec![22, 3, 3, 0, 4, 2, 0, 0, 0],
            Error::NotClientHello { message: 2 },
            alert::UNEXPECTED_MESSAGE,
        ),
        ("a HelloRequest", vec![22, 3, 1, 0, 1, 0], Error::NotClientHello { message: 0 }, alert::UNEXPECTED_MESSAGE),
    ];
    for (what, bytes, error, alert) in table {
        refused(what, &bytes, error, Some(alert));
    }
}

#[test]
fn every_truncation_of_the_message_is_refused() {
    let body = Parts::with_extensions(&[host_name(b"echo.shop"), alpn(&[b"h2"])]).body();
    let without_extensions = Parts { extensions: None, ..Parts::default() }.body().len();
    for length in (0..body.len()).filter(|length| *length != without_extensions) {
        let bytes = into_records(&message(1, &body[..length]), &[1 << 14]);
        let error = read_at_once(&bytes).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{length}: {error}");
        assert_eq!(error.alert(), Some(alert::DECODE_ERROR));
    }
}

#[test]
fn fields_outside_their_definition_are_refused() {
    let length = |field, length| Error::Length { field, length };
    let default = Parts::default;
    let table = [
        (
            "SSL 3",
            Parts { version: [3, 0], ..default() },
            Error::ClientVersion { major: 3, minor: 0 },
            alert::PROTOCOL_VERSION,
        ),
        (
            "DTLS",
            Parts { version: [254, 253], ..default() },
            Error::ClientVersion { major: 254, minor: 253 },
            alert::PROTOCOL_VERSION,
        ),
        (
            "a long session id",
            Parts { session_id: vec![0; 33], ..default() },
            length("legacy_session_id", 33),
            alert::DECODE_ERROR,
        ),
        (
            "no cipher suite",
            Parts { cipher_suites: vec![], ..default() },
            length("cipher_suites", 0),
            alert::DECODE_ERROR,
        ),
        (
            "half a cipher suite",
            Parts { cipher_suites: vec![0x13, 1, 0], ..default() },
            length("cipher_suites", 3),
            alert::DECODE_ERROR,
        ),
        (
            "no compression method",
            Parts { compression: vec![], ..default() },
            length("legacy_compression_methods", 0),
            alert::DECODE_ERROR,
        ),
        (
            "bytes after the extensions",
            Parts { trailing: vec![0], ..default() },
            Error::TrailingBytes { field: "ClientHello" },
            alert::DECODE_ERROR,
        ),
        (
            "one byte of an extension",
            Parts { extensions: Some(vec![0]), ..default() },
            Error::Truncated { field: "extension_type" },
            alert::DECODE_ERROR,
        ),
        (
            "a long extension",
            Parts { extensions: Some(vec![0, 0, 0, 9, 1]), ..default() },
            Error::Truncated { field: "extension_data" },
            alert::DECODE_ERROR,
        ),
    ];
    for (what, parts, error, alert) in table {
        refused_parts(what, &parts, error, alert);
    }
}

#[test]
fn server_names_that_do_not_name_one_host_are_refused() {
    let table = [
        (
            "the extension twice",
            vec![host_name(b"a.b"), host_name(b"a.b")],
            Error::DuplicateExtension { extension: 0 },
            alert::ILLEGAL_PARAMETER,
        ),
        (
            "two host names",
            vec![server_names(&[(0, b"a.b"), (0, b"c.d")])],
            Error::TwoServerNames,
            alert::ILLEGAL_PARAMETER,
        ),
        ("another name type only", vec![server_names(&[(1, b"a.b")])], Error::NotHostName, alert::UNRECOGNIZED_NAME),
        ("no data", vec![extension(0, &[])], Error::Truncated { field: "server_name_list" }, alert::DECODE_ERROR),
        (
            "an empty list",
            vec![extension(0, &[0, 0])],
            Error::Length { field: "server_name_list", length: 0 },
            alert::DECODE_ERROR,
        ),
        ("an empty name", vec![host_name(b"")], Error::Length { field: "HostName", length: 0 }, alert::DECODE_ERROR),
        (
            "bytes after the list",
            vec![extension(0, &[0, 4, 0, 0, 1, b'a', 7])],
            Error::TrailingBytes { field: "server_name" },
            alert::DECODE_ERROR,
        ),
        (
            "a list cut short",
            vec![extension(0, &[0, 9, 0, 0, 1, b'a'])],
            Error::Truncated { field: "server_name_list" },
            alert::DECODE_ERROR,
        ),
        (
            "a name cut short",
            vec![extension(0, &vector16(&[0, 0, 9, b'a']))],
            Error::Truncated { field: "HostName" },
            alert::DECODE_ERROR,
        ),
        (
            "256 bytes",
            vec![host_name(&[b'a'; 256])],
            Error::ServerNameTooLong { length: 256 },
            alert::ILLEGAL_PARAMETER,
        ),
        ("a zero byte", vec![host_name(b"a.b\0.c")], Error::ServerNameByte { byte: 0 }, alert::ILLEGAL_PARAMETER),
        ("a space", vec![host_name(b"a b")], Error::ServerNameByte { byte: b' ' }, alert::ILLEGAL_PARAMETER),
        ("UTF-8", vec![host_name("é.b".as_bytes())], Error::ServerNameByte { byte: 0xc3 }, alert::ILLEGAL_PARAMETER),
        ("a line feed", vec![host_name(b"a.b\n")], Error::ServerNameByte { byte: b'\n' }, alert::ILLEGAL_PARAMETER),
    ];
    for (what, extensions, error, alert) in table {
        refused_parts(what, &Parts::with_extensions(&extensions), error, alert);
    }
}

#[test]
fn malformed_protocol_lists_are_refused() {
    let table = [
        (
            "the extension twice",
            vec![alpn(&[b"h2"]), alpn(&[b"h2"])],
            Error::DuplicateExtension { extension: 16 },
            alert::ILLEGAL_PARAMETER,
        ),
        (
            "an empty list",
            vec![alpn(&[])],
            Error::Length { field: "protocol_name_list", length: 0 },
            alert::DECODE_ERROR,
        ),
        (
            "an empty protocol",
            vec![alpn(&[b"h2", b""])],
            Error::Length { field: "ProtocolName", length: 0 },
            alert::DECODE_ERROR,
        ),
        (
            "a protocol cut short",
            vec![extension(16, &vector16(&[9, b'h']))],
            Error::Truncated { field: "ProtocolName" },
            alert::DECODE_ERROR,
        ),
    ];
    for (what, extensions, error, alert) in table {
        refused_parts(what, &Parts::with_extensions(&extensions), error, alert);
    }
}

#[test]
fn a_refusal_stays() {
    let mut reader = ClientHelloReader::new(LIMIT);
    assert_eq!(reader.push(b"GET"), Err(Error::NotTls));
    assert_eq!(reader.push(&Parts::default().record()), Err(Error::NotTls));
}
