//! Who is let in: a bound on all connections, and one per source on those that have not shown a hello yet.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::AcqRel},
    },
};

use crate::{config::LimitsConfig, pressure::Pressure};

/// Locks on the counts by source: two sources rarely share one.
const SHARDS: usize = 64;

/// Which limit a connection met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shed {
    /// As many connections as are allowed.
    Connections,
    /// As many without a hello from one source as are allowed.
    Source,
    /// As many to one service as are allowed.
    Service,
    /// As much memory as is allowed.
    Memory,
    /// No descriptor is left.
    Descriptors,
    /// From outside to the listener that is for the own cluster only.
    Outsider,
}

impl Shed {
    pub(crate) const ALL: [Self; 6] =
        [Self::Connections, Self::Source, Self::Service, Self::Memory, Self::Descriptors, Self::Outsider];

    /// A fixed word: the label `limit`.
    #[must_use]
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Source => "pending_per_source",
            Self::Service => "service",
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
            Self::Outsider => "outsider",
        }
    }
}

/// The counts behind the limits.
#[derive(Debug)]
pub(crate) struct Admission {
    max_connections: usize,
    max_pending_per_source: u32,
    connections: AtomicUsize,
    /// By source, only those with a connection without a hello: at most `max_connections` entries. Plain locks: each is
    /// held for one lookup, twice in a connection's life, and guards a part of the sources.
    pending: [Mutex<HashMap<Source, u32>>; SHARDS],
    hasher: RandomState,
    pressure: Pressure,
}

/// What one host can easily have many addresses of counts as one: an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
            v4 => v4,
        })
    }
}

impl Admission {
    pub(crate) fn new(limits: &LimitsConfig) -> Arc<Self> {
        Arc::new(Self {
            max_connections: limits.max_connections,
            max_pending_per_source: limits.max_pending_per_source,
            connections: AtomicUsize::new(0),
            pending: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            pressure: Pressure::default(),
        })
    }

    /// What makes it let nobody in.
    pub(crate) const fn pressure(&self) -> &Pressure {
        &self.pressure
    }

    /// Lets a connection in, or says which limit forbids it.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Admitted, Shed> {
        if self.pressure.short() {
            return Err(Shed::Memory);
        }
        let admitted = Admitted { admission: Arc::clone(self) };
        if self.connections.fetch_add(1, AcqRel) >= self.max_connections {
            return Err(Shed::Connections);
        }
        Ok(admitted)
    }

    /// Counts a connection whose hello is awaited for its source.
    pub(crate) fn await_hello(self: &Arc<Self>, source: IpAddr) -> Result<Pending, Shed> {
        let source = Source::from(source);
        let mut pending = self.pending(source);
        let count = pending.entry(source).or_insert(0);
        if *count >= self.max_pending_per_source {
            return Err(Shed::Source);
        }
        *count += 1;
        drop(pending);
        Ok(Pending { admission: Arc::clone(self), source })
    }

    fn pending(&self, source: Source) -> MutexGuard<'_, HashMap<Source, u32>> {
        let shard = usize::try_from(self.hasher.hash_one(source) % SHARDS as u64).unwrap_or(0);
        self.pending[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, counted until dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.connections.fetch_sub(1, AcqRel);
    }
}

/// A connection without a hello, counted for its source until dropped.
#[derive(Debug)]
pub(crate) struct Pending {
    admission: Arc<Admission>,
    source: Source,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.admission.pending(self.source);
        if let Some(count) = pending.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn admission(max_connections: usize, max_pending_per_source: u32) -> Arc<Admission> {
        Admission::new(&LimitsConfig { max_connections, max_pending_per_source, ..LimitsConfig::default() })
    }

    fn admit(admission: &Arc<Admission>, source: IpAddr) -> Result<(Admitted, Pending), Shed> {
        Ok((admission.admit()?, admission.await_hello(source)?))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_connection_more_than_allowed_is_shed_until_another_ends() {
        let admission = admission(2, 10);
        let first = admit(&admission, ip("192.0.2.1")).unwrap();
        let _second = admit(&admission, ip("192.0.2.2")).unwrap();
        assert_eq!(admit(&admission, ip("192.0.2.3")).unwrap_err(), Shed::Connections);
        drop(first);
        assert!(admit(&admission, ip("192.0.2.3")).is_ok());
    }

    #[test]
    fn a_source_with_too_many_hellos_outstanding_is_shed_and_others_are_not() {
        let admission = admission(10, 2);
        let (_one, pending) = admit(&admission, ip("192.0.2.1")).unwrap();
        let _two = admit(&admission, ip("192.0.2.1")).unwrap();
        // The same host, as a dual-stack listener sees it.
        assert_eq!(admit(&admission, ip("::ffff:192.0.2.1")).unwrap_err(), Shed::Source);
        assert!(admit(&admission, ip("192.0.2.2")).is_ok());
        // Its connection stays, but has shown a hello.
        drop(pending);
        assert!(admit(&admission, ip("192.0.2.1")).is_ok());
    }

    #[test]
    fn addresses_of_one_64_are_one_source() {
        let admission = admission(10, 1);
        let _one = admit(&admission, ip("2001:db8::1")).unwrap();
        assert_eq!(admit(&admission, ip("2001:db8::ffff:1")).unwrap_err(), Shed::Source);
        assert!(admit(&admission, ip("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn nothing_is_kept_of_a_source_that_has_gone() {
        let admission = admission(1, 1);
        drop(admit(&admission, ip("192.0.2.1")).unwrap());
        assert!(admission.pending.iter().all(|shard| shard.lock().unwrap().is_empty()));
        // A shed connection gives its place back too.
        let held = admit(&admission, ip("192.0.2.1")).unwrap();
        assert!(admit(&admission, ip("192.0.2.1")).is_err());
        drop(held);
        assert!(admit(&admission, ip("192.0.2.1")).is_ok());
    }
}
