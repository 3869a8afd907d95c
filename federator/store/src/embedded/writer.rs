//! The task that owns the file: gathers commands into batches, ends leases, publishes revisions.
//!
//! While one batch is on its way to the disk the next one gathers in the queue, so that one fsync serves as many
//! transactions as arrive in its time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::clock::LeaseClock;
use super::engine::{Applied, Command, Engine};
use super::shared::{Counters, Shared};
use crate::{LeaseId, Revision, StoreError};

/// The most commands in one batch, and the length of the queue.
pub(super) const BATCH: usize = 256;

pub(super) struct Writer {
    /// `None` only while a batch is on its way, and after a failure.
    engine: Option<Engine>,
    leases: LeaseClock,
    commands: mpsc::Receiver<Command>,
    head: watch::Sender<Revision>,
    shared: Arc<Shared>,
}

impl Writer {
    /// A writer whose leases all start over now.
    pub(super) fn new(
        engine: Engine,
        leases: Vec<(LeaseId, Duration)>,
        commands: mpsc::Receiver<Command>,
        head: watch::Sender<Revision>,
        shared: Arc<Shared>,
    ) -> Self {
        let mut writer = Self { engine: Some(engine), leases: LeaseClock::default(), commands, head, shared };
        let now = Instant::now();
        for (lease, ttl) in leases {
            writer.leases.start(lease, ttl, now);
        }
        writer.note_position();
        writer
    }

    /// Runs until the store is closed, its last handle is dropped, or the file fails.
    pub(super) async fn run(mut self) {
        let mut commands = Vec::with_capacity(BATCH);
        while self.gather(&mut commands).await {
            let batch = std::mem::replace(&mut commands, Vec::with_capacity(BATCH));
            if self.turn(batch).await.is_err() {
                break;
            }
        }
        // In this order: who sees the head close may open the file again.
        self.engine = None;
        self.shared.release_database();
        drop(self.head);
    }

    /// Waits for commands or the end of a lease; `false` when there will be no more commands.
    async fn gather(&mut self, commands: &mut Vec<Command>) -> bool {
        let deadline = self.leases.next_deadline();
        let lease_ends = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            received = self.commands.recv_many(commands, BATCH) => received > 0,
            () = lease_ends => true,
        }
    }

    async fn turn(&mut self, commands: Vec<Command>) -> Result<(), Stopped> {
        let now = Instant::now();
        // Keep-alives first: those that waited for a slow disk still count.
        let commands: Vec<Command> = commands.into_iter().filter_map(|command| self.take_own(command, now)).collect();
        let expired = self.leases.take_expired(now, BATCH);
        if expired.is_empty() && commands.is_empty() {
            return Ok(());
        }
        let applied = self.apply(expired, commands).await?;
        self.publish(applied);
        Ok(())
    }

    /// Serves the commands that need no disk.
    fn take_own(&mut self, command: Command, now: Instant) -> Option<Command> {
        match command {
            Command::KeepAlive { lease, reply } => {
                let known = self.leases.keep_alive(lease, now);
                let _ = reply.send(known.then_some(()).ok_or(StoreError::LeaseNotFound { lease }));
                None
            }
            Command::Close => {
                // What is queued is still served.
                self.commands.close();
                None
            }
            other => Some(other),
        }
    }

    async fn apply(&mut self, expired: Vec<LeaseId>, commands: Vec<Command>) -> Result<Applied, Stopped> {
        let mut engine = self.engine.take().ok_or(Stopped)?;
        let applying = tokio::task::spawn_blocking(move || {
            let applied = engine.apply(&expired, commands);
            (engine, applied)
        });
        let failure = match applying.await {
            Ok((engine, Ok(applied))) => {
                self.engine = Some(engine);
                return Ok(applied);
            }
            Ok((_, Err(error))) => error.into(),
            Err(error) => error.into(),
        };
        tracing::error!(error = %failure, "the store cannot write its file and stops");
        self.shared.fail(failure);
        Err(Stopped)
    }

    /// Lets watchers see the revisions, then answers.
    fn publish(&mut self, applied: Applied) {
        let now = Instant::now();
        for (lease, ttl) in applied.granted {
            self.leases.start(lease, ttl, now);
        }
        for lease in applied.ended {
            self.leases.end(lease);
        }
        self.note_position();
        Counters::add(&self.shared.counters.flushes, usize::from(applied.written));
        Counters::add(&self.shared.counters.answered, applied.answers.len());
        let newest = {
            let mut recent = self.shared.recent();
            for revised in applied.revised {
                recent.push(revised);
            }
            recent.forget_until(self.shared.counters.compacted.load(Ordering::Relaxed));
            recent.newest()
        };
        self.head.send_if_modified(|head| std::mem::replace(head, newest) != newest);
        for answer in applied.answers {
            answer();
        }
    }

    fn note_position(&self) {
        let counters = &self.shared.counters;
        counters.leases.store(self.leases.len() as u64, Ordering::Relaxed);
        if let Some(engine) = &self.engine {
            counters.compacted.store(engine.position().compacted, Ordering::Relaxed);
        }
    }
}

/// The writer cannot go on; [`Shared`] knows why.
#[derive(Debug)]
struct Stopped;
