//! One watch, wherever it currently runs.
//!
//! A member that hangs, or a network that swallows, leaves a watch open and silent. So the watch asks for a sign of life
//! every [`TICK`], and one that brings nothing for [`SILENCE`] is opened again at another member after the last revision
//! it reported. A member that lost its leader ends the stream by itself (`require_leader`).
//!
//! The revisions that progress answers name are not used: members before 3.4.25 may name one whose changes they have not
//! sent yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream as Stream};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::Inner;
use super::fault::{Fault, watch_end};
use super::keys::{number, revision};
use super::members::{ATTEMPT, Link, PAUSE};
use crate::{Change, Revision, WatchBatch, WatchError, WatchStream};

/// How often a watch asks its member for a sign of life.
const TICK: Duration = Duration::from_secs(1);
/// After how long without one it is given up.
const SILENCE: Duration = Duration::from_secs(3);
/// The largest message of a watch. Members split larger ones, but only after the event that makes one too large.
const MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// A watch's state between two batches.
pub(super) struct Watcher {
    store: Arc<Inner>,
    prefix: String,
    /// The last revision that was put into `ready`.
    position: Revision,
    open: Option<Open>,
    ready: VecDeque<WatchBatch>,
    /// A revision whose other changes come with the next message.
    partial: Option<WatchBatch>,
    ended: bool,
}

/// A watch at a member.
struct Open {
    link: Link,
    stream: Stream,
    heard: Instant,
}

impl Watcher {
    pub(super) fn stream(store: Arc<Inner>, prefix: &str, after: Revision) -> WatchStream {
        let watcher = Self {
            store,
            prefix: prefix.to_owned(),
            position: after,
            open: None,
            ready: VecDeque::new(),
            partial: None,
            ended: false,
        };
        stream::unfold(watcher, async |mut watcher| watcher.next().await.map(|item| (item, watcher))).boxed()
    }

    async fn next(&mut self) -> Option<Result<WatchBatch, WatchError>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some(Ok(batch));
            }
            if self.ended {
                return None;
            }
            if let Err(end) = self.advance().await {
                self.ended = true;
                return Some(Err(end));
            }
        }
    }

    /// Opens the watch or takes its next message; what another attempt may mend is not an error.
    async fn advance(&mut self) -> Result<(), WatchError> {
        let Some(open) = &mut self.open else {
            return match Box::pin(self.open()).await {
                Ok(open) => {
                    self.open = Some(open);
                    Ok(())
                }
                Err(fault) => {
                    self.store.members.metrics.failed("watch", &fault);
                    debug!(prefix = self.prefix, error = ?fault, "watch not opened");
                    watch_end(fault).map_or(Ok(()), Err)?;
                    sleep(PAUSE).await;
                    Ok(())
                }
            };
        };
        let fault = match timeout(TICK, open.stream.message()).await {
            Ok(Ok(Some(response))) => {
                open.heard = Instant::now();
                self.store.members.metrics.watch_heard();
                return self.take(response);
            }
            Ok(Ok(None)) => Fault::Unknown("the watch ended".into()),
            Ok(Err(error)) => Fault::from(error),
            Err(_) if open.heard.elapsed() >= SILENCE => Fault::Unknown("the watch fell silent".into()),
            Err(_) => match timeout(TICK, open.stream.request_progress()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => Fault::from(error),
                Err(elapsed) => Fault::Unknown(Box::new(elapsed)),
            },
        };
        self.store.members.metrics.failed("watch", &fault);
        info!(prefix = self.prefix, position = self.position, error = ?fault, "watch broke: opening it again");
        self.store.members.give_up(&open.link, &fault);
        (self.open, self.partial) = (None, None);
        watch_end(fault).map_or(Ok(()), Err)
    }

    async fn open(&self) -> Result<Open, Fault> {
        // On another history the position means nothing.
        self.store.verify().await?;
        let link = self.store.members.link().await?;
        let keys = &self.store.keys;
        let options = WatchOptions::new()
            .with_range(keys.end_of(&self.prefix))
            .with_start_revision(number(self.position.saturating_add(1)))
            .with_fragment();
        let mut watches = link.client.watch_client().max_decoding_message_size(MESSAGE_BYTES);
        let opened = match timeout(ATTEMPT, watches.watch(keys.of(&self.prefix), Some(options))).await {
            Ok(opened) => opened.map_err(Fault::from),
            Err(elapsed) => Err(Fault::Unknown(Box::new(elapsed))),
        };
        match opened {
            Ok(stream) => {
                self.store.members.metrics.watch_opened();
                Ok(Open { link, stream, heard: Instant::now() })
            }
            Err(fault) => {
                self.store.members.give_up(&link, &fault);
                Err(fault)
            }
        }
    }

    fn take(&mut self, response: WatchResponse) -> Result<(), WatchError> {
        if let Err(fault) = self.store.members.check(response.header(), None) {
            return watch_end(fault).map_or(Ok(()), Err);
        }
        if response.compact_revision() > 0 {
            return Err(WatchError::Compacted { oldest: revision(response.compact_revision()) });
        }
        if response.canceled() {
            return Err(WatchError::Storage(format!("etcd refuses the watch: {}", response.cancel_reason()).into()));
        }
        let response = response.0;
        let mut batch = self.partial.take();
        for event in response.events {
            let (kind, Some(pair)) = (event.r#type, event.kv) else { continue };
            let at = revision(pair.mod_revision);
            if batch.as_ref().is_some_and(|batch| batch.revision != at) {
                self.finish(batch.take());
            }
            let keys = &self.store.keys;
            let change = if kind == EventType::Delete as i32 {
                keys.key(&pair.key).map(|key| Change::Delete { key })
            } else {
                keys.entry(etcd_client::KeyValue(pair)).map(Change::Put)
            };
            batch.get_or_insert(WatchBatch { revision: at, changes: Vec::new() }).changes.extend(change);
        }
        if response.fragment {
            self.partial = batch;
        } else {
            self.finish(batch);
        }
        Ok(())
    }

    fn finish(&mut self, batch: Option<WatchBatch>) {
        if let Some(batch) = batch {
            self.position = batch.revision;
            self.store.members.metrics.watch_reached(batch.revision);
            self.ready.push_back(batch);
        }
    }
}
