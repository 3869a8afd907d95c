//! The cluster's own services: computed again where touched, and turned into the records it wants to say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use federation::{Export, Namespace, RecordKey, ServiceId, ServiceName};
use federation_api::payload::{Payload, Slice};

use super::{Now, Reconciler};
use crate::local::LocalService;
use crate::resources;

/// No name of a service sorts before it.
const FIRST_NAME: &str = "0";

impl Reconciler {
    /// Computes touched services again. What depends on them is marked.
    pub(super) fn refresh_local(&mut self, now: Now) {
        let touched = self.index.take_touched();
        if touched.namespace_set {
            self.namespaces = Arc::new(self.index.namespaces());
            self.dirty.all = true;
            self.workloads.retain(|namespace, _| self.namespaces.contains(namespace));
        }
        self.dirty.all |= touched.failover;
        let mut namespaces = touched.namespaces;
        for id in touched.services {
            let new = self.index.service(&id).map(Arc::new);
            if self.services.get(&id) == new.as_ref() {
                continue;
            }
            namespaces.insert(id.namespace.clone());
            match new {
                Some(service) => self.services.insert(id.clone(), service),
                None => self.services.remove(&id),
            };
            self.refresh_service(&id, now);
            self.dirty.services.insert(id);
        }
        self.poll_capacity(now);
        for namespace in namespaces {
            if !self.namespaces.contains(&namespace) {
                continue;
            }
            // Of the services that have an endpoint here: most of a large namespace have none with a sidecar.
            let services = services_in(&self.services, &namespace).filter(|service| !service.endpoints.is_empty());
            let workloads = Arc::new(self.index.workloads(&namespace, services));
            self.workloads.insert(namespace, workloads);
            self.dirty.snapshot = true;
        }
    }

    fn refresh_service(&mut self, id: &ServiceId, now: Now) {
        let service = self.services.get(id).cloned();
        let exported = service.as_ref().filter(|service| service.is_exported());
        match exported {
            Some(service) => {
                let told = self.told.entry(id.clone()).or_default();
                if let Some(zones) = told.reporter.observe(now.instant, service.zones()) {
                    told.zones = zones;
                }
            }
            None => {
                self.told.remove(id);
            }
        }
        if service.as_ref().is_some_and(|service| service.export.is_some()) {
            if !self.first_seen.contains_key(id) {
                self.first_seen.insert(id.clone(), whole_seconds(now.system));
                self.save.local = true;
            }
        } else if self.first_seen.remove(id).is_some() {
            self.save.local = true;
        }
        self.refresh_routes(id, service.as_deref());
        let local = service.as_ref();
        let local = local.and_then(|it| resources::local_service(it, &self.facts.cluster, &self.facts.trust_domain));
        match local {
            Some(local) => self.local_services.insert(id.clone(), local),
            None => self.local_services.remove(id),
        };
        self.refresh_records(id);
    }

    /// Where gateways lead the service's connections, and those of its endpoints.
    fn refresh_routes(&mut self, id: &ServiceId, service: Option<&LocalService>) {
        let known = self.routes.range(id.host()..).map(|(host, _)| host).take_while(|host| host.service() == id);
        for host in known.cloned().collect::<Vec<_>>() {
            self.routes.remove(&host);
        }
        let routes = service.map(|it| resources::routes(it, &self.facts.cluster, &self.facts.trust_domain));
        self.routes.extend(routes.into_iter().flatten());
    }

    /// Steps of capacity that were held back and are due now.
    fn poll_capacity(&mut self, now: Now) {
        let mut due = Vec::new();
        for (id, told) in &mut self.told {
            if let Some(zones) = told.reporter.poll(now.instant) {
                told.zones = zones;
                due.push(id.clone());
            }
        }
        for id in due {
            self.refresh_records(&id);
            self.dirty.services.insert(id);
        }
    }

    /// Every service's records again: what the cluster may claim has changed.
    pub(super) fn refresh_all_records(&mut self) {
        for id in self.told.keys().cloned().collect::<Vec<_>>() {
            self.refresh_records(&id);
        }
    }

    /// The records that the service wants: its export, and a headless one's slices. A change that moves none of them, as
    /// most changes of endpoints, costs nothing beyond its own service.
    fn refresh_records(&mut self, id: &ServiceId) {
        let mut wanted = BTreeMap::new();
        if let Some(export) = self.own_export(id) {
            wanted.insert(RecordKey::Export(id.clone()), Payload::Export(Box::new(export)));
            let slices = self.services.get(id).into_iter().flat_map(|service| &service.slices);
            wanted.extend(slices.map(|(name, endpoints)| {
                let slice = Slice { service: id.clone(), name: name.clone(), endpoints: endpoints.clone() };
                (RecordKey::Slice(id.clone(), name.clone()), Payload::Slice(slice))
            }));
        }
        let first_slice = RecordKey::Slice(id.clone(), String::new());
        let slices = self.wanted.range(first_slice..).map(|(key, _)| key);
        let slices = slices.take_while(|key| matches!(key, RecordKey::Slice(service, _) if service == id));
        let export = std::iter::once(RecordKey::Export(id.clone()));
        let gone: Vec<_> = export.chain(slices.cloned()).filter(|key| !wanted.contains_key(key)).collect();
        for key in gone {
            self.dirty.records |= self.wanted.remove(&key).is_some();
        }
        for (key, payload) in wanted {
            if self.wanted.get(&key) != Some(&payload) {
                self.wanted.insert(key, payload);
                self.dirty.records = true;
            }
        }
    }

    /// The export as it is published, with the capacity that was last told, and held to what others hold it to: every
    /// cluster must find the same one to be the oldest. Outside of the delegation it stays as it is, for the federator to
    /// refuse.
    pub(super) fn own_export(&self, id: &ServiceId) -> Option<Export> {
        let created = self.first_seen.get(id).copied().unwrap_or(UNIX_EPOCH);
        let export = self.services.get(id)?.as_export(created, self.told.get(id)?.zones.clone())?;
        match &self.delegation {
            Some(delegation) => Some(delegation.clamp_export(export.clone()).unwrap_or(export)),
            None => Some(export),
        }
    }
}

/// The services of a namespace, without a look at those of others.
fn services_in<'a>(
    services: &'a BTreeMap<ServiceId, Arc<LocalService>>,
    namespace: &'a Namespace,
) -> impl Iterator<Item = &'a LocalService> {
    let first = ServiceName::parse(FIRST_NAME).map(|name| ServiceId::new(namespace.clone(), name));
    let range = first.into_iter().flat_map(|first| services.range(first..));
    range.take_while(|(id, _)| id.namespace == *namespace).map(|(_, service)| service.as_ref())
}

/// The API's creation times have whole seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
