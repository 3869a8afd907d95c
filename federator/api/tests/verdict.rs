//! The server's first words between sidecars.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use federation_api::mesh::v1::Verdict;
use federation_api::mesh::v1::verdict::Code;
use federation_api::record::v1::Locality;
use federation_api::verdict::{HEADER_BYTES, MAX_VERDICT_BYTES, VerdictError, encode, read};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

const DEADLINE: Duration = Duration::from_secs(5);

fn verdict() -> Verdict {
    Verdict {
        code: Code::Ok.into(),
        endpoint: "east/shop/cart-7".to_owned(),
        cluster: "east".to_owned(),
        locality: Some(Locality { region: "eu".to_owned(), zone: "eu-1".to_owned() }),
        detail: String::new(),
    }
}

async fn read_bytes(bytes: &[u8]) -> Result<Verdict, VerdictError> {
    read(&mut &*bytes, DEADLINE).await
}

#[tokio::test]
async fn a_verdict_is_read_and_not_a_byte_more() {
    let mut bytes = encode(&verdict()).unwrap();
    assert_eq!(bytes[..2], [0x49, 1]);
    assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), bytes.len() - HEADER_BYTES);
    bytes.extend(b"PRI * HTTP/2.0");
    let mut rest = bytes.as_slice();
    assert_eq!(read(&mut rest, DEADLINE).await.unwrap(), verdict());
    assert_eq!(rest, b"PRI * HTTP/2.0");
}

#[tokio::test]
async fn a_verdict_may_come_byte_by_byte() {
    let bytes = encode(&verdict()).unwrap();
    let (mut server, mut client) = duplex(1);
    let writing = async {
        for byte in &bytes {
            server.write_all(&[*byte]).await.unwrap();
        }
    };
    let (read, ()) = tokio::join!(read(&mut client, DEADLINE), writing);
    assert_eq!(read.unwrap(), verdict());
}

#[tokio::test]
async fn every_cut_frame_is_an_error() {
    let bytes = encode(&verdict()).unwrap();
    for cut in 0..bytes.len() {
        assert!(matches!(read_bytes(&bytes[..cut]).await, Err(VerdictError::Io(_))), "cut at {cut}");
    }
}

#[tokio::test]
async fn another_protocol_or_version_is_named() {
    assert!(matches!(read_bytes(b"HTTP/1.1 400 Bad Request\r\n").await, Err(VerdictError::Magic(b'H'))));
    assert!(matches!(read_bytes(&[0x49, 0, 0, 0]).await, Err(VerdictError::Version(0))));
    assert!(matches!(read_bytes(&[0x49, 2, 0, 0]).await, Err(VerdictError::Version(2))));
}

#[tokio::test]
async fn an_oversized_or_broken_verdict_is_refused() {
    let length = u16::try_from(MAX_VERDICT_BYTES + 1).unwrap().to_be_bytes();
    let oversized = [[0x49, 1], length].concat();
    assert!(matches!(read_bytes(&oversized).await, Err(VerdictError::Length(4097))));
    // A string field of 127 bytes in a message of two.
    assert!(matches!(read_bytes(&[0x49, 1, 0, 2, 0x12, 0x7f]).await, Err(VerdictError::Decode)));
    assert_eq!(read_bytes(&[0x49, 1, 0, 0]).await.unwrap().code(), Code::Unspecified);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_in_time() {
    let (mut server, mut client) = duplex(64);
    server.write_all(&[0x49, 1, 0]).await.unwrap();
    let started = tokio::time::Instant::now();
    assert!(matches!(read(&mut client, DEADLINE).await, Err(VerdictError::Deadline(DEADLINE))));
    assert_eq!(started.elapsed(), DEADLINE);
    let mut rest = Vec::new();
    drop(client);
    assert!(server.read_to_end(&mut rest).await.is_ok() && rest.is_empty());
}

#[tokio::test]
async fn a_long_detail_is_cut_and_a_long_name_refused() {
    let long = Verdict { detail: "ä".repeat(5_000), ..verdict() };
    let read = read_bytes(&encode(&long).unwrap()).await.unwrap();
    assert_eq!((read.detail, read.endpoint), ("ä".repeat(512), verdict().endpoint));
    let long = Verdict { endpoint: "x".repeat(MAX_VERDICT_BYTES), ..verdict() };
    assert!(matches!(encode(&long), Err(VerdictError::Length(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _ = runtime.block_on(read_bytes(&bytes));
        let framed = [&[0x49, 1, 0, u8::try_from(bytes.len()).unwrap()], bytes.as_slice()].concat();
        let _ = runtime.block_on(read_bytes(&framed));
    }
}
