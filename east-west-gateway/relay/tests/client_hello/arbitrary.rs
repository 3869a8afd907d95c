//! Whatever the bytes: no panic, no dependence on how they are cut.

use proptest::prelude::*;

use super::{
    hand_made::{Parts, alpn, extension, host_name},
    into_records, read_in_pieces,
};

/// A well-formed hello with some of its bytes replaced: deeper in than arbitrary bytes get.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let records = into_records(
        &Parts::with_extensions(&[
            extension(0x2a2a, &[]),
            host_name(b"echo.shop.svc.clusterset.local"),
            alpn(&[b"h2", b"isthmus-tcp"]),
        ])
        .message(),
        &[40, 1 << 14],
    );
    prop::collection::vec((0..records.len(), any::<u8>()), 0..4).prop_map(move |damages| {
        let mut damaged = records.clone();
        for (at, byte) in damages {
            damaged[at] = byte;
        }
        damaged
    })
}

fn in_a_record(bytes: &[u8]) -> Vec<u8> {
    into_records(&[&[1, 0, 1, 0], bytes].concat(), &[300])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_outcome_does_not_depend_on_the_cuts(
        bytes in prop_oneof![
            damaged(),
            prop::collection::vec(any::<u8>(), 0..400),
            prop::collection::vec(any::<u8>(), 0..400).prop_map(|bytes| in_a_record(&bytes)),
        ],
        max_bytes in prop_oneof![Just(16 * 1024), 0_usize..400],
        piece in 1_usize..50,
    ) {
        let at_once = read_in_pieces(max_bytes, [bytes.as_slice()]);
        prop_assert_eq!(&at_once, &read_in_pieces(max_bytes, bytes.chunks(piece)));
        prop_assert_eq!(&at_once, &read_in_pieces(max_bytes, bytes.chunks(1)));
    }
}
