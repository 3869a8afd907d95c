//! What is there: the objects that this program writes, as the API server has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use federation::ServiceId;
use federation_resources::isthmus::Cluster;
use federation_resources::mcs::{ServiceExport, ServiceImport};
use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use super::Key;
use super::slices::{SERVICE_NAME_LABEL, SLICE_MANAGED_BY, SLICE_MANAGER};
use crate::kubernetes::watching;

/// News of an object.
#[derive(Debug)]
pub(super) enum Observation {
    Import(Box<Event<ServiceImport>>),
    Export(Box<Event<ServiceExport>>),
    Slice(Box<Event<EndpointSlice>>),
    Cluster(Box<Event<Cluster>>),
}

/// Objects of one kind, and what a listing that goes on has named.
#[derive(Debug)]
struct Objects<I, T> {
    there: HashMap<I, Arc<T>>,
    listing: Option<BTreeSet<I>>,
    listed: bool,
}

impl<I, T> Default for Objects<I, T> {
    fn default() -> Self {
        Self { there: HashMap::new(), listing: None, listed: false }
    }
}

/// Everything that is there.
#[derive(Debug, Default)]
pub(super) struct Present {
    imports: Objects<ServiceId, ServiceImport>,
    exports: Objects<ServiceId, ServiceExport>,
    slices: Objects<(ServiceId, String), EndpointSlice>,
    slices_of: HashMap<ServiceId, BTreeSet<String>>,
    clusters: Objects<String, Cluster>,
}

impl Present {
    /// Whether everything was listed once.
    pub(super) fn is_listed(&self) -> bool {
        self.imports.listed && self.exports.listed && self.slices.listed && self.clusters.listed
    }

    pub(super) fn import(&self, id: &ServiceId) -> Option<&Arc<ServiceImport>> {
        self.imports.there.get(id)
    }

    pub(super) fn export(&self, id: &ServiceId) -> Option<&Arc<ServiceExport>> {
        self.exports.there.get(id)
    }

    pub(super) fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.there.get(name)
    }

    /// The slices of a service's import, by name.
    pub(super) fn slices(&self, id: &ServiceId) -> BTreeMap<String, Arc<EndpointSlice>> {
        let names = self.slices_of.get(id).into_iter().flatten();
        let found = names.filter_map(|name| {
            let slice = self.slices.there.get(&(id.clone(), name.clone()))?;
            Some((name.clone(), Arc::clone(slice)))
        });
        found.collect()
    }

    /// Every key of which something is there.
    pub(super) fn keys(&self) -> BTreeSet<Key> {
        let services = self.imports.there.keys().chain(self.exports.there.keys()).chain(self.slices_of.keys());
        let clusters = self.clusters.there.keys().filter_map(|name| name.parse().ok()).map(Key::Cluster);
        services.cloned().map(Key::Service).chain(clusters).collect()
    }

    /// Takes an observation; returns the keys that it touches.
    pub(super) fn take(&mut self, observation: Observation) -> Vec<Key> {
        let services = |ids: Vec<ServiceId>| ids.into_iter().map(Key::Service).collect();
        match observation {
            Observation::Import(event) => services(self.imports.take(*event, id_of)),
            Observation::Export(event) => services(self.exports.take(*event, id_of)),
            Observation::Cluster(event) => {
                let names = self.clusters.take(*event, |it| it.metadata.name.clone());
                names.iter().filter_map(|name| name.parse().ok()).map(Key::Cluster).collect()
            }
            Observation::Slice(event) => {
                let touched = self.slices.take(*event, |slice| Some((service_of(slice)?, slice.name_any())));
                for key in &touched {
                    let names = self.slices_of.entry(key.0.clone()).or_default();
                    if self.slices.there.contains_key(key) {
                        names.insert(key.1.clone());
                    } else {
                        names.remove(&key.1);
                    }
                    if names.is_empty() {
                        self.slices_of.remove(&key.0);
                    }
                }
                services(touched.into_iter().map(|(id, _)| id).collect())
            }
        }
    }
}

impl<I: Clone + Ord + std::hash::Hash, T> Objects<I, T> {
    fn take(&mut self, event: Event<T>, identity: impl Fn(&T) -> Option<I>) -> Vec<I> {
        match event {
            Event::Init => {
                self.listing = Some(BTreeSet::new());
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let Some(id) = identity(&object) else { return Vec::new() };
                if let Some(listing) = &mut self.listing {
                    listing.insert(id.clone());
                }
                self.there.insert(id.clone(), Arc::new(object));
                vec![id]
            }
            Event::Delete(object) => {
                let Some(id) = identity(&object) else { return Vec::new() };
                self.there.remove(&id);
                vec![id]
            }
            Event::InitDone => {
                self.listed = true;
                let named = self.listing.take().unwrap_or_default();
                let gone: Vec<_> = self.there.keys().filter(|id| !named.contains(id)).cloned().collect();
                self.there.retain(|id, _| named.contains(id));
                gone
            }
        }
    }
}

fn id_of<K: kube::Resource>(object: &K) -> Option<ServiceId> {
    ServiceId::parse_parts(&object.namespace()?, &object.name_any()).ok()
}

fn service_of(slice: &EndpointSlice) -> Option<ServiceId> {
    ServiceId::parse_parts(&slice.namespace()?, slice.labels().get(SERVICE_NAME_LABEL)?).ok()
}

/// Watches every kind that is written.
pub(super) fn watch(tasks: &mut JoinSet<()>, client: &Client, sender: &mpsc::Sender<Observation>) {
    let own_slices = watching().labels(&format!("{SLICE_MANAGED_BY}={SLICE_MANAGER}"));
    tasks.spawn(follow(
        Api::all(client.clone()),
        watching(),
        |event| Observation::Import(Box::new(event)),
        sender.clone(),
    ));
    tasks.spawn(follow(
        Api::all(client.clone()),
        watching(),
        |event| Observation::Export(Box::new(event)),
        sender.clone(),
    ));
    tasks.spawn(follow(
        Api::all(client.clone()),
        own_slices,
        |event| Observation::Slice(Box::new(event)),
        sender.clone(),
    ));
    tasks.spawn(follow(
        Api::all(client.clone()),
        watching(),
        |event| Observation::Cluster(Box::new(event)),
        sender.clone(),
    ));
}

async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    wrap: fn(Event<K>) -> Observation,
    sender: mpsc::Sender<Observation>,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(api, config).default_backoff().modify(|object| {
        object.managed_fields_mut().clear();
    });
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if sender.send(wrap(event)).await.is_err() {
                    return;
                }
            }
            Err(error) => warn!(%error, "a watch of what is written is interrupted"),
        }
    }
}
