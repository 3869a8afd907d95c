//! When a target is taken out, and when it comes back.
//!
//! ```text
//!             5 in a row, or below 0.8 of ≥ 5 in 10 s
//!      ┌────┐ ──────────────────────────────────────► ┌─────┐ ─┐ a failed probe, or one without
//!      │ in │                                         │ out │  │ an answer yet, prolongs
//!      └────┘ ◄────────────────────────────────────── └─────┘ ◄┘
//!             a probe succeeded, or 1 s · 2ⁿ ≤ 60 s went by:
//!             the latter on trial, where one failure ejects again
//! ```

use std::time::{Duration, Instant};

use crate::{
    outcome::Verdict,
    settings::Settings,
    window::{WINDOW, Window},
};

/// Time a probe that was handed out has to answer before its ejection may run out.
const PROBE_ANSWER: Duration = Duration::from_secs(2);

/// Least time out for a target that answers probes but fails requests: its probes prove little.
const RESPONSE_EJECTION: Duration = Duration::from_secs(5);

/// Share of a new or returning target at the start of its slow start.
const RAMP_FLOOR: f64 = 0.1;

/// Share of an ejection's length that is left to chance, so that proxies do not come back in step.
const JITTER: f64 = 0.2;

/// Why a target was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EjectionCause {
    /// Too many failures in a row.
    ConsecutiveFailures,
    /// Too small a share of successes over the last 10 s.
    SuccessRate,
    /// The first request after an ejection had run out failed again.
    FailedTrial,
    /// Nothing failed: a "what if" takes it as failed.
    Supposed,
}

/// A target that is out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ejection {
    pub(crate) cause: EjectionCause,
    pub(crate) until: Instant,
    since: Instant,
    next_probe: Instant,
    /// A probe was handed out and has not answered.
    asked: bool,
    /// Whether responses rather than the transport failed last.
    by_response: bool,
    /// Its length as first decided.
    length: Duration,
}

/// Watches the outcomes of one target: a member, a gateway, a real endpoint, a group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Detector {
    /// Successes, then failures.
    outcomes: Window,
    consecutive: u32,
    ejection: Option<Ejection>,
    /// Ejections so far that were not forgiven.
    times: u32,
    returned: Option<Instant>,
    on_trial: bool,
}

impl Detector {
    pub(crate) fn succeeded(&mut self, now: Instant) {
        if self.ejection.is_none() {
            self.outcomes.count_first(now);
            self.consecutive = 0;
            self.on_trial = false;
        }
    }

    /// Counts a failure; the rule it breaks, if any. A target that is out stays as it is.
    pub(crate) fn failed(&mut self, now: Instant, settings: &Settings) -> Option<EjectionCause> {
        if self.ejection.is_some() {
            return None;
        }
        self.outcomes.count_second(now);
        self.consecutive = self.consecutive.saturating_add(1);
        if self.on_trial {
            Some(EjectionCause::FailedTrial)
        } else if self.consecutive >= settings.consecutive_failures {
            Some(EjectionCause::ConsecutiveFailures)
        } else {
            self.below_success_rate(now, settings).then_some(EjectionCause::SuccessRate)
        }
    }

    /// Whether the success rate of the last 10 s is too low, by enough requests to tell.
    pub(crate) fn below_success_rate(&mut self, now: Instant, settings: &Settings) -> bool {
        let (successes, failures) = self.outcomes.totals(now);
        successes + failures >= settings.minimum_requests && rate(successes, failures) < settings.success_rate
    }

    /// Whether it was used in the last 10 s, and if so whether mostly without success.
    pub(crate) fn recently_failing(&mut self, now: Instant, settings: &Settings) -> Option<bool> {
        let (successes, failures) = self.outcomes.totals(now);
        (successes + failures > 0).then(|| rate(successes, failures) < settings.success_rate)
    }

    /// Takes the target out. `jitter` is in [0, 1).
    pub(crate) fn eject(
        &mut self,
        cause: EjectionCause,
        verdict: Verdict,
        now: Instant,
        settings: &Settings,
        jitter: f64,
    ) {
        if self.returned.is_some_and(|returned| now.saturating_duration_since(returned) >= settings.max_ejection) {
            self.times = 0;
        }
        let doubled = settings.base_ejection.saturating_mul(1 << self.times.min(16));
        let length = doubled.min(settings.max_ejection).mul_f64(1.0 - JITTER * jitter);
        self.times = self.times.saturating_add(1);
        self.ejection = Some(Ejection {
            cause,
            since: now,
            until: now + length,
            next_probe: now + (length / 2).min(settings.probe_interval),
            asked: false,
            by_response: verdict == Verdict::ResponseFailure,
            length,
        });
        self.outcomes.clear();
        self.consecutive = 0;
        self.on_trial = false;
    }

    /// Lets the target back in if its time is over; whether it came back.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let over = self.ejection.is_some_and(|ejection| now >= ejection.until);
        if over {
            self.come_back(now, true);
        }
        over
    }

    /// Whether a probe should be sent now; if so, the ejection waits for its answer, once.
    pub(crate) fn take_probe(&mut self, now: Instant, settings: &Settings) -> bool {
        match &mut self.ejection {
            Some(ejection) if now >= ejection.next_probe => {
                ejection.next_probe = now + settings.probe_interval;
                if !ejection.asked {
                    ejection.until = ejection.until.max(now + PROBE_ANSWER);
                }
                ejection.asked = true;
                true
            }
            _ => false,
        }
    }

    /// Takes a probe's answer; whether the target came back.
    pub(crate) fn probed(&mut self, ok: bool, now: Instant, settings: &Settings) -> bool {
        let Some(ejection) = &mut self.ejection else { return false };
        ejection.asked = false;
        if !ok {
            ejection.next_probe = ejection.next_probe.max(now + settings.probe_interval / 2);
            ejection.until = ejection.until.max(ejection.next_probe + PROBE_ANSWER);
            return false;
        }
        let by_response = ejection.by_response;
        if by_response && now < ejection.since + ejection.length.min(RESPONSE_EJECTION) {
            return false;
        }
        self.come_back(now, by_response);
        true
    }

    fn come_back(&mut self, now: Instant, on_trial: bool) {
        self.ejection = None;
        self.returned = Some(now);
        self.on_trial = on_trial;
    }

    pub(crate) const fn ejection(&self) -> Option<&Ejection> {
        self.ejection.as_ref()
    }

    pub(crate) const fn is_out(&self) -> bool {
        self.ejection.is_some()
    }

    pub(crate) const fn times(&self) -> u32 {
        self.times
    }

    pub(crate) const fn consecutive(&self) -> u32 {
        self.consecutive
    }

    /// Whether it came back within the last 10 s without a probe or a request to vouch for it.
    pub(crate) fn on_trial(&self, now: Instant) -> bool {
        self.on_trial && self.returned.is_some_and(|returned| now.saturating_duration_since(returned) < WINDOW)
    }

    pub(crate) fn next_probe(&self) -> Option<Instant> {
        self.ejection.map(|ejection| ejection.next_probe)
    }

    /// Since when it is back from its last ejection.
    pub(crate) const fn returned(&self) -> Option<Instant> {
        self.returned
    }
}

fn rate(successes: u32, failures: u32) -> f64 {
    f64::from(successes) / (f64::from(successes) + f64::from(failures)).max(1.0)
}

/// The share that slow start grants to a target that joined or came back at an instant: from a tenth to all of it.
pub(crate) fn ramp(since: Option<Instant>, now: Instant, settings: &Settings) -> f64 {
    match since {
        Some(since) if !settings.slow_start.is_zero() => {
            let share = now.saturating_duration_since(since).as_secs_f64() / settings.slow_start.as_secs_f64();
            share.clamp(RAMP_FLOOR, 1.0)
        }
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Detector, EjectionCause, ramp};
    use crate::{outcome::Verdict, settings::Settings};

    fn fail(detector: &mut Detector, now: Instant) -> Option<EjectionCause> {
        let settings = Settings::default();
        let cause = detector.failed(now, &settings)?;
        detector.eject(cause, Verdict::TransportFailure, now, &settings, 0.0);
        Some(cause)
    }

    fn fail_five_times(detector: &mut Detector, now: Instant) {
        for _ in 0..5 {
            fail(detector, now);
        }
        assert!(detector.is_out());
    }

    #[test]
    fn five_failures_in_a_row_eject() {
        let now = Instant::now();
        let mut detector = Detector::default();
        // Enough successes that the rate says nothing.
        (0..100).for_each(|_| detector.succeeded(now));
        assert_eq!((0..4).find_map(|_| fail(&mut detector, now)), None);
        assert_eq!(fail(&mut detector, now), Some(EjectionCause::ConsecutiveFailures));
        assert!(detector.is_out());
    }

    #[test]
    fn a_success_in_between_starts_the_count_again() {
        let now = Instant::now();
        let mut detector = Detector::default();
        (0..100).for_each(|_| detector.succeeded(now));
        for _ in 0..4 {
            assert_eq!((0..4).find_map(|_| fail(&mut detector, now)), None);
            detector.succeeded(now);
        }
    }

    #[test]
    fn a_low_success_rate_of_at_least_five_requests_ejects() {
        let now = Instant::now();
        let mut detector = Detector::default();
        detector.succeeded(now);
        detector.succeeded(now);
        assert_eq!(fail(&mut detector, now), None);
        assert_eq!(fail(&mut detector, now), None);
        assert_eq!(fail(&mut detector, now), Some(EjectionCause::SuccessRate));
        let mut detector = Detector::default();
        (0..4).for_each(|_| detector.succeeded(now));
        assert_eq!(fail(&mut detector, now), None, "exactly 0.8 is enough");
        assert_eq!(fail(&mut detector, now), Some(EjectionCause::SuccessRate));
    }

    #[test]
    fn each_ejection_is_twice_as_long_up_to_a_minute() {
        let mut now = Instant::now();
        let mut detector = Detector::default();
        fail_five_times(&mut detector, now);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let until = detector.ejection().map(|ejection| ejection.until);
            assert_eq!(until, Some(now + Duration::from_secs(seconds)));
            assert!(!detector.expire(now + Duration::from_millis(seconds * 1000 - 1)));
            now += Duration::from_secs(seconds);
            assert!(detector.expire(now));
            assert_eq!(fail(&mut detector, now), Some(EjectionCause::FailedTrial));
        }
    }

    #[test]
    fn a_minute_without_fault_forgives() {
        let mut now = Instant::now();
        let mut detector = Detector::default();
        fail_five_times(&mut detector, now);
        now += Duration::from_secs(1);
        assert!(detector.expire(now));
        detector.succeeded(now);
        now += Duration::from_secs(60);
        fail_five_times(&mut detector, now);
        assert_eq!(detector.times(), 1);
    }

    #[test]
    fn failed_probes_keep_it_out_and_a_good_one_lets_it_in() {
        let settings = Settings::default();
        let start = Instant::now();
        let mut now = start;
        let mut detector = Detector::default();
        fail_five_times(&mut detector, now);
        while now < start + Duration::from_secs(300) {
            now += Duration::from_millis(50);
            assert!(!detector.expire(now), "after {:?}", now - start);
            if detector.take_probe(now, &settings) {
                now += Duration::from_secs(1);
                assert!(!detector.probed(false, now, &settings));
            }
        }
        let next = detector.next_probe();
        assert!(next.is_some_and(|next| next <= now + Duration::from_secs(5)), "{next:?}");
        assert!(detector.probed(true, now, &settings));
        assert!(!detector.is_out());
        assert_eq!(fail(&mut detector, now), None, "trusted after a good probe");
    }

    #[test]
    fn probes_that_never_answer_do_not_keep_it_out() {
        let settings = Settings::default();
        let start = Instant::now();
        let mut detector = Detector::default();
        fail_five_times(&mut detector, start);
        let back = (0..100).map(|step| start + Duration::from_millis(100 * step)).find(|&now| {
            detector.take_probe(now, &settings);
            detector.expire(now)
        });
        assert!(back.is_some_and(|back| back - start <= Duration::from_secs(3)), "{back:?}");
    }

    #[test]
    fn a_probe_proves_little_about_an_endpoint_whose_responses_fail() {
        let settings = Settings::default();
        let start = Instant::now();
        let mut detector = Detector::default();
        for _ in 0..4 {
            let now = start + Duration::from_secs(1000);
            detector.eject(EjectionCause::FailedTrial, Verdict::ResponseFailure, now, &settings, 0.0);
        }
        let now = start + Duration::from_secs(1000);
        assert!(!detector.probed(true, now + Duration::from_secs(4), &settings));
        assert!(detector.probed(true, now + Duration::from_secs(5), &settings));
        assert_eq!(fail(&mut detector, now + Duration::from_secs(5)), Some(EjectionCause::FailedTrial));
    }

    #[test]
    fn outcomes_of_requests_do_not_end_an_ejection() {
        let now = Instant::now();
        let mut detector = Detector::default();
        fail_five_times(&mut detector, now);
        (0..100).for_each(|_| detector.succeeded(now));
        assert!(detector.is_out());
    }

    #[test]
    fn slow_start_rises_from_a_tenth_to_all() {
        let settings = Settings::default();
        let now = Instant::now();
        let at = |millis| ramp(Some(now), now + Duration::from_millis(millis), &settings);
        assert_eq!([at(0), at(1500), at(3000), at(9000)], [0.1, 0.5, 1.0, 1.0]);
        assert!((ramp(None, now, &settings) - 1.0).abs() < f64::EPSILON);
    }
}
