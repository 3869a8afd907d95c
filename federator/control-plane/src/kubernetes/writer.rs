//! Writes what the snapshot says into the API: ServiceImports, EndpointSlices of imports, the status of ServiceExports,
//! Clusters, ClusterProperties, and Events.
//!
//! ```text
//!   Snapshot ─ what differs ─┐
//!   watches of what is there ┼─► dirty keys ─► wanted vs. present ─► Plan ─► API (server-side apply)
//!   time after a failure ────┘                                         └──► what the API answered is present
//! ```
//!
//! One task owns the state; a key is worked on once at a time, with everything that came meanwhile. Nothing is written
//! before everything that is there was listed, and nothing is removed before the federation's first full state. Where many
//! services change at once the imports of what others export come first, since clients wait for these. All else follows when the
//! burst has ebbed away: an API server that is busy with it takes as much longer for the imports. So do the imports of the
//! own exports, whose API server has the exports themselves to take.

mod burst;
mod clusters;
mod events;
mod plan;
mod present;
mod slices;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation::{ClusterName, FederationDomain, ServiceId};
use federation_resources::about::{CLUSTER_PROPERTY, CLUSTER_SET_PROPERTY, ClusterProperty, ClusterPropertySpec};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Recorder, Reporter};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, warn};

use super::FIELD_MANAGER;
use crate::snapshot::Snapshot;
use burst::Burst;
use plan::{Done, Plan};
use present::{Observation, Present};

pub use slices::{HEADLESS_LABEL, SERVICE_NAME_LABEL, SLICE_MANAGED_BY, SLICE_MANAGER, SOURCE_CLUSTER_LABEL};

/// Keys that are worked on at the same time.
const CONCURRENCY: usize = 32;

/// Observations that wait.
const OBSERVATIONS: usize = 1024;

/// One request.
const REQUEST: Duration = Duration::from_secs(10);

/// After the first failure of a key; doubled with each.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// After many failures of a key.
const RETRY_LAST: Duration = Duration::from_secs(30);

/// How often the cluster's properties are looked at until they are right.
const PROPERTIES_AGAIN: Duration = Duration::from_secs(10);

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// A service's import, slices, and the status of its export.
    Service(ServiceId),
    /// The view of a member.
    Cluster(ClusterName),
}

/// The writer.
pub struct Writer {
    client: Client,
    recorder: Recorder,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    cluster: ClusterName,
    federation: FederationDomain,
}

/// What one task owns.
struct State {
    snapshot: Arc<Snapshot>,
    present: Present,
    dirty: BTreeSet<Key>,
    /// Keys whose imports are right: the rest of their work waits for the imports of others.
    rest: BTreeSet<Key>,
    burst: Burst,
    busy: BTreeSet<Key>,
    failed: BTreeMap<Key, u32>,
    retries: BTreeSet<(Instant, Key)>,
}

impl Writer {
    /// A writer of what `snapshots` say.
    #[must_use]
    pub fn new(
        client: Client,
        replica: &str,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        cluster: ClusterName,
        federation: FederationDomain,
    ) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(replica.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, snapshots, cluster, federation }
    }

    /// Writes until nobody shows snapshots any more.
    pub async fn run(mut self) {
        let (sender, mut observations) = mpsc::channel(OBSERVATIONS);
        let mut watches = JoinSet::new();
        present::watch(&mut watches, &self.client, &sender);
        let properties = tell_properties(self.client.clone(), self.cluster.clone(), self.federation.clone());
        watches.spawn(properties);
        let mut state = State {
            snapshot: Arc::default(),
            present: Present::default(),
            dirty: BTreeSet::new(),
            rest: BTreeSet::new(),
            burst: Burst::default(),
            busy: BTreeSet::new(),
            failed: BTreeMap::new(),
            retries: BTreeSet::new(),
        };
        let mut work: JoinSet<(Key, Done)> = JoinSet::new();
        loop {
            let held = state.start(&mut work, &self);
            let retry = state.retries.first().map(|(due, _)| *due);
            tokio::select! {
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
                    state.show(snapshot);
                }
                Some(observation) = observations.recv() => {
                    state.observe(observation);
                    for _ in 0..OBSERVATIONS {
                        let Ok(next) = observations.try_recv() else { break };
                        state.observe(next);
                    }
                }
                Some(done) = work.join_next() => match done {
                    Ok((key, done)) => state.finish(key, done),
                    Err(error) => {
                        error!(%error, "a write broke off");
                        return;
                    }
                },
                () = sleep_until(retry) => state.retry(),
                () = sleep_until(held) => {}
            }
        }
    }
}

impl State {
    fn show(&mut self, snapshot: Arc<Snapshot>) {
        let before = std::mem::replace(&mut self.snapshot, Arc::clone(&snapshot));
        let services = differing(&before.services, &snapshot.services, Arc::ptr_eq);
        let exports = differing(&before.exports, &snapshot.exports, Arc::ptr_eq);
        self.dirty.extend(services.chain(exports).cloned().map(Key::Service));
        let clusters = differing(&before.clusters, &snapshot.clusters, |one, other| one == other);
        self.dirty.extend(clusters.cloned().map(Key::Cluster));
        if snapshot.synced && !before.synced {
            // From now on what is not in the snapshot is to be removed.
            self.dirty.extend(self.present.keys());
        }
    }

    fn observe(&mut self, observation: Observation) {
        self.dirty.extend(self.present.take(observation));
    }

    /// Starts work on dirty keys, as far as there is room. Returns until when the rest waits for a burst to ebb away.
    fn start(&mut self, work: &mut JoinSet<(Key, Done)>, writer: &Writer) -> Option<Instant> {
        if self.snapshot.revision == 0 || !self.present.is_listed() {
            return None;
        }
        let now = SystemTime::now();
        let (mut waiting, mut waiting_rest) = (BTreeSet::new(), BTreeSet::new());
        let mut held = None;
        while work.len() < CONCURRENCY {
            let (key, first) = match self.next() {
                Ok(next) => next,
                Err(until) => {
                    held = until;
                    break;
                }
            };
            if self.busy.contains(&key) {
                let later = if first { &mut waiting } else { &mut waiting_rest };
                later.insert(key);
                continue;
            }
            let Some(plan) = Plan::of(&key, &self.snapshot, &self.present, now) else { continue };
            let plan = if first {
                self.rest.insert(key.clone());
                let Some(plan) = plan.import_alone() else { continue };
                let now = Instant::now();
                self.burst.import(now);
                if plan.is_own() && self.burst.holds_until(now).is_some() {
                    continue;
                }
                plan
            } else {
                plan
            };
            self.busy.insert(key.clone());
            let (client, recorder) = (writer.client.clone(), writer.recorder.clone());
            work.spawn(async move {
                let done = plan.perform(&client, &recorder).await;
                (key, done)
            });
        }
        self.dirty.extend(waiting);
        self.rest.extend(waiting_rest);
        held
    }

    /// The next key, and whether it is its import's turn. Without any: until when the rest is held, if it is.
    fn next(&mut self) -> Result<(Key, bool), Option<Instant>> {
        if let Some(key) = self.dirty.pop_first() {
            return Ok((key, true));
        }
        if self.rest.is_empty() {
            return Err(None);
        }
        match self.burst.holds_until(Instant::now()) {
            Some(until) => Err(Some(until)),
            None => self.rest.pop_first().map(|key| (key, false)).ok_or(None),
        }
    }

    fn finish(&mut self, key: Key, done: Done) {
        self.busy.remove(&key);
        for observation in done.present {
            // What was written is known to be there before the watch says so.
            self.present.take(observation);
        }
        match done.error {
            None => {
                self.failed.remove(&key);
            }
            Some(error) if plan::is_moot(&error) => {
                debug!(?key, %error, "what was to be written has no place any more");
                self.failed.remove(&key);
            }
            Some(error) => {
                let failures = self.failed.entry(key.clone()).or_default();
                let delay = RETRY_FIRST.saturating_mul(1 << (*failures).min(10)).min(RETRY_LAST);
                *failures += 1;
                warn!(?key, %error, ?delay, "a write failed and is tried again");
                self.rest.remove(&key);
                self.retries.insert((Instant::now() + delay, key));
            }
        }
    }

    fn retry(&mut self) {
        let now = Instant::now();
        while let Some((due, _)) = self.retries.first()
            && *due <= now
            && let Some((_, key)) = self.retries.pop_first()
        {
            self.dirty.insert(key);
        }
    }
}

/// Keys that are in one map only, or whose values differ.
fn differing<'a, K: Ord, V>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool + Copy + 'a,
) -> impl Iterator<Item = &'a K> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let changed = after.iter().filter(move |(key, value)| !before.get(*key).is_some_and(|before| same(before, value)));
    gone.chain(changed.map(|(key, _)| key))
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Writes the cluster's name and its cluster set's, where nobody has written others: they are not to change.
async fn tell_properties(client: Client, cluster: ClusterName, federation: FederationDomain) {
    let properties: Api<ClusterProperty> = Api::all(client);
    let mut wanted = vec![(CLUSTER_PROPERTY, cluster.to_string()), (CLUSTER_SET_PROPERTY, federation.to_string())];
    let mut told = None;
    while !wanted.is_empty() {
        let mut left = Vec::new();
        for (name, value) in wanted {
            match timeout(REQUEST, tell_property(&properties, name, &value)).await {
                Ok(Ok(())) => continue,
                Ok(Err(why)) if told.as_ref() != Some(&why) => {
                    error!(property = name, why, "a property of the cluster is not written");
                    told = Some(why);
                }
                Ok(Err(_)) | Err(_) => {}
            }
            left.push((name, value));
        }
        wanted = left;
        if !wanted.is_empty() {
            tokio::time::sleep(PROPERTIES_AGAIN).await;
        }
    }
    // A part of the set of watches: it ends with them.
    std::future::pending().await
}

async fn tell_property(properties: &Api<ClusterProperty>, name: &str, value: &str) -> Result<(), String> {
    match properties.get_opt(name).await.map_err(|error| error.to_string())? {
        Some(there) if there.spec.value == value => Ok(()),
        Some(there) => Err(format!("{name} is {:?} already, not {value:?}", there.spec.value)),
        None => {
            let property = ClusterProperty::new(name, ClusterPropertySpec { value: value.to_owned() });
            let applied = properties.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&property)).await;
            applied.map(|_| ()).map_err(|error| error.to_string())
        }
    }
}
