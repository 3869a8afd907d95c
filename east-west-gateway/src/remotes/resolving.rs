//! Keeps the addresses of gateways that are known by name: each is asked for again when its answer's TTL ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use mesh_runtime::resolver::Resolver;
use tokio::task::JoinSet;
use tracing::warn;

use super::Remotes;

/// The least and the longest time between two questions for one name, whatever its TTL.
const BETWEEN_QUESTIONS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// After a question that nobody answered.
const RETRY: Duration = Duration::from_secs(2);
/// Questions under way at a time.
const MAX_QUESTIONS: usize = 16;

impl Remotes {
    /// Resolves names for ever.
    pub async fn keep_resolved(&self, resolver: &Resolver) {
        let mut due: BTreeMap<String, Instant> = BTreeMap::new();
        let mut questions = JoinSet::new();
        let mut asking = BTreeSet::new();
        loop {
            let names = self.names();
            due.retain(|name, _| names.contains(name));
            let now = Instant::now();
            for name in names {
                let due = *due.entry(name.clone()).or_insert(now);
                if due <= now && questions.len() < MAX_QUESTIONS && asking.insert(name.clone()) {
                    let resolver = resolver.clone();
                    questions.spawn(async move {
                        let answer = resolver.resolve(&name).await;
                        (name, answer)
                    });
                }
            }
            let waiting = due.iter().filter(|(name, _)| !asking.contains(*name)).map(|(_, due)| *due).min();
            // Those that are due and wait for a place among the questions are woken by an answer.
            let waiting = waiting.filter(|_| questions.len() < MAX_QUESTIONS);
            tokio::select! {
                () = self.names_changed.notified() => {}
                Some(Ok((name, answer))) = questions.join_next() => {
                    asking.remove(&name);
                    let next = match answer {
                        Ok(resolved) => {
                            let next = resolved.valid_until;
                            self.resolved(&name, resolved.addresses);
                            let (least, longest) = BETWEEN_QUESTIONS;
                            let now = Instant::now();
                            next.clamp(now + least, now + longest)
                        }
                        Err(error) => {
                            warn!(%error, "no address of another cluster's gateway");
                            Instant::now() + RETRY
                        }
                    };
                    due.insert(name, next);
                }
                () = until(waiting) => {}
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
