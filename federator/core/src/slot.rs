//! Slots: which endpoint a numbered session of a client goes to.
//!
//! A client behind a passthrough gateway cannot name endpoints, only slots. Highest random weight (rendezvous) hashing
//! (Thaler and Ravishankar, 1998) sends a slot to the same endpoint for as long as that endpoint is there, whoever
//! computes it, and moves only the slots of an endpoint that is gone.

/// The place in `endpoints` of the one that the slot hashes to; `None` when there is none with a weight above 0.
///
/// Each endpoint is its id and its weight; an endpoint of twice the weight gets twice the slots.
pub fn choose<T: AsRef<str>>(slot: u16, endpoints: impl IntoIterator<Item = (T, u32)>) -> Option<usize> {
    endpoints
        .into_iter()
        .enumerate()
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(place, (id, weight))| (place, score(slot, id.as_ref(), weight)))
        .max_by(|left, right| left.1.total_cmp(&right.1))
        .map(|(place, _)| place)
}

/// Weighted rendezvous score: `weight / -ln(u)` with u uniform in (0, 1).
fn score(slot: u16, id: &str, weight: u32) -> f64 {
    let hash = mix(fnv1a(id.as_bytes()) ^ mix(u64::from(slot).wrapping_add(0x9e37_79b9_7f4a_7c15)));
    // 53 bits of the hash, moved off both ends.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    f64::from(weight) / -uniform.ln()
}

/// FNV-1a, 64 bits: fixed for ever, since clients and gateways of different ages must agree.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finalizer of SplitMix64.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
