//! The Kubernetes API, watched.
//!
//! ```text
//!   watch of a kind ─► parse, prune ─► News ─┐
//!   …                                        ├─► Collected ─► one update for all that came meanwhile
//!   watch of a kind ─► parse, prune ─► News ─┘
//! ```
//!
//! What cannot be parsed keeps its last good state and is a problem until it changes. A watch that fails keeps everything;
//! listing again tells only what differs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use federation_resources::{Change, FieldError, Kind, Problem, Resource, ResourceKey, isthmus, mcs, pruned};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Source;
use crate::kubernetes::watching;
use crate::kubernetes::writer::{SLICE_MANAGED_BY, SLICE_MANAGER};
use crate::reconciler::{Input, SourceUpdate};

/// News of watches that wait to be told.
const NEWS: usize = 1024;

/// News told as one update, at most.
const BATCH: usize = 4096;

/// The kinds that are watched.
const KINDS: [Kind; 8] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::ServiceExport,
    Kind::FailoverPolicy,
    Kind::AccessPolicy,
];

/// The API server as a source.
pub struct KubernetesSource {
    client: Client,
}

impl KubernetesSource {
    /// A source that watches through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Source for KubernetesSource {
    async fn run(self, inputs: mpsc::Sender<Input>) {
        let (sender, mut news) = mpsc::channel(NEWS);
        let mut watches = JoinSet::new();
        for kind in KINDS {
            spawn(&mut watches, kind, self.client.clone(), sender.clone());
        }
        drop(sender);
        let mut collected = Collected::default();
        loop {
            let first = tokio::select! {
                first = news.recv() => first,
                () = inputs.closed() => return,
            };
            let Some(first) = first else { return };
            collected.take(first);
            for _ in 1..BATCH {
                let Ok(next) = news.try_recv() else { break };
                collected.take(next);
            }
            if let Some(update) = collected.update()
                && inputs.send(Input::Source(update)).await.is_err()
            {
                return;
            }
        }
    }
}

fn spawn(watches: &mut JoinSet<()>, kind: Kind, client: Client, news: mpsc::Sender<(Kind, News)>) {
    match kind {
        Kind::Namespace => watches.spawn(watch(Api::all(client), kind, namespace, news)),
        Kind::Node => watches.spawn(watch(Api::all(client), kind, node, news)),
        Kind::Pod => watches.spawn(watch(Api::all(client), kind, pod, news)),
        Kind::Service => watches.spawn(watch(Api::all(client), kind, service, news)),
        Kind::EndpointSlice => watches.spawn(watch(Api::all(client), kind, endpoint_slice, news)),
        Kind::ServiceExport => watches.spawn(watch(Api::all(client), kind, service_export, news)),
        Kind::FailoverPolicy => watches.spawn(watch(Api::all(client), kind, failover_policy, news)),
        Kind::AccessPolicy => watches.spawn(watch(Api::all(client), kind, access_policy, news)),
    };
}

type Parsed = Result<Option<Resource>, FieldError>;

fn namespace(object: &PartialObjectMeta<core::Namespace>) -> Parsed {
    let whole = core::Namespace { metadata: object.metadata.clone(), ..core::Namespace::default() };
    pruned::Namespace::try_from(&whole).map(|namespace| Some(Resource::Namespace(namespace)))
}

fn node(object: &PartialObjectMeta<core::Node>) -> Parsed {
    let whole = core::Node { metadata: object.metadata.clone(), ..core::Node::default() };
    pruned::Node::try_from(&whole).map(|node| Some(Resource::Node(node)))
}

/// Pods without a sidecar count for nothing, as pods that are not there.
fn pod(object: &core::Pod) -> Parsed {
    let pod = pruned::Pod::try_from(object)?;
    Ok(pod.sidecar.then_some(Resource::Pod(pod)))
}

fn service(object: &core::Service) -> Parsed {
    pruned::Service::try_from(object).map(|service| Some(Resource::Service(service)))
}

/// Slices that belong to no Service, those written for imports among them, are passed over.
fn endpoint_slice(object: &discovery::EndpointSlice) -> Parsed {
    if object.labels().get(SLICE_MANAGED_BY).is_some_and(|manager| manager == SLICE_MANAGER) {
        return Ok(None);
    }
    let slice = pruned::EndpointSlice::try_from(object)?;
    Ok(slice.service.is_some().then_some(Resource::EndpointSlice(slice)))
}

fn service_export(object: &mcs::ServiceExport) -> Parsed {
    pruned::ServiceExport::try_from(object).map(|export| Some(Resource::ServiceExport(export)))
}

fn failover_policy(object: &isthmus::FailoverPolicy) -> Parsed {
    pruned::FailoverPolicy::try_from(object).map(|policy| Some(Resource::FailoverPolicy(policy)))
}

fn access_policy(object: &isthmus::AccessPolicy) -> Parsed {
    pruned::AccessPolicy::try_from(object).map(|policy| Some(Resource::AccessPolicy(policy)))
}

/// What a watch says.
enum News {
    /// Everything that there is follows.
    Listing,
    /// An object of that listing.
    Listed(Seen),
    /// The listing is complete.
    ListingEnds,
    /// An object came or changed.
    Changed(Seen),
    /// An object is gone.
    Gone(Option<ResourceKey>),
    /// Nothing can be said now.
    Failing(String),
}

/// An object as it was parsed. Without a key its very name is unusable.
struct Seen {
    key: Option<ResourceKey>,
    name: String,
    parsed: Result<Option<Arc<Resource>>, FieldError>,
}

async fn watch<K>(api: Api<K>, kind: Kind, parse: fn(&K) -> Parsed, news: mpsc::Sender<(Kind, News)>)
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    use watcher::Event;
    let mut events = pin!(watcher(api, watching()).default_backoff());
    let see = |object: &K| Seen {
        key: key(kind, object),
        name: format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()),
        parsed: parse(object).map(|resource| resource.map(Arc::new)),
    };
    while let Some(event) = events.next().await {
        let one = match event {
            Ok(Event::Init) => News::Listing,
            Ok(Event::InitApply(object)) => News::Listed(see(&object)),
            Ok(Event::InitDone) => News::ListingEnds,
            Ok(Event::Apply(object)) => News::Changed(see(&object)),
            Ok(Event::Delete(object)) => News::Gone(key(kind, &object)),
            Err(error) => {
                debug!(%kind, %error, "a watch is interrupted");
                News::Failing(error.to_string())
            }
        };
        if news.send((kind, one)).await.is_err() {
            return;
        }
    }
}

fn key<K: kube::Resource>(kind: Kind, object: &K) -> Option<ResourceKey> {
    let namespace = match object.namespace() {
        Some(namespace) => Some(namespace.parse().ok()?),
        None => None,
    };
    Some(ResourceKey { kind, namespace, name: object.name_any() })
}

/// What all watches have said.
#[derive(Default)]
struct Collected {
    objects: HashMap<ResourceKey, Arc<Resource>>,
    /// Kinds that are being listed, and what has come of them.
    listing: BTreeMap<Kind, BTreeSet<ResourceKey>>,
    listed: BTreeSet<Kind>,
    bad: BTreeMap<(Kind, String), Problem>,
    failing: BTreeMap<Kind, Problem>,
    changes: Vec<Change>,
    /// Something other than an object changed.
    news: bool,
}

impl Collected {
    fn take(&mut self, (kind, news): (Kind, News)) {
        if !matches!(news, News::Failing(_)) && self.failing.remove(&kind).is_some() {
            self.news = true;
        }
        match news {
            News::Listing => {
                self.listing.insert(kind, BTreeSet::new());
            }
            News::Listed(seen) => {
                if let (Some(listing), Some(key)) = (self.listing.get_mut(&kind), &seen.key) {
                    listing.insert(key.clone());
                }
                self.see(kind, seen);
            }
            News::ListingEnds => {
                let there = self.listing.remove(&kind).unwrap_or_default();
                let gone = self.objects.keys().filter(|key| key.kind == kind && !there.contains(*key));
                for key in gone.cloned().collect::<Vec<_>>() {
                    self.remove(&key);
                }
                self.news |= self.listed.insert(kind);
            }
            News::Changed(seen) => self.see(kind, seen),
            News::Gone(Some(key)) => self.remove(&key),
            News::Gone(None) => {}
            News::Failing(why) => {
                let problem = problem("watch".to_owned(), kind, None, why);
                self.news |= self.failing.insert(kind, problem.clone()).as_ref() != Some(&problem);
            }
        }
    }

    fn see(&mut self, kind: Kind, seen: Seen) {
        let Seen { key, name, parsed } = seen;
        match parsed {
            Ok(found) => {
                self.news |= self.bad.remove(&(kind, name)).is_some();
                match (found, key) {
                    (Some(resource), _) => self.insert(resource),
                    (None, Some(key)) => self.remove(&key),
                    (None, None) => {}
                }
            }
            Err(error) => {
                let problem = problem(name.clone(), kind, Some(error.field), error.what);
                warn!(%problem, "an object is not taken");
                self.bad.insert((kind, name), problem);
                self.news = true;
            }
        }
    }

    fn insert(&mut self, resource: Arc<Resource>) {
        let key = resource.key();
        if self.objects.get(&key) != Some(&resource) {
            self.objects.insert(key, Arc::clone(&resource));
            self.changes.push(Change::Applied(resource));
        }
    }

    fn remove(&mut self, key: &ResourceKey) {
        let name = format!("{}/{}", key.namespace.as_ref().map(ToString::to_string).unwrap_or_default(), key.name);
        self.news |= self.bad.remove(&(key.kind, name)).is_some();
        if self.objects.remove(key).is_some() {
            self.changes.push(Change::Deleted(key.clone()));
        }
    }

    /// What is to be told now, if there is something.
    fn update(&mut self) -> Option<SourceUpdate> {
        if self.changes.is_empty() && !std::mem::take(&mut self.news) {
            return None;
        }
        self.news = false;
        Some(SourceUpdate {
            changes: std::mem::take(&mut self.changes),
            synced: self.listed.len() == KINDS.len(),
            problems: self.failing.values().chain(self.bad.values()).cloned().collect(),
            passed_over: BTreeMap::new(),
        })
    }
}

fn problem(name: String, kind: Kind, field: Option<String>, what: String) -> Problem {
    Problem { file: PathBuf::from(format!("{kind} {name}")), line: None, field, what }
}
