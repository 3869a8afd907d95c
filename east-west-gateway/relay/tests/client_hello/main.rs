//! The ClientHello reader against genuine, malformed and arbitrary bytes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arbitrary;
mod genuine;
mod hand_made;
mod malformed;
mod streaming;

use relay::{ClientHello, ClientHelloError, ClientHelloReader};

/// More than any hello of these tests.
const LIMIT: usize = 64 * 1024;

/// The outcome of all bytes at once; `None` when they are not enough.
fn read_at_once(bytes: &[u8]) -> Result<Option<ClientHello>, ClientHelloError> {
    ClientHelloReader::new(LIMIT).push(bytes)
}

/// The outcome when the bytes come in these pieces.
fn read_in_pieces<'a>(
    max_bytes: usize,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<ClientHello>, ClientHelloError> {
    let mut reader = ClientHelloReader::new(max_bytes);
    let mut hello = None;
    for piece in pieces {
        hello = hello.or(reader.push(piece)?);
    }
    Ok(hello)
}

/// A handshake message cut into records of these lengths, in turn.
fn into_records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut lengths = lengths.iter().cycle();
    let mut rest = message;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (fragment, after) = rest.split_at((*lengths.next().unwrap()).clamp(1, rest.len()));
        records.extend_from_slice(&[22, 3, 1]);
        records.extend_from_slice(&u16::try_from(fragment.len()).unwrap().to_be_bytes());
        records.extend_from_slice(fragment);
        rest = after;
    }
    records
}
