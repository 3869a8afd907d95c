//! Drain: one trigger, many watchers, and holds that the end waits for.
//!
//! ```text
//!  SIGTERM ──► DrainTrigger ──► DrainWatcher::signaled()   stop accepting
//!                   │           DrainWatcher::hold() ──► DrainHold   a connection that should finish
//!                   └── released() ◄── the last DrainHold dropped
//! ```
//!
//! Once triggered, a drain cannot be taken back.

use std::sync::Arc;

use tokio::sync::watch;

/// The side that starts the drain and waits for its end.
#[derive(Clone, Debug)]
pub(crate) struct DrainTrigger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    draining: watch::Sender<bool>,
    holds: watch::Sender<usize>,
}

/// Sees when the drain starts, and may delay its end.
#[derive(Clone, Debug)]
pub struct DrainWatcher {
    shared: Arc<Shared>,
}

/// Delays the end of the drain until dropped, at most until the drain deadline.
#[derive(Debug)]
#[must_use = "the drain waits only as long as the hold lives"]
pub struct DrainHold {
    shared: Arc<Shared>,
}

impl DrainTrigger {
    pub(crate) fn new() -> Self {
        let shared = Shared { draining: watch::Sender::new(false), holds: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// Starts the drain. Every further call changes nothing.
    pub(crate) fn trigger(&self) {
        self.shared.draining.send_if_modified(|draining| !std::mem::replace(draining, true));
    }

    pub(crate) fn watcher(&self) -> DrainWatcher {
        DrainWatcher { shared: Arc::clone(&self.shared) }
    }

    /// Ends when no hold is left.
    pub(crate) async fn released(&self) {
        // Waiting fails only when the sender is gone, and `self` owns it.
        let _ = self.shared.holds.subscribe().wait_for(|holds| *holds == 0).await;
    }

    /// How many holds are left.
    pub(crate) fn holds(&self) -> usize {
        *self.shared.holds.borrow()
    }
}

impl DrainWatcher {
    /// Ends when draining starts; at once if it has started already.
    pub async fn signaled(&self) {
        // Waiting fails only when the sender is gone, and `self` shares it.
        let _ = self.shared.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Whether draining has started.
    pub fn draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Asks the drain to wait until the returned hold is dropped.
    pub fn hold(&self) -> DrainHold {
        self.shared.holds.send_modify(|holds| *holds += 1);
        DrainHold { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for DrainHold {
    fn drop(&mut self) {
        self.shared.holds.send_modify(|holds| *holds -= 1);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn every_watcher_sees_the_drain_early_or_late() {
        let trigger = DrainTrigger::new();
        let (early, clone) = (trigger.watcher(), trigger.watcher());
        let waiting = tokio::spawn(async move { early.signaled().await });
        assert!(!clone.draining());
        assert!(clone.signaled().now_or_never().is_none());
        trigger.trigger();
        trigger.trigger();
        waiting.await.unwrap();
        assert!(clone.draining());
        clone.signaled().await;
        trigger.watcher().signaled().await;
    }

    #[tokio::test]
    async fn the_end_waits_for_the_last_hold_wherever_it_was_taken() {
        let trigger = DrainTrigger::new();
        let watcher = trigger.watcher();
        let before = watcher.hold();
        trigger.trigger();
        let during = watcher.clone().hold();
        drop(watcher);
        assert_eq!(trigger.holds(), 2);
        drop(before);
        assert!(trigger.released().now_or_never().is_none(), "a hold is left");
        drop(during);
        trigger.released().await;
    }
}
