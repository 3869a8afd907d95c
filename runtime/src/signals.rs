//! SIGTERM and SIGINT: the first starts the drain, the second ends the process.
//!
//! They are waited for on a thread of their own, so that a second signal ends the process even when every worker of the
//! main runtime is stuck.

use std::io;
use std::thread::JoinHandle;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::process::Process;

/// The thread that waits for signals.
pub(crate) struct Signals {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Signals {
    /// Starts to wait. From here on a signal no longer ends the process by itself.
    pub(crate) fn watch(process: Process) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let context = runtime.enter();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        drop(context);
        let (stop, mut stopped) = oneshot::channel();
        let wait = async move {
            for first in [true, false] {
                let (name, kind) = tokio::select! {
                    _ = &mut stopped => return,
                    _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                    _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
                };
                if first {
                    info!(signal = name, "told to end");
                    process.trigger_drain();
                } else {
                    warn!(signal = name, "told to end again: ending at once");
                    std::process::exit(128 + kind.as_raw_value());
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait))?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread. Signals are ignored from here on: the process is about to end anyway.
    pub(crate) fn stop(self) {
        // The thread has ended by itself only if the process has.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
