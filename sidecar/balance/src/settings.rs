//! The numbers that govern a balancer, with the defaults of the product.

use std::time::Duration;

/// Everything tunable about a [`Balancer`](crate::Balancer). A failover policy sets the thresholds; the rest rarely
/// needs a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Factor f of the spill formula: a priority keeps all its load until less than 1/f of it is healthy. At least 1.
    pub overprovisioning: f64,
    /// Failures in a row that eject.
    pub consecutive_failures: u32,
    /// Share of successes over the last 10 s below which a target is ejected, between 0 and 1.
    pub success_rate: f64,
    /// Requests in the last 10 s below which the success rate says nothing.
    pub minimum_requests: u32,
    /// Length of a first ejection; doubles with each one that follows.
    pub base_ejection: Duration,
    /// Longest ejection. A target that has been well for this long starts again at `base_ejection`.
    pub max_ejection: Duration,
    /// Time between two probes of what is ejected.
    pub probe_interval: Duration,
    /// Time a returning or new member takes to its full share; zero gives it at once.
    pub slow_start: Duration,
    /// Failures in a row after which a suspect group counts as failing.
    pub suspect_failures: u32,
    /// Time constant of the latency average. Shorter than linkerd's 10 s: of two members with few requests, one slow
    /// answer would keep a member without any for most of a minute.
    pub latency_decay: Duration,
    /// Assumed of a member that has a request in flight but never answered one.
    pub initial_latency: Duration,
    /// Latencies below this count as equal: differences inside one network are noise.
    pub latency_floor: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            overprovisioning: 1.4,
            consecutive_failures: 5,
            success_rate: 0.8,
            minimum_requests: 5,
            base_ejection: Duration::from_secs(1),
            max_ejection: Duration::from_secs(60),
            probe_interval: Duration::from_secs(2),
            slow_start: Duration::from_secs(3),
            suspect_failures: 2,
            latency_decay: Duration::from_secs(3),
            initial_latency: Duration::from_millis(30),
            latency_floor: Duration::from_millis(1),
        }
    }
}

/// Longest time between two probes that is accepted.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// A setting was out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// The overprovisioning factor is below 1 or not a number.
    #[error("overprovisioning: {0} is not a number of at least 1")]
    Overprovisioning(f64),
    /// The success rate is not a share.
    #[error("successRate: {0} is not between 0 and 1")]
    SuccessRate(f64),
    /// A count of zero would eject everything at once.
    #[error("{0}: must be at least 1")]
    Zero(&'static str),
    /// The first ejection is zero or longer than the longest.
    #[error("baseEjection: must be more than zero and at most maxEjection")]
    Ejection,
    /// Probes would come too seldom, or without pause.
    #[error("probeInterval: must be more than zero and at most 5 s")]
    ProbeInterval,
}

impl Settings {
    /// Every setting that is out of its range.
    pub fn problems(&self) -> Vec<SettingsError> {
        let mut problems = Vec::new();
        if !(self.overprovisioning.is_finite() && self.overprovisioning >= 1.0) {
            problems.push(SettingsError::Overprovisioning(self.overprovisioning));
        }
        if !(0.0..=1.0).contains(&self.success_rate) {
            problems.push(SettingsError::SuccessRate(self.success_rate));
        }
        for (name, count) in [
            ("consecutiveFailures", self.consecutive_failures),
            ("minimumRequests", self.minimum_requests),
            ("suspectFailures", self.suspect_failures),
        ] {
            if count == 0 {
                problems.push(SettingsError::Zero(name));
            }
        }
        if self.base_ejection.is_zero() || self.base_ejection > self.max_ejection {
            problems.push(SettingsError::Ejection);
        }
        if self.probe_interval.is_zero() || self.probe_interval > MAX_PROBE_INTERVAL {
            problems.push(SettingsError::ProbeInterval);
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Settings, SettingsError};

    #[test]
    fn the_defaults_are_in_range() {
        assert_eq!(Settings::default().problems(), []);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let settings = Settings {
            overprovisioning: 0.5,
            success_rate: 1.5,
            consecutive_failures: 0,
            base_ejection: Duration::ZERO,
            probe_interval: Duration::from_secs(6),
            ..Settings::default()
        };
        assert_eq!(
            settings.problems(),
            [
                SettingsError::Overprovisioning(0.5),
                SettingsError::SuccessRate(1.5),
                SettingsError::Zero("consecutiveFailures"),
                SettingsError::Ejection,
                SettingsError::ProbeInterval,
            ]
        );
    }
}
