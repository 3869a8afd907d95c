//! Counts over the last ten seconds.

use std::time::{Duration, Instant};

/// One-second buckets kept.
const BUCKETS: usize = 10;

/// The time a [`Window`] looks back.
pub(crate) const WINDOW: Duration = Duration::from_secs(BUCKETS as u64);

/// Two counts over the last ten seconds, in buckets of one second. Time that runs backwards counts as standing still.
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    origin: Option<Instant>,
    /// The second since `origin` that the newest bucket stands for.
    second: u64,
    buckets: [[u32; 2]; BUCKETS],
    totals: [u32; 2],
}

impl Window {
    /// Adds to the first count.
    pub(crate) fn count_first(&mut self, now: Instant) {
        self.count(0, now);
    }

    /// Adds to the second count.
    pub(crate) fn count_second(&mut self, now: Instant) {
        self.count(1, now);
    }

    /// Both counts as of now.
    pub(crate) fn totals(&mut self, now: Instant) -> (u32, u32) {
        self.advance(now);
        (self.totals[0], self.totals[1])
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn count(&mut self, which: usize, now: Instant) {
        let bucket = self.advance(now);
        if self.buckets[bucket][which] < u32::MAX && self.totals[which] < u32::MAX {
            self.buckets[bucket][which] += 1;
            self.totals[which] += 1;
        }
    }

    /// Drops the buckets that have gone out of the window; the index of the newest.
    fn advance(&mut self, now: Instant) -> usize {
        let origin = *self.origin.get_or_insert(now);
        let second = now.saturating_duration_since(origin).as_secs();
        let gone = second.saturating_sub(self.second).min(BUCKETS as u64);
        for step in 1..=gone {
            let bucket = Self::bucket(self.second + step);
            for which in 0..2 {
                self.totals[which] -= self.buckets[bucket][which];
            }
            self.buckets[bucket] = [0, 0];
        }
        if gone == BUCKETS as u64 {
            // A long pause: the steps above cleared all buckets, whatever they were.
            self.totals = [0, 0];
        }
        self.second = self.second.max(second);
        Self::bucket(self.second)
    }

    const fn bucket(second: u64) -> usize {
        (second % BUCKETS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::Window;

    #[test]
    fn a_count_is_gone_after_ten_seconds() {
        let start = Instant::now();
        let mut window = Window::default();
        window.count_first(start);
        window.count_second(start + Duration::from_secs(4));
        assert_eq!(window.totals(start + Duration::from_millis(9_999)), (1, 1));
        assert_eq!(window.totals(start + Duration::from_secs(10)), (0, 1));
        assert_eq!(window.totals(start + Duration::from_secs(14)), (0, 0));
    }

    #[test]
    fn time_that_runs_backwards_loses_nothing() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut window = Window::default();
        window.count_first(start + Duration::from_secs(5));
        window.count_first(start);
        assert_eq!(window.totals(start), (2, 0));
    }

    proptest! {
        #[test]
        fn totals_match_a_list_of_all_events(steps in prop::collection::vec((0_u64..4_000, any::<bool>()), 0..200)) {
            let start = Instant::now();
            let mut window = Window::default();
            let mut events: Vec<(u64, bool)> = Vec::new();
            let mut at = 0;
            for (step, first) in steps {
                at += if events.is_empty() { 0 } else { step };
                let now = start + Duration::from_millis(at);
                if first { window.count_first(now) } else { window.count_second(now) }
                events.push((at / 1000, first));
                let of = |which| events.iter().filter(|&&(second, first)| first == which && second + 10 > at / 1000).count();
                let (first, second) = window.totals(now);
                prop_assert_eq!((first as usize, second as usize), (of(true), of(false)));
            }
        }
    }
}
