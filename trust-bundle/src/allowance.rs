//! How often somebody may do what costs everybody something: an entry of the audit record, which pushes an older one out, a
//! certificate, a step of the trust state that every watcher is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spiffe_identity::SpiffeId;

/// So often at once, and once more after each `every`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// At once.
    pub at_once: u32,
    /// How long it takes until one more is allowed.
    pub every: Duration,
}

/// What is left of an allowance. Time is an argument.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    allowance: Allowance,
    left: u32,
    refilled: Instant,
    omitted: u64,
}

impl Bucket {
    pub(crate) fn full(allowance: Allowance, now: Instant) -> Self {
        Self { allowance, left: allowance.at_once, refilled: now, omitted: 0 }
    }

    /// How many were left out before this one; `None` when this one is left out too.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        let Allowance { at_once, every } = self.allowance;
        while self.left < at_once && now.saturating_duration_since(self.refilled) >= every {
            self.left += 1;
            self.refilled += every;
        }
        if self.left == at_once {
            self.refilled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.omitted))
            }
            None => {
                self.omitted += 1;
                None
            }
        }
    }
}

/// Changes that one identity may make at once. A rotation takes a handful.
const AT_ONCE: u32 = 100;
/// How long it takes at most until one more is allowed: one member alone takes two months to push an entry out of the audit
/// record.
const EVERY: Duration = Duration::from_secs(60);
/// Replicas of one program share an identity; so many of them can renew their certificates three times in the life of one.
const REPLICAS: u32 = 8;

/// How often each identity has changed something lately. One entry for everybody who ever did: members and services, whom an
/// operator made. Clones share them.
#[derive(Debug, Clone)]
pub struct Changes {
    allowance: Allowance,
    buckets: Arc<Mutex<BTreeMap<SpiffeId, Bucket>>>,
}

/// Somebody changes more than is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id} calls too often: {} times at once are allowed, and then once in {:?}", allowance.at_once, allowance.every)]
pub struct TooOften {
    id: SpiffeId,
    allowance: Allowance,
}

impl Changes {
    /// Nobody has changed anything; certificates that are renewed live for `certificate_lifetime`.
    #[must_use]
    pub fn new(certificate_lifetime: Duration) -> Self {
        let allowance = Allowance { at_once: AT_ONCE, every: EVERY.min(certificate_lifetime / (3 * REPLICAS)) };
        Self { allowance, buckets: Arc::default() }
    }

    /// Takes one of those that are allowed.
    ///
    /// # Errors
    /// [`TooOften`]
    pub fn allow(&self, id: &SpiffeId, now: Instant) -> Result<(), TooOften> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(id.clone()).or_insert_with(|| Bucket::full(self.allowance, now));
        let refused = || TooOften { id: id.clone(), allowance: self.allowance };
        bucket.take(now).map(|_| ()).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_one_at_a_time_with_the_number_left_out() {
        let start = Instant::now();
        let minute = Allowance { at_once: 30, every: Duration::from_secs(60) };
        let mut bucket = Bucket::full(minute, start);
        assert!((0..30).all(|_| bucket.take(start) == Some(0)));
        assert!((0..5).all(|_| bucket.take(start).is_none()));
        assert_eq!(bucket.take(start + Duration::from_secs(59)), None);
        assert_eq!(bucket.take(start + Duration::from_secs(61)), Some(6));
        assert_eq!(bucket.take(start + Duration::from_secs(62)), None);
        assert_eq!(bucket.take(start + Duration::from_secs(3600)), Some(1));
    }

    #[test]
    fn renewals_are_allowed_however_short_certificates_live() {
        let (start, id) = (Instant::now(), "spiffe://mesh.example/cluster/east/control-plane".parse().unwrap());
        for lifetime in [20, 3600, 24 * 3600].map(Duration::from_secs) {
            let changes = Changes::new(lifetime);
            // Eight replicas, each at a little less than half the life of its certificate.
            let renewals = (0..1_000).map(|count| start + lifetime.mul_f64(0.45 * f64::from(count) / 8.0));
            assert!(renewals.into_iter().all(|at| changes.allow(&id, at).is_ok()), "{lifetime:?}");
        }
    }
}
