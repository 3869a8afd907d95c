//! The hello reader: whatever comes, in whatever pieces, nothing panics, the bound holds, and the pieces do not matter.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay::{ClientHello, ClientHelloError, ClientHelloReader};

const MAX_BYTES: usize = 4096;

/// The first outcome, reading pieces whose lengths the first bytes choose; beside it how much had been pushed.
fn read(bytes: &[u8], mut lengths: impl Iterator<Item = usize>) -> Option<Result<ClientHello, ClientHelloError>> {
    let mut reader = ClientHelloReader::new(MAX_BYTES);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(lengths.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        rest = left;
        let outcome = reader.push(piece);
        assert_eq!(reader.buffered(), &bytes[..bytes.len() - left.len()], "every byte is kept");
        match outcome {
            Ok(None) => assert!(reader.buffered().len() < MAX_BYTES, "undecided beyond the bound"),
            Ok(Some(hello)) => {
                assert_eq!(reader.push(&[]), Ok(None), "said once");
                return Some(Ok(hello));
            }
            Err(error) => {
                assert_eq!(reader.push(&[]), Err(error), "said again");
                return Some(Err(error));
            }
        }
    }
    None
}

fuzz_target!(|data: &[u8]| {
    let Some((cuts, bytes)) = data.split_at_checked(4) else { return };
    let whole = read(bytes, std::iter::empty());
    let cut = read(bytes, cuts.iter().cycle().map(|cut| usize::from(*cut)));
    let single = read(bytes, std::iter::repeat(1));
    assert_eq!(whole, cut);
    assert_eq!(whole, single);
    if let Some(Ok(hello)) = whole {
        if let Some(name) = &hello.server_name {
            assert!((1..=255).contains(&name.len()));
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
        }
        assert!(hello.alpn.iter().all(|protocol| (1..=255).contains(&protocol.len())));
    }
});
