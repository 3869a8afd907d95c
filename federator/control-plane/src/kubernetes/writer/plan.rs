//! One key's work: what differs between wanted and present, and how it is written.

use std::sync::Arc;
use std::time::SystemTime;

use federation::{ClusterName, ServiceId};
use federation_resources::isthmus::{Cluster, ClusterSpec, ClusterStatus};
use federation_resources::mcs::{ServiceExport, ServiceImport, ServiceImportStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, Recorder};
use kube::runtime::watcher::Event as Seen;
use kube::{Client, Error, Resource as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;
use tracing::debug;

use super::present::{Observation, Present};
use super::{Key, REQUEST, clusters, events, slices, wanted};
use crate::kubernetes::{FIELD_MANAGER, MANAGED_BY};
use crate::snapshot::Snapshot;

/// What is to be written for a key.
#[derive(Default)]
pub(super) struct Plan {
    namespace: String,
    name: String,
    import: Option<ServiceImport>,
    /// Nobody but this cluster exports it.
    own: bool,
    import_status: Option<ServiceImportStatus>,
    remove_import: Option<Arc<ServiceImport>>,
    /// Of the import that is there.
    owner: Option<OwnerReference>,
    slices: Vec<EndpointSlice>,
    remove_slices: Vec<Arc<EndpointSlice>>,
    export: Option<(Vec<Condition>, ObjectReference)>,
    events: Vec<Event>,
    cluster: Option<Cluster>,
    cluster_status: Option<ClusterStatus>,
    remove_cluster: Option<Arc<Cluster>>,
}

/// What came of a plan.
#[derive(Default)]
pub(super) struct Done {
    /// What the API server says is there now.
    pub(super) present: Vec<Observation>,
    /// Why the rest was not done.
    pub(super) error: Option<Failure>,
}

/// Why something is not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Api(#[from] Error),
    #[error("no answer within {REQUEST:?}")]
    Silent,
}

/// Whether nothing can or need be written: the object, or its whole namespace, is going or gone.
pub(super) fn is_moot(failure: &Failure) -> bool {
    match failure {
        Failure::Api(Error::Api(status)) => {
            status.is_not_found() || (status.is_forbidden() && status.message.contains("being terminated"))
        }
        _ => false,
    }
}

impl Plan {
    /// What is to be done for a key; `None`: nothing.
    pub(super) fn of(key: &Key, snapshot: &Snapshot, present: &Present, now: SystemTime) -> Option<Self> {
        match key {
            Key::Service(id) => Self::of_service(id, snapshot, present, now),
            Key::Cluster(cluster) => Self::of_cluster(cluster, snapshot, present, now),
        }
    }

    fn of_service(id: &ServiceId, snapshot: &Snapshot, present: &Present, now: SystemTime) -> Option<Self> {
        let mut plan = Self { namespace: id.namespace.to_string(), name: id.name.to_string(), ..Self::default() };
        let there = present.import(id);
        match snapshot.services.get(id) {
            Some(view) => {
                let slices = slices::of(view);
                let import = wanted::import(view);
                plan.import =
                    Some(import).filter(|import| !there.is_some_and(|there| wanted::import_is(there, import)));
                let status = there.and_then(|there| there.status.as_ref());
                let wanted = wanted::import_status(view, status, !slices.is_empty(), now);
                plan.import_status = Some(wanted).filter(|wanted| status != Some(wanted));
                plan.own = view.clusters.iter().all(|exporter| exporter.local);
                plan.owner = there.and_then(|there| owner(there));
                let before = present.slices(id);
                plan.remove_slices = before
                    .iter()
                    .filter(|(name, _)| !slices.contains_key(*name))
                    .map(|(_, it)| Arc::clone(it))
                    .collect();
                let differs = |slice: &EndpointSlice| {
                    let there = slice.metadata.name.as_ref().and_then(|name| before.get(name));
                    !there.is_some_and(|there| slice_is(there, slice))
                };
                plan.slices = slices.into_values().filter(differs).collect();
            }
            None if snapshot.synced => {
                let ours = |import: &&Arc<ServiceImport>| {
                    let labels = import.metadata.labels.as_ref();
                    labels.and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|manager| manager == MANAGED_BY.1)
                };
                plan.remove_import = there.filter(ours).cloned();
                plan.remove_slices = present.slices(id).into_values().collect();
            }
            None => {}
        }
        plan.add_export(id, snapshot, present, now);
        let nothing = plan.import.is_none()
            && plan.import_status.is_none()
            && plan.remove_import.is_none()
            && plan.slices.is_empty()
            && plan.remove_slices.is_empty()
            && plan.export.is_none();
        (!nothing).then_some(plan)
    }

    fn add_export(&mut self, id: &ServiceId, snapshot: &Snapshot, present: &Present, now: SystemTime) {
        let (Some(view), Some(there)) = (snapshot.exports.get(id), present.export(id)) else { return };
        let known = there.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let generation = there.metadata.generation;
        let mut conditions: Vec<_> =
            view.conditions.iter().map(|it| wanted::condition(it, known, generation, now)).collect();
        if snapshot.generation.is_some() {
            wanted::keep_confirmed(&mut conditions, known);
        }
        let same = conditions.len() == known.len() && conditions.iter().all(|condition| known.contains(condition));
        if !same {
            self.events = events::of(known, &conditions);
            self.export = Some((conditions, there.object_ref(&())));
        }
    }

    fn of_cluster(cluster: &ClusterName, snapshot: &Snapshot, present: &Present, now: SystemTime) -> Option<Self> {
        let mut plan = Self { name: cluster.to_string(), ..Self::default() };
        let there = present.cluster(cluster.as_str());
        match snapshot.clusters.get(cluster) {
            Some(member) => {
                plan.cluster = there.is_none().then(|| Cluster::new(cluster.as_str(), ClusterSpec {}));
                let known = there.and_then(|there| there.status.as_ref());
                let status = clusters::status(member, known, now);
                plan.cluster_status = Some(status).filter(|status| known != Some(status));
            }
            None if snapshot.synced => plan.remove_cluster = there.cloned(),
            None => {}
        }
        let nothing = plan.cluster.is_none() && plan.cluster_status.is_none() && plan.remove_cluster.is_none();
        (!nothing).then_some(plan)
    }

    /// Whether it is an import that nobody but this cluster exports.
    pub(super) fn is_own(&self) -> bool {
        self.own
    }

    /// The import without anything else; `None` if that is right.
    pub(super) fn import_alone(self) -> Option<Self> {
        let Self { namespace, name, import, own, owner, .. } = self;
        import.is_some().then(|| Self { namespace, name, import, own, owner, ..Self::default() })
    }

    /// Does it, as far as it goes.
    pub(super) async fn perform(self, client: &Client, recorder: &Recorder) -> Done {
        let mut done = Done::default();
        if let Err(error) = self.write(client, recorder, &mut done).await {
            done.error = Some(error);
        }
        done
    }

    async fn write(self, client: &Client, recorder: &Recorder, done: &mut Done) -> Result<(), Failure> {
        if self.namespace.is_empty() {
            return self.write_cluster(client, done).await;
        }
        let export = self.write_export(client, recorder, done).await;
        let imports: Api<ServiceImport> = Api::namespaced(client.clone(), &self.namespace);
        let all_slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &self.namespace);
        for slice in &self.remove_slices {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            remove(&all_slices, name, slice.metadata.uid.clone()).await?;
            done.present.push(Observation::Slice(Box::new(Seen::Delete(slice.as_ref().clone()))));
        }
        if let Some(import) = &self.remove_import {
            remove(&imports, &self.name, import.metadata.uid.clone()).await?;
            done.present.push(Observation::Import(Box::new(Seen::Delete(import.as_ref().clone()))));
        }
        let mut owner_reference = self.owner;
        if let Some(import) = self.import {
            let written = write_import(&imports, &self.name, &import, owner_reference.is_none()).await?;
            owner_reference = owner(&written);
            done.present.push(Observation::Import(Box::new(Seen::Apply(written))));
        }
        if let Some(status) = self.import_status {
            let applied = apply_status(&imports, &self.name, &status).await?;
            done.present.push(Observation::Import(Box::new(Seen::Apply(applied))));
        }
        for mut slice in self.slices {
            slice.metadata.owner_references = owner_reference.clone().map(|owner| vec![owner]);
            let name = slice.metadata.name.clone().unwrap_or_default();
            let applied = apply(&all_slices, &name, &slice).await?;
            done.present.push(Observation::Slice(Box::new(Seen::Apply(applied))));
        }
        export
    }

    /// An export that was deleted meanwhile takes nothing else with it.
    async fn write_export(&self, client: &Client, recorder: &Recorder, done: &mut Done) -> Result<(), Failure> {
        let Some((conditions, reference)) = &self.export else { return Ok(()) };
        let exports: Api<ServiceExport> = Api::namespaced(client.clone(), &self.namespace);
        let status = json!({ "conditions": conditions });
        let applied = apply_status(&exports, &self.name, &status).await?;
        done.present.push(Observation::Export(Box::new(Seen::Apply(applied))));
        for event in &self.events {
            if let Ok(Err(error)) = timeout(REQUEST, recorder.publish(event, reference)).await {
                debug!(%error, "an event is not told");
            }
        }
        Ok(())
    }

    async fn write_cluster(self, client: &Client, done: &mut Done) -> Result<(), Failure> {
        let all: Api<Cluster> = Api::all(client.clone());
        if let Some(cluster) = &self.remove_cluster {
            remove(&all, &self.name, cluster.metadata.uid.clone()).await?;
            done.present.push(Observation::Cluster(Box::new(Seen::Delete(cluster.as_ref().clone()))));
        }
        if let Some(cluster) = &self.cluster {
            let applied = apply(&all, &self.name, cluster).await?;
            done.present.push(Observation::Cluster(Box::new(Seen::Apply(applied))));
        }
        if let Some(status) = &self.cluster_status {
            let applied = apply_status(&all, &self.name, status).await?;
            done.present.push(Observation::Cluster(Box::new(Seen::Apply(applied))));
        }
        Ok(())
    }
}

fn owner(import: &ServiceImport) -> Option<OwnerReference> {
    import.controller_owner_ref(&()).map(|owner| OwnerReference { block_owner_deletion: None, ..owner })
}

/// Whether a slice that is there says what is wanted.
fn slice_is(there: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let labels = there.metadata.labels.as_ref();
    let labelled = wanted.metadata.labels.iter().flatten();
    there.endpoints.as_deref().unwrap_or_default() == wanted.endpoints.as_deref().unwrap_or_default()
        && there.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default()
        && there.address_type == wanted.address_type
        && labelled.into_iter().all(|(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value))
        && there.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
}

/// A new import is created: that costs the API server less than applying it. From its first change on it is applied.
async fn write_import(
    imports: &Api<ServiceImport>,
    name: &str,
    import: &ServiceImport,
    new: bool,
) -> Result<ServiceImport, Failure> {
    if new {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match answered(imports.create(&parameters, import)).await {
            Err(Failure::Api(Error::Api(status))) if status.is_already_exists() => {}
            created => return created,
        }
    }
    own_by_applying(imports, name).await?;
    apply(imports, name, import).await
}

/// What an import was created with is owned by another operation than applying: unless that is changed, as clients of the
/// API change it that begin to apply, what is wanted no more would stay.
async fn own_by_applying(imports: &Api<ServiceImport>, name: &str) -> Result<(), Failure> {
    let mut there = answered(imports.get_metadata(name)).await?.metadata;
    let version = there.resource_version.take();
    let mut owners = there.managed_fields.take().unwrap_or_default();
    let created = owners.iter_mut().find(|owner| {
        owner.manager.as_deref() == Some(FIELD_MANAGER)
            && owner.operation.as_deref() == Some("Update")
            && owner.subresource.as_deref().is_none_or(str::is_empty)
    });
    let Some(created) = created else { return Ok(()) };
    created.operation = Some("Apply".to_owned());
    let patch = json!({ "metadata": { "managedFields": owners, "resourceVersion": version } });
    answered(imports.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch))).await.map(|_| ())
}

async fn answered<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    timeout(REQUEST, request).await.map_err(|_| Failure::Silent)?.map_err(Failure::Api)
}

/// Nobody else has a say in what we write.
fn parameters() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

async fn apply<K>(api: &Api<K>, name: &str, object: &K) -> Result<K, Failure>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    answered(api.patch(name, &parameters(), &Patch::Apply(object))).await
}

async fn apply_status<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> Result<K, Failure>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let body = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": { "name": name }, "status": status,
    });
    answered(api.patch_status(name, &parameters(), &Patch::Apply(&body))).await
}

/// Removes an object, unless it is another one of the same name by now.
async fn remove<K>(api: &Api<K>, name: &str, uid: Option<String>) -> Result<(), Failure>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let preconditions = Some(Preconditions { uid, ..Preconditions::default() });
    let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
    match answered(api.delete(name, &parameters)).await {
        Err(Failure::Api(Error::Api(status))) if status.is_not_found() || status.is_conflict() => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}
