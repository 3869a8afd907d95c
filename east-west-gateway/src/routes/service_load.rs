//! How many connections a service has.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Shared by all versions of one service's route, or of what is known of one other cluster.
#[derive(Debug, Default)]
pub(crate) struct ServiceLoad {
    connections: AtomicUsize,
}

impl ServiceLoad {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    pub(crate) fn seat(self: &Arc<Self>, allowed: usize) -> Option<Seat> {
        // Taken first: two at once must not both find the last one free.
        let seat = Seat { load: Arc::clone(self) };
        (self.connections.fetch_add(1, Relaxed) < allowed).then_some(seat)
    }
}

/// A connection to a service, counted until dropped.
#[derive(Debug)]
pub struct Seat {
    load: Arc<ServiceLoad>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.load.connections.fetch_sub(1, Relaxed);
    }
}
