//! How many retries are allowed.
//!
//! After Finagle's `RetryBudget`: retries may add a share to the live load, so that they cannot multiply an overload,
//! with a floor that lets a quiet service retry at all.

use std::time::Instant;

use crate::window::{WINDOW, Window};

/// The limits of a [`RetryBudget`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudgetSettings {
    /// Retries allowed per request of the last 10 s; 0.2 by default.
    pub share: f64,
    /// Retries per second that are allowed whatever the load; 10 by default.
    pub floor_per_second: u32,
}

impl Default for RetryBudgetSettings {
    fn default() -> Self {
        Self { share: 0.2, floor_per_second: 10 }
    }
}

/// Counts requests and retries over the last 10 s and says whether one more retry is allowed.
///
/// It governs retries after a response or a reset. An attempt that never reached an endpoint (refused, unprocessed) is
/// sent elsewhere without asking.
#[derive(Debug, Clone, Default)]
pub struct RetryBudget {
    settings: RetryBudgetSettings,
    /// Requests, then retries.
    window: Window,
}

impl RetryBudget {
    /// A budget with nothing spent.
    pub fn new(settings: RetryBudgetSettings) -> Self {
        Self { settings, window: Window::default() }
    }

    /// Counts a request, not its retries.
    pub fn request(&mut self, now: Instant) {
        self.window.count_first(now);
    }

    /// Whether a retry is allowed now; if so, it is counted.
    pub fn try_retry(&mut self, now: Instant) -> bool {
        let allowed = self.remaining(now) > 0;
        if allowed {
            self.window.count_second(now);
        }
        allowed
    }

    /// Retries that would be allowed at this moment.
    pub fn remaining(&mut self, now: Instant) -> u32 {
        let (requests, retries) = self.window.totals(now);
        let floor = f64::from(self.settings.floor_per_second) * WINDOW.as_secs_f64();
        let allowed = (f64::from(requests) * self.settings.share).max(floor);
        (allowed as u32).saturating_sub(retries)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::{RetryBudget, RetryBudgetSettings};

    #[test]
    fn a_fifth_of_the_live_load_may_be_retried() {
        let now = Instant::now();
        let mut budget = RetryBudget::default();
        (0..1_000).for_each(|_| budget.request(now));
        assert_eq!((0..1_000).filter(|_| budget.try_retry(now)).count(), 200);
        assert_eq!(budget.remaining(now), 0);
    }

    #[test]
    fn a_quiet_service_may_retry_ten_times_a_second() {
        let start = Instant::now();
        let mut budget = RetryBudget::default();
        assert_eq!((0..1_000).filter(|_| budget.try_retry(start)).count(), 100);
        assert!(!budget.try_retry(start + Duration::from_secs(9)));
        assert!(budget.try_retry(start + Duration::from_secs(10)));
    }

    proptest! {
        #[test]
        fn retries_never_exceed_the_budget_of_the_window(
            steps in prop::collection::vec((0_u64..500, 0_u8..4), 1..400), share in 0.0..0.5_f64, floor_per_second in 0_u32..4,
        ) {
            let start = Instant::now();
            let mut budget = RetryBudget::new(RetryBudgetSettings { share, floor_per_second });
            let (mut requests, mut retries, mut at) = (Vec::new(), Vec::new(), 0_u64);
            for (step, kind) in steps {
                at += step;
                let now = start + Duration::from_millis(at);
                if kind > 0 {
                    budget.request(now);
                    requests.push(at);
                } else if budget.try_retry(now) {
                    retries.push(at);
                    // One second of slack on the requests' side: the window moves in whole seconds.
                    let recent = |times: &[u64], span| times.iter().filter(|&&time| time + span > at).count();
                    let bound = (recent(&requests, 10_000) as f64 * share).max(f64::from(floor_per_second) * 10.0);
                    prop_assert!(recent(&retries, 9_000) as f64 <= bound + 1e-9);
                }
            }
        }
    }
}
