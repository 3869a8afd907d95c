//! Changes on their way to everybody who has the namespace, and how long they took.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use federation_api::record::v1::{Signed, Statement};
use prost::Message;

use super::plane::Joined;

/// One record in so many is verified by its receiver: a control-plane verifies each, which a thousand of them on two cores
/// cannot.
const SAMPLE: usize = 1000;

/// What the receivers share.
pub(super) struct Tracker {
    numbers: BTreeMap<String, usize>,
    open: Mutex<HashMap<(usize, u64), Change>>,
    figures: Mutex<Figures>,
    told: AtomicUsize,
    sampled: AtomicUsize,
    forged: AtomicUsize,
}

struct Change {
    begun: Instant,
    left: usize,
}

/// How long finished changes took.
#[derive(Default)]
pub(super) struct Figures {
    /// To each receiver.
    pub(super) each: Vec<Duration>,
    /// To the last receiver.
    pub(super) last: Vec<Duration>,
}

/// Held for a look only.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tracker {
    pub(super) fn new(joined: &[Joined]) -> Self {
        let names = joined.iter().map(|joined| joined.speaker.cluster.to_string());
        Self {
            numbers: names.zip(0..).collect(),
            open: Mutex::default(),
            figures: Mutex::default(),
            told: AtomicUsize::new(0),
            sampled: AtomicUsize::new(0),
            forged: AtomicUsize::new(0),
        }
    }

    /// A change that so many others are to hear of.
    pub(super) fn begin(&self, cluster: usize, sequence: u64, begun: Instant, receivers: usize) {
        locked(&self.open).insert((cluster, sequence), Change { begun, left: receivers });
    }

    /// Records that came to a receiver.
    pub(super) fn arrived(&self, receiver: usize, records: &[Signed], joined: &[Joined]) {
        let before = self.told.fetch_add(records.len(), Ordering::Relaxed);
        let now = Instant::now();
        let watched = !locked(&self.open).is_empty();
        for (number, record) in (before..).zip(records) {
            let sampled = number.is_multiple_of(SAMPLE);
            if !watched && !sampled {
                continue;
            }
            let Some((cluster, sequence)) = self.origin(record) else {
                self.forged.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            if sampled {
                self.sampled.fetch_add(1, Ordering::Relaxed);
                let forged = joined[cluster].verified.verify(record).is_err();
                self.forged.fetch_add(usize::from(forged), Ordering::Relaxed);
            }
            // A publisher is told its own words too.
            if cluster != receiver {
                self.note((cluster, sequence), now);
            }
        }
    }

    fn origin(&self, record: &Signed) -> Option<(usize, u64)> {
        let statement = Statement::decode(record.message.clone()).ok()?;
        Some((*self.numbers.get(&statement.cluster)?, statement.sequence))
    }

    fn note(&self, key: (usize, u64), now: Instant) {
        let mut open = locked(&self.open);
        let Some(change) = open.get_mut(&key) else { return };
        let took = now.saturating_duration_since(change.begun);
        change.left -= 1;
        let last = change.left == 0;
        if last {
            open.remove(&key);
        }
        drop(open);
        let mut figures = locked(&self.figures);
        figures.each.push(took);
        if last {
            figures.last.push(took);
        }
    }

    /// Changes that somebody has not heard of.
    pub(super) fn unfinished(&self) -> usize {
        locked(&self.open).len()
    }

    /// What was measured since the last look; changes that are not finished are given up.
    pub(super) fn take(&self) -> Figures {
        locked(&self.open).clear();
        std::mem::take(&mut *locked(&self.figures))
    }

    /// Records told so far.
    pub(super) fn told(&self) -> usize {
        self.told.load(Ordering::Relaxed)
    }

    /// Records that were verified, and those of them, or of what was decoded, that were not as their cluster signed them.
    pub(super) fn verified(&self) -> (usize, usize) {
        (self.sampled.load(Ordering::Relaxed), self.forged.load(Ordering::Relaxed))
    }
}

/// A quantile, in milliseconds; `None` of nothing.
pub(super) fn quantile(durations: &mut [Duration], share: f64) -> Option<f64> {
    durations.sort_unstable();
    let place = (durations.len() as f64 * share) as usize;
    durations.get(place.min(durations.len().saturating_sub(1))).map(|duration| duration.as_secs_f64() * 1000.0)
}
