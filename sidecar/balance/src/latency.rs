//! Peak-sensitive, exponentially weighted latency.
//!
//! After Finagle's `PeakEwma` (com.twitter.finagle.loadbalancer) and linkerd2-proxy's use of it: a latency above the
//! average replaces it at once, one below pulls it down over a time constant, and without observations the average
//! decays, so that a member that was slow once is tried again.

use std::time::{Duration, Instant};

/// The average of one member.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PeakEwma {
    /// The average in seconds as of an instant; none before the first answer.
    average: Option<(f64, Instant)>,
}

impl PeakEwma {
    /// Takes an answer's latency in.
    pub(crate) fn observe(&mut self, latency: Duration, now: Instant, decay: Duration) {
        let latency = latency.as_secs_f64();
        let average = match self.average {
            Some((average, at)) if latency < average => {
                let keep = retained(now.saturating_duration_since(at), decay);
                average * keep + latency * (1.0 - keep)
            }
            _ => latency,
        };
        self.average = Some((average, now));
    }

    /// Takes a failure's latency in: it may make the member look slower, never faster.
    pub(crate) fn observe_peak(&mut self, latency: Duration, now: Instant, decay: Duration) {
        if self.at(now, decay).is_none_or(|average| latency.as_secs_f64() > average) {
            self.average = Some((latency.as_secs_f64(), now));
        }
    }

    /// The average in seconds as of now.
    pub(crate) fn at(&self, now: Instant, decay: Duration) -> Option<f64> {
        self.average.map(|(average, at)| average * retained(now.saturating_duration_since(at), decay))
    }
}

/// The weight that what was known before keeps after some time.
fn retained(elapsed: Duration, decay: Duration) -> f64 {
    if decay.is_zero() { 0.0 } else { (-elapsed.as_secs_f64() / decay.as_secs_f64()).exp() }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::PeakEwma;

    const DECAY: Duration = Duration::from_secs(10);

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let start = Instant::now();
        let mut latency = PeakEwma::default();
        assert_eq!(latency.at(start, DECAY), None);
        latency.observe(Duration::from_millis(2), start, DECAY);
        latency.observe(Duration::from_millis(100), start, DECAY);
        assert_eq!(latency.at(start, DECAY), Some(0.1));
        let later = start + Duration::from_secs(10);
        latency.observe(Duration::from_millis(2), later, DECAY);
        let average = latency.at(later, DECAY).unwrap_or_default();
        assert!((average - (0.1 / std::f64::consts::E + 0.002 * (1.0 - 1.0 / std::f64::consts::E))).abs() < 1e-9);
        assert!(latency.at(later + Duration::from_secs(60), DECAY).unwrap_or(1.0) < 0.001);
    }

    #[test]
    fn a_quick_failure_does_not_make_a_member_look_fast() {
        let start = Instant::now();
        let mut latency = PeakEwma::default();
        latency.observe(Duration::from_millis(50), start, DECAY);
        latency.observe_peak(Duration::from_millis(1), start, DECAY);
        assert_eq!(latency.at(start, DECAY), Some(0.05));
        latency.observe_peak(Duration::from_secs(1), start, DECAY);
        assert_eq!(latency.at(start, DECAY), Some(1.0));
    }
}
