//! What is there: the objects that this program writes, as the API server has them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
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

/// Deleted objects that are remembered: many more than there are writes at the same time.
const GONE: usize = 256;

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
    /// UIDs of objects that were deleted last: the answer to a write may come after the news that its object is gone.
    gone: VecDeque<String>,
    listing: Option<BTreeSet<I>>,
    listed: bool,
}

impl<I, T> Default for Objects<I, T> {
    fn default() -> Self {
        Self { there: HashMap::new(), gone: VecDeque::new(), listing: None, listed: false }
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

impl<I: Clone + Ord + std::hash::Hash, T: kube::Resource> Objects<I, T> {
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
                let uid = object.uid().unwrap_or_default();
                let older = self.there.get(&id).is_some_and(|known| version(&object) < version(known.as_ref()));
                if older || self.gone.contains(&uid) {
                    return Vec::new();
                }
                self.there.insert(id.clone(), Arc::new(object));
                vec![id]
            }
            Event::Delete(object) => {
                let Some(id) = identity(&object) else { return Vec::new() };
                self.gone.extend(object.uid());
                if self.gone.len() > GONE {
                    self.gone.pop_front();
                }
                if self.there.get(&id).is_some_and(|known| known.uid() == object.uid()) {
                    self.there.remove(&id);
                }
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

/// Versions of one object grow.
fn version(object: &impl kube::Resource) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn import(uid: &str, version: u32) -> Box<Event<ServiceImport>> {
        let mut import = ServiceImport::new("cart", Default::default());
        import.metadata.namespace = Some("shop".to_owned());
        import.metadata.uid = Some(uid.to_owned());
        import.metadata.resource_version = Some(version.to_string());
        Box::new(Event::Apply(import))
    }

    #[test]
    fn an_answer_that_comes_late_brings_back_neither_a_deleted_object_nor_an_old_one() {
        let id: ServiceId = "shop/cart".parse().unwrap();
        let mut present = Present::default();
        present.take(Observation::Import(import("a", 5)));
        assert!(present.take(Observation::Import(import("a", 4))).is_empty());
        let Event::Apply(deleted) = *import("a", 6) else { panic!("an object") };
        assert_eq!(present.take(Observation::Import(Box::new(Event::Delete(deleted)))), [Key::Service(id.clone())]);
        present.take(Observation::Import(import("a", 5)));
        assert!(present.import(&id).is_none());
        present.take(Observation::Import(import("b", 9)));
        let Event::Apply(old) = *import("a", 6) else { panic!("an object") };
        present.take(Observation::Import(Box::new(Event::Delete(old))));
        assert_eq!(present.import(&id).unwrap().metadata.uid.as_deref(), Some("b"));
    }
}
