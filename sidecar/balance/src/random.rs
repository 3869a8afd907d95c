//! The little randomness and mixing the crate does itself.

use rand::Rng;

/// A number in [0, 1), from the caller's generator.
pub(crate) fn unit(rng: &mut (impl Rng + ?Sized)) -> f64 {
    to_unit(rng.next_u64())
}

/// The upper 53 bits of a word as a number in [0, 1).
pub(crate) fn to_unit(word: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
    (word >> 11) as f64 * SCALE
}

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014): spreads every input bit over the whole word.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The balancer's own sequence for jitter, seeded by its owner so that proxies do not act in step, yet replayable.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number in [0, 1).
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(1);
        to_unit(mix(self.0))
    }
}
