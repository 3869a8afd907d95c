//! The one writer of the file: applies a batch of commands as one durable redb transaction.
//!
//! Each command sees what the earlier ones of its batch wrote. No answer leaves before the batch is on disk, so nobody
//! learns of a state that a crash could take back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, ReadableTable, StorageError};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::recent::Revised;
use super::tables::{META_COMPACTED, META_NEXT_LEASE, META_REVISION, Tables, Version, version_at};
use crate::{Change, Committed, Entry, Expect, LeaseId, Operation, Revision, StoreError, Transaction};

/// The most revisions that one batch compacts away by itself, so that a shortened history does not stall writers.
const TRIM_STEP: Revision = 1024;

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What is asked of the writer. A reply that is dropped unsent means that the writer failed or stopped.
pub(super) enum Command {
    Commit { transaction: Transaction, reply: Reply<Committed>, queued: OwnedSemaphorePermit },
    Grant { ttl: Duration, reply: Reply<LeaseId> },
    KeepAlive { lease: LeaseId, reply: Reply<()> },
    Revoke { lease: LeaseId, reply: Reply<()> },
    Compact { at: Revision, reply: Reply<()> },
    Close,
}

/// How far the store has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) next_lease: u64,
}

/// A reply, to be sent once its batch is durable.
type Answer = Box<dyn FnOnce() + Send>;

/// What a batch did.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) revised: Vec<Arc<Revised>>,
    pub(super) granted: Vec<(LeaseId, Duration)>,
    pub(super) ended: Vec<LeaseId>,
    pub(super) answers: Vec<Answer>,
    /// Whether there was anything to make durable.
    pub(super) written: bool,
}

pub(super) struct Engine {
    database: Arc<Database>,
    position: Position,
    history: Revision,
}

impl Engine {
    /// An engine that keeps the last `history` revisions.
    pub(super) fn new(database: Arc<Database>, position: Position, history: Revision) -> Self {
        Self { database, position, history }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Ends the expired leases, then applies the commands in order. Blocks until the disk has it.
    pub(super) fn apply(&mut self, expired: &[LeaseId], commands: Vec<Command>) -> Result<Applied, redb::Error> {
        let write = self.database.begin_write()?;
        let mut batch = Batch { tables: Tables::open(&write)?, position: self.position, applied: Applied::default() };
        for lease in expired {
            batch.end_lease(*lease)?;
        }
        for command in commands {
            batch.apply(command)?;
        }
        batch.trim(self.history)?;
        let (position, mut applied) = batch.finish(self.position)?;
        applied.written = position != self.position || !applied.ended.is_empty();
        if applied.written {
            write.commit()?;
            self.position = position;
        } else {
            write.abort()?;
        }
        Ok(applied)
    }
}

struct Batch<'t> {
    tables: Tables<'t>,
    position: Position,
    applied: Applied,
}

impl Batch<'_> {
    fn apply(&mut self, command: Command) -> Result<(), StorageError> {
        match command {
            Command::Commit { transaction, reply, queued } => {
                let result = self.commit(transaction)?;
                self.applied.answers.push(Box::new(move || {
                    let _ = reply.send(result);
                    drop(queued);
                }));
            }
            Command::Grant { ttl, reply } => {
                let lease = self.grant(ttl)?;
                self.answer(reply, Ok(lease));
            }
            Command::Revoke { lease, reply } => {
                let ended = self.end_lease(lease)?;
                self.answer(reply, ended.then_some(()).ok_or(StoreError::LeaseNotFound { lease }));
            }
            Command::Compact { at, reply } => {
                let current = self.position.revision;
                if at <= current {
                    self.compact(at)?;
                    self.answer(reply, Ok(()));
                } else {
                    self.answer(reply, Err(StoreError::FutureRevision { current }));
                }
            }
            // Both are the writer's own and change nothing on disk.
            Command::KeepAlive { .. } | Command::Close => {}
        }
        Ok(())
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, StoreError>) {
        self.applied.answers.push(Box::new(move || {
            let _ = reply.send(result);
        }));
    }

    fn commit(&mut self, transaction: Transaction) -> Result<Result<Committed, StoreError>, StorageError> {
        if let Some(key) = self.first_conflict(transaction.expect)? {
            return Ok(Ok(Committed::Conflict { key }));
        }
        if let Some(lease) = self.first_missing_lease(&transaction.operations)? {
            return Ok(Err(StoreError::LeaseNotFound { lease }));
        }
        let revision = self.position.revision + 1;
        let mut changes = Vec::with_capacity(transaction.operations.len());
        for operation in transaction.operations {
            match operation {
                Operation::Put { key, value, lease } => changes.push(self.put(revision, key, value, lease)?),
                Operation::Delete { key } => changes.extend(self.delete(revision, key)?),
            }
        }
        self.publish(revision, changes)?;
        Ok(Ok(Committed::Done(self.position.revision)))
    }

    fn first_conflict(&self, expected: Vec<Expect>) -> Result<Option<String>, StorageError> {
        for Expect { key, modified } in expected {
            if self.live(&key)?.map_or(0, |live| live.modified) != modified {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn first_missing_lease(&self, operations: &[Operation]) -> Result<Option<LeaseId>, StorageError> {
        for operation in operations {
            if let Operation::Put { lease: Some(lease), .. } = operation
                && self.tables.leases.get(lease.number())?.is_none()
            {
                return Ok(Some(*lease));
            }
        }
        Ok(None)
    }

    fn live(&self, key: &str) -> Result<Option<Live>, StorageError> {
        let live = version_at(&self.tables.versions, key, u64::MAX, |modified, version| match version {
            Version::Put { created, lease, .. } => Some(Live { created, modified, lease }),
            Version::Deleted => None,
        })?;
        Ok(live.flatten())
    }

    fn put(
        &mut self,
        modified: Revision,
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    ) -> Result<Change, StorageError> {
        let before = self.live(&key)?;
        let created = before.as_ref().map_or(modified, |live| live.created);
        let leased_before = before.and_then(|live| live.lease);
        if leased_before != lease {
            if let Some(lease) = leased_before {
                self.tables.leased.remove((lease.number(), key.as_str()))?;
            }
            if let Some(lease) = lease {
                self.tables.leased.insert((lease.number(), key.as_str()), ())?;
            }
        }
        let row = Version::Put { created, lease, value: &value }.encode();
        self.tables.versions.insert((key.as_str(), !modified), row.as_slice())?;
        Ok(Change::Put(Entry { key, value, created, modified, lease }))
    }

    fn delete(&mut self, revision: Revision, key: String) -> Result<Option<Change>, StorageError> {
        let Some(live) = self.live(&key)? else { return Ok(None) };
        if let Some(lease) = live.lease {
            self.tables.leased.remove((lease.number(), key.as_str()))?;
        }
        self.tables.versions.insert((key.as_str(), !revision), Version::Deleted.encode().as_slice())?;
        Ok(Some(Change::Delete { key }))
    }

    /// Takes the revision, if it changed anything.
    fn publish(&mut self, revision: Revision, changes: Vec<Change>) -> Result<(), StorageError> {
        if changes.is_empty() {
            return Ok(());
        }
        for (index, change) in (0_u64..).zip(&changes) {
            self.tables.log.insert((revision, index), change.key())?;
        }
        self.position.revision = revision;
        self.applied.revised.push(Arc::new(Revised { revision, changes }));
        Ok(())
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StorageError> {
        let lease = LeaseId::new(self.position.next_lease);
        self.position.next_lease += 1;
        let milliseconds = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.tables.leases.insert(lease.number(), milliseconds)?;
        self.applied.granted.push((lease, ttl));
        Ok(lease)
    }

    /// Deletes the lease and its keys; `false` if there is no such lease.
    fn end_lease(&mut self, lease: LeaseId) -> Result<bool, StorageError> {
        let number = lease.number();
        if self.tables.leases.remove(number)?.is_none() {
            return Ok(false);
        }
        let mut keys = Vec::new();
        for row in self.tables.leased.range((number, "")..(number.saturating_add(1), ""))? {
            keys.push(row?.0.value().1.to_owned());
        }
        let revision = self.position.revision + 1;
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            changes.extend(self.delete(revision, key)?);
        }
        self.publish(revision, changes)?;
        self.applied.ended.push(lease);
        Ok(true)
    }

    /// Compacts what is older than the last `history` revisions, a step at a time.
    fn trim(&mut self, history: Revision) -> Result<(), StorageError> {
        let oldest = self.position.revision.saturating_sub(history);
        self.compact(oldest.min(self.position.compacted.saturating_add(TRIM_STEP)))
    }

    /// Removes the log up to `at`, and every version that no read at `at` or later can see. Of a key's versions up to
    /// the compacted revision at most one is left, and no deletion.
    fn compact(&mut self, at: Revision) -> Result<(), StorageError> {
        if at <= self.position.compacted {
            return Ok(());
        }
        let mut changed = Vec::new();
        for row in self.tables.log.range((0, 0)..=(at, u64::MAX))? {
            let (place, key) = row?;
            changed.push((place.value().0, key.value().to_owned()));
        }
        for (revision, key) in changed {
            self.forget_superseded(&key, revision)?;
        }
        self.tables.log.retain_in((0, 0)..=(at, u64::MAX), |_, _| false)?;
        self.position.compacted = at;
        Ok(())
    }

    fn forget_superseded(&mut self, key: &str, revision: Revision) -> Result<(), StorageError> {
        let versions = &mut self.tables.versions;
        let before = version_at(versions, key, revision - 1, |before, _| before)?;
        if let Some(before) = before {
            versions.remove((key, !before))?;
        }
        let deleted = version_at(versions, key, revision, |_, version| matches!(version, Version::Deleted))?;
        if deleted == Some(true) {
            versions.remove((key, !revision))?;
        }
        Ok(())
    }

    /// Writes down what moved since `before`, and lets go of the tables.
    fn finish(mut self, before: Position) -> Result<(Position, Applied), StorageError> {
        let after = self.position;
        for (name, before, after) in [
            (META_REVISION, before.revision, after.revision),
            (META_COMPACTED, before.compacted, after.compacted),
            (META_NEXT_LEASE, before.next_lease, after.next_lease),
        ] {
            if before != after {
                self.tables.meta.insert(name, after)?;
            }
        }
        Ok((after, self.applied))
    }
}

/// What a transaction needs to know of a key's newest version.
struct Live {
    created: Revision,
    modified: Revision,
    lease: Option<LeaseId>,
}
