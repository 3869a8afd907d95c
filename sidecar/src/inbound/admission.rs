//! How many requests the application has at a time: more would only wait, and grow old while they do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use balance::ConcurrencyLimit;

/// An application is never limited below this many requests: what is slow then is not the crowd.
const FLOOR: u32 = 100;

/// Lets requests in. Clones share the limit.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Mutex<ConcurrencyLimit>>);

/// A request that was let in, until dropped.
#[derive(Debug)]
pub(crate) struct Admitted(Admission);

impl Admission {
    pub(crate) fn new(ceiling: u32) -> Self {
        Self(Arc::new(Mutex::new(ConcurrencyLimit::new(FLOOR, ceiling))))
    }

    /// Lets a request in, if there is room.
    pub(crate) fn admit(&self) -> Option<Admitted> {
        self.limit().admit().then(|| Admitted(self.clone()))
    }

    /// Requests allowed at a time, and those under way.
    pub(crate) fn state(&self) -> (u32, u32) {
        let limit = self.limit();
        (limit.current(), limit.in_flight())
    }

    /// Held for a few sums, never across an await.
    fn limit(&self) -> MutexGuard<'_, ConcurrencyLimit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// The application has answered.
    pub(crate) fn answered(&self, latency: Duration) {
        self.0.limit().answered(latency, Instant::now());
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.limit().done();
    }
}
