//! Imports: one view of each service that somebody exports, in the namespaces of this cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use federation::export::IpFamily;
use federation::merge::{Import, merge};
use federation::{ClusterName, Export, ServiceId, ServiceType};
use tracing::warn;

use super::{Now, Reconciler};
use crate::conditions::{self, Publication};
use crate::local::LocalService;
use crate::publications::Answer;
use crate::resources;
use crate::snapshot::{ClusterStatus, ExportView, ExporterView, ServiceView};

impl Reconciler {
    /// Computes again what is marked.
    pub(super) fn refresh_views(&mut self, now: Now) {
        let services: BTreeSet<ServiceId> = if std::mem::take(&mut self.dirty.all) {
            self.dirty.clusters.extend(self.peers.others().cloned());
            let known = self.views.keys().chain(self.services.keys()).chain(self.exports.keys());
            known.chain(self.peers.services()).chain(self.vips.services()).cloned().collect()
        } else {
            let clusters = self.dirty.clusters.iter().flat_map(|cluster| self.peers.services_of(cluster));
            self.dirty.services.iter().chain(clusters).cloned().collect()
        };
        self.dirty.services.clear();
        if !services.is_empty() {
            self.dirty.snapshot = true;
        }
        for id in services {
            self.refresh_view(&id, now);
            self.refresh_export(&id);
        }
        if !std::mem::take(&mut self.dirty.clusters).is_empty() || self.dirty.snapshot {
            self.refresh_clusters();
        }
    }

    fn refresh_view(&mut self, id: &ServiceId, now: Now) {
        let view = self.index.has_namespace(&id.namespace).then(|| self.view(id, now)).flatten();
        let Some(view) = view else {
            self.views.remove(id);
            self.release_vips(id, now);
            return;
        };
        if view.import.service_type == ServiceType::Headless {
            self.release_vips(id, now);
        }
        if self.views.get(id).is_none_or(|before| **before != view) {
            self.views.insert(id.clone(), Arc::new(view));
        }
    }

    fn release_vips(&mut self, id: &ServiceId, now: Now) {
        self.save.local |= self.vips.release(id, now.system);
    }

    fn view(&mut self, id: &ServiceId, now: Now) -> Option<ServiceView> {
        let own = self.own_export(id);
        let own_cluster = self.facts.cluster.clone();
        let merged = {
            let others = self.peers.exports(id);
            merge(own.iter().map(|export| (&own_cluster, export)).chain(others))?
        };
        let (vips, without_vip) = self.addresses(&merged.import, now);
        let clusters = self.exporters(&merged.import);
        let policy = self.index.failover_policy(id);
        let resource = resources::service(&merged.import, &vips, &clusters, policy);
        Some(ServiceView {
            import: merged.import,
            vips,
            without_vip,
            conflicts: merged.conflicts,
            details: merged.details,
            clusters,
            resource,
        })
    }

    /// The import's clusterset IPs in the order of its families, those that are given out here.
    fn addresses(&mut self, import: &Import, now: Now) -> (Vec<IpAddr>, Option<String>) {
        if import.service_type == ServiceType::Headless {
            return (Vec::new(), None);
        }
        let families = if import.ip_families.is_empty() { &[IpFamily::IPv4][..] } else { &import.ip_families };
        let (mut addresses, mut problem) = (Vec::new(), None);
        for family in families {
            match self.vips.allocate(&import.service, *family, now.system) {
                Ok(Some(address)) => addresses.push(address),
                Ok(None) => problem = Some(format!("IP family {family:?} is not supported in this cluster")),
                Err(error) => {
                    warn!(%error, "no clusterset IP");
                    problem = Some(error.to_string());
                }
            }
        }
        self.save.local |= self.views.get(&import.service).is_none_or(|before| before.vips != addresses);
        let problem = if addresses.is_empty() { problem } else { None };
        (addresses, problem)
    }

    /// Who exports it: this cluster first, then the others by name.
    fn exporters(&self, import: &Import) -> Vec<ExporterView> {
        let own = self.services.get(&import.service).filter(|_| import.clusters.contains(&self.facts.cluster));
        let own = own.map(|service| self.own_exporter(import, service));
        let others = self.peers.exports(&import.service).filter(|(cluster, _)| import.clusters.contains(*cluster));
        own.into_iter().chain(others.map(|(cluster, export)| self.exporter(import, cluster, export))).collect()
    }

    fn own_exporter(&self, import: &Import, service: &LocalService) -> ExporterView {
        let accounts = service.service_accounts();
        ExporterView {
            cluster: self.facts.cluster.clone(),
            local: true,
            trust_domain: self.facts.trust_domain.clone(),
            identities: identities(&self.facts.trust_domain, &import.service, accounts.iter()),
            ports: ports(import, &self.facts.cluster),
            zones: service.zones(),
            gateways: Vec::new(),
            endpoints: service.endpoints.clone(),
            headless: service.slices.values().flatten().cloned().collect(),
            suspect: false,
            trusted: true,
            round_trip: None,
        }
    }

    fn exporter(&self, import: &Import, cluster: &ClusterName, export: &Export) -> ExporterView {
        let trust_domain = self.facts.federation.trust_domain(cluster);
        let headless = import.service_type == ServiceType::Headless;
        ExporterView {
            identities: identities(&trust_domain, &import.service, export.service_accounts.iter()),
            ports: ports(import, cluster),
            zones: export.zones.clone(),
            gateways: self.peers.gateways(cluster).to_vec(),
            endpoints: Vec::new(),
            headless: if headless { self.peers.headless(cluster, &import.service) } else { Vec::new() },
            suspect: self.peers.suspect(cluster),
            trusted: self.peers.trust().bundle(cluster).is_some(),
            round_trip: self.round_trips.get(cluster).copied(),
            cluster: cluster.clone(),
            local: false,
            trust_domain,
        }
    }

    fn refresh_export(&mut self, id: &ServiceId) {
        let asked = self.services.get(id).filter(|service| service.export.is_some()).cloned();
        let Some(service) = asked else {
            self.exports.remove(id);
            return;
        };
        let view = self.export_view(&service);
        if self.exports.get(id).is_none_or(|before| **before != view) {
            self.exports.insert(id.clone(), Arc::new(view));
        }
    }

    fn export_view(&self, service: &LocalService) -> ExportView {
        let id = &service.id;
        let publication = match &self.publications {
            None => Publication::NotJoined,
            Some(publications) => {
                let key = federation::RecordKey::Export(id.clone());
                Publication::Answered(publications.answered(&key).unwrap_or(&Answer::Pending))
            }
        };
        let view = self.views.get(id);
        let conflicts: Vec<_> = view.into_iter().flat_map(|view| view.conflicts.iter().copied()).collect();
        let details = view.map(|view| view.details.as_slice()).unwrap_or_default();
        let export = service.export.as_ref();
        let first_seen = self.first_seen.get(id).copied();
        ExportView {
            labels: export.map(|export| export.labels.clone()).unwrap_or_default(),
            annotations: export.map(|export| export.annotations.clone()).unwrap_or_default(),
            created: export.and_then(|export| export.created).or(first_seen).unwrap_or(std::time::UNIX_EPOCH),
            conditions: conditions::of_export(service, publication, &conflicts, details),
            zones: service.zones(),
            endpoints: service.endpoints.len(),
            ready: service.endpoints.iter().filter(|endpoint| endpoint.ready).count(),
            without_sidecar: service.without_sidecar,
            service_accounts: service.service_accounts().into_iter().collect(),
        }
    }

    fn refresh_clusters(&mut self) {
        let status = |cluster: &ClusterName| {
            let trust = self.peers.trust();
            ClusterStatus {
                liveness: self.peers.liveness(cluster),
                quarantined: trust.deny_list().quarantines(cluster),
                generation: trust.member(cluster).map_or(0, federation_api::verify::VerifiedMember::generation),
                bundle: trust.bundle(cluster).is_some(),
                delegation: trust.member(cluster).map(|member| member.delegation().clone()),
                exports: self.peers.services_of(cluster).count(),
                gateways: self.peers.gateways(cluster).to_vec(),
                last_applied: self.peers.last_applied(cluster),
                alarms: self.peers.alarms(cluster).cloned().collect(),
            }
        };
        self.clusters = self.peers.others().map(|cluster| (cluster.clone(), status(cluster))).collect();
    }
}

/// The SPIFFE IDs that may answer for the service in a trust domain. The names come apart, so that no identity of another
/// trust domain or namespace can be written down.
fn identities<'a>(trust_domain: &str, service: &ServiceId, accounts: impl Iterator<Item = &'a String>) -> Vec<String> {
    accounts.filter_map(|account| resources::identity(trust_domain, service.namespace.as_str(), account)).collect()
}

fn ports(import: &Import, cluster: &ClusterName) -> Vec<u16> {
    import.ports.iter().filter(|port| port.clusters.contains(cluster)).map(|port| port.port.port).collect()
}
