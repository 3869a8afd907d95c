//! The cluster's own objects, indexed by what depends on them.
//!
//! ```text
//!   Node ──► Pod ──► EndpointSlice ──► Service ◄── ServiceExport        an arrow: a change there touches that service
//!                                         ▲
//!                                     Namespace, where it has opted its Services in
//! ```
//!
//! Pure: changes go in, the services that they touch come out, and [`LocalService`] is computed from the objects alone.

mod service;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use federation::{ClusterName, Locality, Namespace, ServiceId};
use federation_resources::pruned::{AccessPolicy, EndpointSlice, FailoverPolicy, Pod, Service, ServiceExport};
use federation_resources::{Change, DEFAULT_NAMESPACE, Kind, Resource, ResourceKey};

pub use service::{Invalid, LocalEndpoint, LocalService};
pub use workload::{Binding, LocalWorkload, NamespaceWorkloads};

/// What changes have touched since it was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services to compute again.
    pub services: BTreeSet<ServiceId>,
    /// Namespaces whose workloads are to be computed again, because a pod changed.
    pub namespaces: BTreeSet<Namespace>,
    /// Some namespace came or went.
    pub namespace_set: bool,
    /// Some failover policy changed: any import may be concerned.
    pub failover: bool,
}

/// The cluster's own objects.
#[derive(Debug)]
pub struct LocalIndex {
    cluster: ClusterName,
    objects: BTreeMap<ResourceKey, Arc<Resource>>,
    /// Objects per namespace, the declaration of the namespace among them.
    namespaces: BTreeMap<Namespace, usize>,
    slices_of_service: BTreeMap<ServiceId, BTreeSet<ResourceKey>>,
    services_of_pod: BTreeMap<(Namespace, String), BTreeMap<ServiceId, usize>>,
    touched: Touched,
}

impl LocalIndex {
    /// An empty index. Namespace `default` exists in every cluster.
    #[must_use]
    pub fn new(cluster: ClusterName) -> Self {
        let default = Namespace::parse(DEFAULT_NAMESPACE).into_iter().map(|name| (name, 1));
        Self {
            cluster,
            objects: BTreeMap::new(),
            namespaces: default.collect(),
            slices_of_service: BTreeMap::new(),
            services_of_pod: BTreeMap::new(),
            touched: Touched { namespace_set: true, ..Touched::default() },
        }
    }

    /// Takes one change.
    pub fn apply(&mut self, change: Change) {
        let (key, new) = match change {
            Change::Applied(resource) => (resource.key(), Some(resource)),
            Change::Deleted(key) => (key, None),
        };
        let old = match &new {
            Some(resource) => self.objects.insert(key.clone(), Arc::clone(resource)),
            None => self.objects.remove(&key),
        };
        self.count_namespace(&key, old.is_some(), new.is_some());
        for (resource, present) in old.iter().map(|old| (old, false)).chain(new.iter().map(|new| (new, true))) {
            self.relate(&key, resource, present);
            self.touch(resource);
        }
    }

    /// What was touched since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// The namespaces of the cluster.
    #[must_use]
    pub fn namespaces(&self) -> BTreeSet<Namespace> {
        self.namespaces.keys().cloned().collect()
    }

    /// Whether the cluster has the namespace.
    #[must_use]
    pub fn has_namespace(&self, namespace: &Namespace) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// A service as its objects make it; `None` when there is neither a Service nor a ServiceExport of the name.
    #[must_use]
    pub fn service(&self, id: &ServiceId) -> Option<LocalService> {
        let service = self.named(Kind::Service, id).and_then(|resource| match resource {
            Resource::Service(service) => Some(service.clone()),
            _ => None,
        });
        let export = self.named(Kind::ServiceExport, id).and_then(|resource| match resource {
            Resource::ServiceExport(export) => Some(export.clone()),
            _ => None,
        });
        if service.is_none() && export.is_none() {
            return None;
        }
        Some(LocalService::compute(self, id, service, export))
    }

    /// The workloads of a namespace by address; `services` are its services.
    #[must_use]
    pub fn workloads<'a>(
        &'a self,
        namespace: &'a Namespace,
        services: impl Iterator<Item = &'a LocalService>,
    ) -> NamespaceWorkloads {
        NamespaceWorkloads::compute(self, namespace, services)
    }

    /// Whether the namespace has opted its own Services in.
    fn opted_in(&self, namespace: &Namespace) -> bool {
        let key = ResourceKey { kind: Kind::Namespace, namespace: None, name: namespace.to_string() };
        let declared = self.objects.get(&key).map(Arc::as_ref);
        matches!(declared, Some(Resource::Namespace(namespace)) if namespace.local_services)
    }

    /// The id by which an endpoint's sidecar names itself: `<cluster>/<namespace>/<pod>`.
    fn endpoint_id(&self, namespace: &Namespace, pod: &str) -> String {
        format!("{}/{namespace}/{pod}", self.cluster)
    }

    fn named(&self, kind: Kind, id: &ServiceId) -> Option<&Resource> {
        let key = ResourceKey { kind, namespace: Some(id.namespace.clone()), name: id.name.to_string() };
        self.objects.get(&key).map(Arc::as_ref)
    }

    fn slices(&self, id: &ServiceId) -> impl Iterator<Item = &EndpointSlice> {
        let keys = self.slices_of_service.get(id).into_iter().flatten();
        keys.filter_map(|key| match self.objects.get(key)?.as_ref() {
            Resource::EndpointSlice(slice) => Some(slice),
            _ => None,
        })
    }

    fn pod(&self, namespace: &Namespace, name: &str) -> Option<&Pod> {
        let key = ResourceKey { kind: Kind::Pod, namespace: Some(namespace.clone()), name: name.to_owned() };
        match self.objects.get(&key)?.as_ref() {
            Resource::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    fn pods<'a>(&'a self, namespace: &Namespace) -> impl Iterator<Item = &'a Pod> {
        let first = ResourceKey { kind: Kind::Pod, namespace: Some(namespace.clone()), name: String::new() };
        let same = first.clone();
        let range = self.objects.range(first..);
        range.take_while(move |(key, _)| key.kind == Kind::Pod && key.namespace == same.namespace).filter_map(
            |(_, resource)| match resource.as_ref() {
                Resource::Pod(pod) => Some(pod),
                _ => None,
            },
        )
    }

    /// The policy for an import: its own before one for the whole namespace, and of several the oldest, then the first by name.
    #[must_use]
    pub fn failover_policy(&self, id: &ServiceId) -> Option<&FailoverPolicy> {
        let first =
            ResourceKey { kind: Kind::FailoverPolicy, namespace: Some(id.namespace.clone()), name: String::new() };
        let same = first.clone();
        let range = self.objects.range(first..);
        let policies = range.take_while(|(key, _)| key.kind == Kind::FailoverPolicy && key.namespace == same.namespace);
        policies
            .filter_map(|(_, resource)| match resource.as_ref() {
                Resource::FailoverPolicy(policy) => Some(policy),
                _ => None,
            })
            .filter(|policy| policy.service.as_ref().is_none_or(|service| *service == id.name))
            .min_by_key(|policy| {
                (policy.service.is_none(), policy.created.is_none(), policy.created, policy.name.clone())
            })
    }

    /// The access policies of a namespace, by name.
    fn access_policies(&self, namespace: &Namespace) -> impl Iterator<Item = &AccessPolicy> {
        let first = ResourceKey { kind: Kind::AccessPolicy, namespace: Some(namespace.clone()), name: String::new() };
        let same = first.clone();
        let range = self.objects.range(first..);
        let policies =
            range.take_while(move |(key, _)| key.kind == Kind::AccessPolicy && key.namespace == same.namespace);
        policies.filter_map(|(_, resource)| match resource.as_ref() {
            Resource::AccessPolicy(policy) => Some(policy),
            _ => None,
        })
    }

    fn locality_of_node(&self, name: &str) -> Option<&Locality> {
        let key = ResourceKey { kind: Kind::Node, namespace: None, name: name.to_owned() };
        match self.objects.get(&key)?.as_ref() {
            Resource::Node(node) => Some(&node.locality),
            _ => None,
        }
    }

    fn count_namespace(&mut self, key: &ResourceKey, was: bool, is: bool) {
        let namespace = match (&key.namespace, key.kind) {
            (Some(namespace), _) => namespace.clone(),
            (None, Kind::Namespace) => match Namespace::parse(&key.name) {
                Ok(namespace) => namespace,
                Err(_) => return,
            },
            (None, _) => return,
        };
        match (was, is) {
            (false, true) => {
                let count = self.namespaces.entry(namespace).or_default();
                *count += 1;
                self.touched.namespace_set |= *count == 1;
            }
            (true, false) => {
                let Some(count) = self.namespaces.get_mut(&namespace) else { return };
                *count -= 1;
                if *count == 0 {
                    self.namespaces.remove(&namespace);
                    self.touched.namespace_set = true;
                }
            }
            _ => {}
        }
    }

    /// Keeps the secondary indexes: which slices a service has, and which services a pod is behind.
    fn relate(&mut self, key: &ResourceKey, resource: &Resource, present: bool) {
        let Resource::EndpointSlice(slice) = resource else { return };
        let Some(id) = service_of(slice) else { return };
        let slices = self.slices_of_service.entry(id.clone()).or_default();
        if present {
            slices.insert(key.clone())
        } else {
            slices.remove(key)
        };
        if slices.is_empty() {
            self.slices_of_service.remove(&id);
        }
        for pod in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.clone()) {
            let services = self.services_of_pod.entry((slice.namespace.clone(), pod.clone())).or_default();
            let count = services.entry(id.clone()).or_default();
            *count = if present { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                services.remove(&id);
            }
            if services.is_empty() {
                self.services_of_pod.remove(&(slice.namespace.clone(), pod));
            }
        }
    }

    fn touch(&mut self, resource: &Resource) {
        match resource {
            Resource::Namespace(namespace) if namespace.local_services => {
                let namespace = Some(namespace.name.clone());
                let first = ResourceKey { kind: Kind::Service, namespace, name: String::new() };
                let range = self.objects.range(first.clone()..);
                let same = range.take_while(|(key, _)| key.kind == first.kind && key.namespace == first.namespace);
                self.touched.services.extend(same.filter_map(|(_, resource)| match resource.as_ref() {
                    Resource::Service(service) => Some(service.id.clone()),
                    _ => None,
                }));
            }
            Resource::Namespace(_) => {}
            Resource::AccessPolicy(policy) => {
                self.touched.namespaces.insert(policy.namespace.clone());
            }
            Resource::FailoverPolicy(_) => self.touched.failover = true,
            Resource::Service(Service { id, .. }) | Resource::ServiceExport(ServiceExport { id, .. }) => {
                self.touched.services.insert(id.clone());
            }
            Resource::EndpointSlice(slice) => self.touched.services.extend(service_of(slice)),
            Resource::Pod(pod) => {
                let behind = self.services_of_pod.get(&(pod.namespace.clone(), pod.name.clone()));
                self.touched.services.extend(behind.into_iter().flat_map(BTreeMap::keys).cloned());
                self.touched.namespaces.insert(pod.namespace.clone());
            }
            // A node's place changes rarely, and then for every pod on it.
            Resource::Node(_) => {
                self.touched.services.extend(self.slices_of_service.keys().cloned());
                self.touched.namespaces.extend(self.namespaces.keys().cloned());
            }
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ServiceId> {
    Some(ServiceId::new(slice.namespace.clone(), slice.service.clone()?))
}
