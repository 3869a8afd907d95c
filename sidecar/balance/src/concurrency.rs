//! How many requests an application takes at a time.
//!
//! After Netflix's `gradient2` limiter: when answers take more than [`TOLERANCE`] times as long as they usually do, the limit
//! shrinks in proportion, from what was under way, and grows back by its square root in every window that is not slow. What is
//! usual follows: at once when it is not slow, and over minutes when it is, so an application whose work has changed for good
//! is not limited for good. The limit begins at its ceiling, and never falls below a floor under which a crowd is no reason.

use std::time::{Duration, Instant};

/// Latencies are averaged over this long.
const WINDOW: Duration = Duration::from_millis(500);

/// A window with fewer answers says nothing.
const LEAST_ANSWERS: u32 = 20;

/// Answers may take this many times as long as usual.
const TOLERANCE: f64 = 2.0;

/// Weight of a new window in what is usual.
const MEMORY: f64 = 0.05;

/// Weight of a new window that is slow.
const SLOW_MEMORY: f64 = 0.01;

/// Differences below this are noise, in seconds.
const NOISE: f64 = 0.002;

/// Limits how many requests are under way.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit {
    ceiling: u32,
    floor: u32,
    limit: f64,
    in_flight: u32,
    /// Most requests under way in this window.
    peak: u32,
    since: Option<Instant>,
    seconds: f64,
    answers: u32,
    /// What an answer usually takes, in seconds.
    usual: Option<f64>,
}

impl ConcurrencyLimit {
    /// A limit between a floor and a ceiling, both at least 1.
    pub fn new(floor: u32, ceiling: u32) -> Self {
        let ceiling = ceiling.max(1);
        Self {
            ceiling,
            floor: floor.clamp(1, ceiling),
            limit: f64::from(ceiling),
            in_flight: 0,
            peak: 0,
            since: None,
            seconds: 0.0,
            answers: 0,
            usual: None,
        }
    }

    /// Whether one more request may begin; if so, it is counted until [`done`](Self::done).
    pub fn admit(&mut self) -> bool {
        let admitted = self.in_flight < self.current();
        if admitted {
            self.in_flight += 1;
            self.peak = self.peak.max(self.in_flight);
        }
        admitted
    }

    /// An admitted request was answered: `latency` runs to its response's head.
    pub fn answered(&mut self, latency: Duration, now: Instant) {
        self.seconds += latency.as_secs_f64();
        self.answers += 1;
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= WINDOW && self.answers >= LEAST_ANSWERS {
            self.judge();
            self.since = Some(now);
        }
    }

    /// An admitted request has ended.
    pub fn done(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Requests that are allowed at a time.
    pub fn current(&self) -> u32 {
        // Between floor and ceiling, which both fit.
        self.limit as u32
    }

    /// Requests under way.
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn judge(&mut self) {
        let latency = self.seconds / f64::from(self.answers);
        let usual = *self.usual.get_or_insert(latency);
        let bound = TOLERANCE * usual + NOISE;
        if latency > bound {
            // As few as would have taken as long as usual, were they served in turn; at most half at once.
            let shrunk = f64::from(self.peak).min(self.limit) * (bound / latency).max(0.5);
            self.limit = shrunk.max(f64::from(self.floor));
        } else {
            self.limit = (self.limit + self.limit.sqrt()).min(f64::from(self.ceiling));
        }
        let memory = if latency > bound { SLOW_MEMORY } else { MEMORY };
        self.usual = Some(usual + memory * (latency - usual));
        (self.seconds, self.answers, self.peak) = (0.0, 0, self.in_flight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An application that serves `workers` at a time, 10 ms each: more wait in turn. `offered` requests come at a time.
    fn serve(limit: &mut ConcurrencyLimit, now: &mut Instant, offered: u32, workers: u32, windows: u32) {
        for _ in 0..windows * 10 {
            let admitted = (0..offered).filter(|_| limit.admit()).count();
            let admitted = u32::try_from(admitted).unwrap_or(u32::MAX);
            let turns = f64::from(limit.in_flight()) / f64::from(workers);
            let latency = Duration::from_secs_f64(0.010 * turns.max(1.0));
            *now += Duration::from_millis(60);
            for _ in 0..admitted {
                limit.answered(latency, *now);
                limit.done();
            }
        }
    }

    #[test]
    fn an_application_that_keeps_up_is_not_limited() {
        let (mut limit, mut now) = (ConcurrencyLimit::new(8, 1000), Instant::now());
        serve(&mut limit, &mut now, 100, 100, 20);
        assert_eq!(limit.current(), 1000);
        assert_eq!(limit.in_flight(), 0);
    }

    #[test]
    fn an_overload_is_shed_and_the_limit_comes_back_when_it_is_over() {
        let (mut limit, mut now) = (ConcurrencyLimit::new(8, 1000), Instant::now());
        serve(&mut limit, &mut now, 40, 50, 10);
        serve(&mut limit, &mut now, 900, 50, 20);
        assert!((50..=400).contains(&limit.current()), "a fraction of what is offered: {}", limit.current());
        serve(&mut limit, &mut now, 40, 50, 100);
        assert_eq!(limit.current(), 1000);
    }

    #[test]
    fn it_never_falls_below_its_floor_nor_admits_more_than_its_limit() {
        let (mut limit, mut now) = (ConcurrencyLimit::new(8, 1000), Instant::now());
        serve(&mut limit, &mut now, 10, 10, 4);
        for factor in 1..40 {
            now += WINDOW;
            for _ in 0..LEAST_ANSWERS {
                limit.answered(Duration::from_secs(factor), now);
            }
        }
        assert_eq!(limit.current(), 8);
        assert_eq!((0..100).filter(|_| limit.admit()).count(), 8);
        limit.done();
        assert!(limit.admit() && !limit.admit());
    }
}
