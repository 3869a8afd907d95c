//! The threads of the data path: one per core, each with a runtime, listeners and connections of its own.
//!
//! The kernel spreads connections over the listeners of one port (`SO_REUSEPORT`) by a hash of their addresses; from then on a
//! connection stays with its thread, and waking its task wakes no other thread.

use std::{io, thread, time::Duration};

use anyhow::Context;
use mesh_runtime::DrainWatcher;
use tokio::{
    runtime::Builder,
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::info;

use crate::{
    Gateway,
    program::{BACKLOG, Bound},
};

/// How many threads: as configured, or one for each core that the process may use.
pub(crate) fn count(configured: usize) -> usize {
    match configured {
        0 => thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// Serves each set of sockets on a thread of its own, until the drain is over. The first failure ends all of them.
pub(crate) async fn serve(
    gateway: &Gateway,
    sockets: Vec<Vec<Bound>>,
    drain: &DrainWatcher,
    drain_deadline: Duration,
) -> anyhow::Result<()> {
    // Dropped, also when this function is cut off, it ends the threads.
    let (_running, stopped) = watch::channel(());
    let mut ends = JoinSet::new();
    for (number, sockets) in sockets.into_iter().enumerate() {
        let worker =
            Worker { gateway: gateway.clone(), drain: drain.clone(), drain_deadline, stopped: stopped.clone() };
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || drop(end.send(worker.run(sockets))))
            .context("workers: cannot start a thread")?;
        ends.spawn(ended);
    }
    while let Some(ended) = ends.join_next().await {
        ended?.context("a worker panicked")??;
    }
    Ok(())
}

struct Worker {
    gateway: Gateway,
    drain: DrainWatcher,
    drain_deadline: Duration,
    stopped: watch::Receiver<()>,
}

impl Worker {
    fn run(mut self, sockets: Vec<Bound>) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut serving = JoinSet::new();
            for Bound { side, socket } in sockets {
                let listener = socket.listen(BACKLOG)?;
                info!(address = %listener.local_addr()?, side = side.label(), "accepting connections");
                let (gateway, drain, deadline) = (self.gateway.clone(), self.drain.clone(), self.drain_deadline);
                serving.spawn(async move { gateway.serve(side, listener, drain, deadline).await });
            }
            loop {
                tokio::select! {
                    _ = self.stopped.changed() => return Ok(()),
                    ended = serving.join_next() => match ended {
                        Some(ended) => ended??,
                        None => return Ok(()),
                    },
                }
            }
        })
    }
}
