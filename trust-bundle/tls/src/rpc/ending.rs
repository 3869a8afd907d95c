//! How whoever serves a call ends the connection that it came over.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

/// One connection's; clones share it.
#[derive(Clone, Default)]
pub(super) struct Ending(Arc<Mutex<Wish>>);

#[derive(Default)]
struct Wish {
    pause: Option<Duration>,
    reader: Option<Waker>,
}

impl Ending {
    /// Wishes for the end. Only the first wish counts.
    pub(super) fn begin(&self, pause: Duration) {
        let mut wish = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wish.pause.get_or_insert(pause);
        if let Some(reader) = wish.reader.take() {
            reader.wake();
        }
    }

    /// After which pause the connection is to end; whoever reads it is woken when that is wished for.
    pub(super) fn poll(&self, context: &Context<'_>) -> Option<Duration> {
        let mut wish = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut wish.reader {
            Some(reader) => reader.clone_from(context.waker()),
            reader => *reader = Some(context.waker().clone()),
        }
        wish.pause
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ending")
    }
}
