//! When each lease ends.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::LeaseId;

/// Deadlines live in memory only: a lease that was alive when the store stopped starts over when it opens, since its
/// owner could not keep it alive meanwhile.
#[derive(Default)]
pub(super) struct LeaseClock {
    leases: HashMap<LeaseId, Running>,
    order: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Clone, Copy)]
struct Running {
    ttl: Duration,
    deadline: Instant,
}

impl LeaseClock {
    pub(super) fn start(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.end(lease);
        let deadline = now + ttl;
        self.leases.insert(lease, Running { ttl, deadline });
        self.order.insert((deadline, lease));
    }

    /// Gives the lease its whole time again; `false` if it is not running.
    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> bool {
        let running = self.leases.get(&lease).copied();
        if let Some(Running { ttl, .. }) = running {
            self.start(lease, ttl, now);
        }
        running.is_some()
    }

    pub(super) fn end(&mut self, lease: LeaseId) {
        if let Some(Running { deadline, .. }) = self.leases.remove(&lease) {
            self.order.remove(&(deadline, lease));
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.order.first().map(|(deadline, _)| *deadline)
    }

    /// Takes up to `limit` leases whose time is over by `now`.
    pub(super) fn take_expired(&mut self, now: Instant, limit: usize) -> Vec<LeaseId> {
        let expired: Vec<LeaseId> = self
            .order
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(limit)
            .map(|(_, lease)| *lease)
            .collect();
        for lease in &expired {
            self.end(*lease);
        }
        expired
    }

    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn leases_expire_in_order_and_not_before_their_time() {
        let start = Instant::now();
        let mut clock = LeaseClock::default();
        clock.start(LeaseId::new(1), TTL * 2, start);
        clock.start(LeaseId::new(2), TTL, start);
        clock.start(LeaseId::new(3), TTL, start);
        assert_eq!(clock.next_deadline(), Some(start + TTL));
        assert_eq!(clock.take_expired(start + TTL - Duration::from_nanos(1), 9), []);
        assert_eq!(clock.take_expired(start + TTL, 1), [LeaseId::new(2)]);
        assert_eq!(clock.take_expired(start + TTL * 3, 9), [LeaseId::new(3), LeaseId::new(1)]);
        assert_eq!((clock.len(), clock.next_deadline()), (0, None));
    }

    #[test]
    fn a_keep_alive_gives_the_whole_time_again() {
        let start = Instant::now();
        let mut clock = LeaseClock::default();
        let lease = LeaseId::new(1);
        clock.start(lease, TTL, start);
        assert!(clock.keep_alive(lease, start + TTL / 2));
        assert_eq!(clock.take_expired(start + TTL, 9), []);
        assert_eq!(clock.next_deadline(), Some(start + TTL / 2 + TTL));
        clock.end(lease);
        assert!(!clock.keep_alive(lease, start));
        assert_eq!(clock.next_deadline(), None);
    }
}
