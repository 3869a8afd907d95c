//! Readiness: the set of things a process still waits for.
//!
//! The process is ready when nothing is waited for and no drain has started. Age of state is never a reason to be
//! unready: it is a metric.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the process waits for before it takes traffic. Clones share one set.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By order of arrival: two guards may wait under one name.
    names: BTreeMap<u64, String>,
}

/// Keeps the process unready until it is dropped or told [`ReadinessGuard::ready`].
#[derive(Debug)]
#[must_use = "the process waits only as long as the guard lives"]
pub struct ReadinessGuard {
    readiness: Readiness,
    key: u64,
}

impl Readiness {
    /// Makes the process wait for `name`, which `/readyz` lists until the guard is dropped.
    ///
    /// Call it before the first `.await` of a program's main: until that point the runtime itself holds readiness back,
    /// so that a probe never sees a program ready that has not yet said what it waits for.
    pub fn require(&self, name: impl Into<String>) -> ReadinessGuard {
        let mut waiting = self.lock();
        let key = waiting.next;
        waiting.next += 1;
        waiting.names.insert(key, name.into());
        drop(waiting);
        ReadinessGuard { readiness: self.clone(), key }
    }

    /// Whether nothing is waited for.
    pub fn is_ready(&self) -> bool {
        self.lock().names.is_empty()
    }

    /// What is waited for, oldest first.
    pub fn waiting_for(&self) -> Vec<String> {
        self.lock().names.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code panics while it holds the lock half-changed, so a poisoned set is still whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadinessGuard {
    /// The awaited thing has happened.
    pub fn ready(self) {}
}

impl Drop for ReadinessGuard {
    fn drop(&mut self) {
        self.readiness.lock().names.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_its_last_guard_is_gone() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let first = readiness.require("first state");
        let second = readiness.clone().require("certificate");
        assert_eq!(readiness.waiting_for(), ["first state", "certificate"]);
        first.ready();
        assert_eq!(readiness.waiting_for(), ["certificate"]);
        drop(second);
        assert!(readiness.is_ready());
    }

    #[test]
    fn two_guards_of_one_name_are_waited_for_separately() {
        let readiness = Readiness::default();
        let (one, other) = (readiness.require("listener"), readiness.require("listener"));
        drop(one);
        assert!(!readiness.is_ready());
        drop(other);
        assert!(readiness.is_ready());
    }
}
