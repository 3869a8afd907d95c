//! How long to wait before the next attempt: exponential, with full jitter, so that a thousand clients that lost one
//! server do not come back at once.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// A connection that lasted so long was good: the next wait is a first one.
const STABLE: Duration = Duration::from_secs(60);
/// After a connection that was answered but did not last, waits start again at `first` doubled so often: a server that
/// takes calls and drops them is not hammered.
const ANSWERED_EXPONENT: u32 = 2;

#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    exponent: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, exponent: 0 }
    }

    /// The wait after a connection that was answered or not, and lasted so long.
    pub(super) fn after(&mut self, answered: bool, lasted: Duration, random: &mut impl Rng) -> Duration {
        if answered {
            self.exponent = if lasted >= STABLE { 0 } else { self.exponent.min(ANSWERED_EXPONENT) };
        }
        let most = self.first.saturating_mul(2_u32.saturating_pow(self.exponent)).min(self.longest);
        self.exponent = self.exponent.saturating_add(1);
        random.random_range(Duration::ZERO..=most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The longest of many waits after `failures` failures: close to the bound of a uniform draw.
    fn bound(failures: usize, last_answered: bool, lasted: Duration) -> Duration {
        let mut random = StdRng::seed_from_u64(7);
        let draw = |_| {
            let mut backoff = Backoff::new(FIRST, LONGEST);
            for _ in 0..failures {
                backoff.after(false, Duration::ZERO, &mut random);
            }
            backoff.after(last_answered, lasted, &mut random)
        };
        (0..2_000).map(draw).max().unwrap_or_default()
    }

    fn about(wait: Duration, most: Duration) -> bool {
        wait <= most && wait >= most.mul_f64(0.95)
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        for (failures, most) in [(0, 100), (1, 200), (2, 400), (5, 3_200), (6, 5_000), (60, 5_000)] {
            let wait = bound(failures, false, Duration::ZERO);
            assert!(about(wait, Duration::from_millis(most)), "{failures} failures: {wait:?}");
        }
    }

    #[test]
    fn a_stable_connection_starts_again_and_a_short_one_nearly() {
        assert!(about(bound(20, true, STABLE), FIRST));
        assert!(about(bound(20, true, Duration::from_secs(1)), FIRST * 4));
    }
}
