//! Imports: one view of each service that somebody exports, in the namespaces of this cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use federation::export::IpFamily;
use federation::merge::{Import, merge};
use federation::{ClusterName, Export, HeadlessEndpoint, ServiceHost, ServiceId, ServiceType};
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
            self.keep_vips(id, &BTreeSet::new(), now);
            return;
        };
        self.keep_vips(id, &view.addressed(), now);
        if self.views.get(id).is_none_or(|before| **before != view) {
            self.views.insert(id.clone(), Arc::new(view));
        }
    }

    fn keep_vips(&mut self, id: &ServiceId, hosts: &BTreeSet<ServiceHost>, now: Now) {
        self.save.local |= self.vips.keep_only(id, hosts, now.system);
    }

    fn view(&mut self, id: &ServiceId, now: Now) -> Option<ServiceView> {
        let own = self.own_export(id);
        let own_cluster = self.facts.cluster.clone();
        let merged = {
            let others = self.peers.exports(id);
            merge(own.iter().map(|export| (&own_cluster, export)).chain(others))?
        };
        let (vips, mut without_vip) = match merged.import.service_type {
            ServiceType::ClusterSetIP => self.addresses(&id.host(), &merged.import, now),
            ServiceType::Headless => Default::default(),
        };
        let mut clusters = self.exporters(&merged.import);
        for exporter in clusters.iter_mut().filter(|exporter| !exporter.local) {
            let (stand_ins, problem) = self.stand_ins(&merged.import, exporter, now);
            exporter.headless = stand_ins;
            without_vip = without_vip.or(problem);
        }
        let endpoints = resources::endpoints(&merged.import, &clusters);
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
            endpoints,
        })
    }

    /// Another cluster's endpoints of a headless service as they are called from here: each by its label, and in place of its
    /// own addresses, which mean nothing here, by stable ones of this cluster's; and why one has none.
    fn stand_ins(
        &mut self,
        import: &Import,
        exporter: &ExporterView,
        now: Now,
    ) -> (Vec<HeadlessEndpoint>, Option<String>) {
        let mut by_host: BTreeMap<_, HeadlessEndpoint> = BTreeMap::new();
        for endpoint in &exporter.headless {
            let Some(label) = endpoint.label() else { continue };
            let host = match import.service.endpoint_host(exporter.cluster.clone(), label.clone()) {
                Ok(host) => host,
                Err(error) => {
                    warn!(service = %import.service, cluster = %exporter.cluster, %error, "an endpoint cannot be called by its name");
                    continue;
                }
            };
            let hostname = Some(label);
            let new = || HeadlessEndpoint { hostname, ready: false, ..endpoint.clone() };
            by_host.entry(host).or_insert_with(new).ready |= endpoint.ready;
        }
        let mut without_address = None;
        let stand_in = |(host, endpoint): (ServiceHost, HeadlessEndpoint)| {
            let (addresses, problem) = self.addresses(&host, import, now);
            without_address = without_address.take().or(problem);
            HeadlessEndpoint { addresses, ..endpoint }
        };
        let endpoints = by_host.into_iter().map(stand_in).collect();
        (endpoints, without_address)
    }

    /// A host's addresses in the order of the import's families, those that are given out here; and why it has none.
    fn addresses(&mut self, host: &ServiceHost, import: &Import, now: Now) -> (Vec<IpAddr>, Option<String>) {
        let families = if import.ip_families.is_empty() { &[IpFamily::IPv4][..] } else { &import.ip_families };
        let (mut addresses, mut problem) = (Vec::new(), None);
        for family in families {
            let known = self.vips.address(host, *family).is_some();
            match self.vips.allocate(host, *family, now.system) {
                Ok(Some(address)) => {
                    self.save.local |= !known;
                    addresses.push(address);
                }
                Ok(None) => problem = Some(format!("IP family {family:?} is not supported in this cluster")),
                Err(error) => {
                    warn!(%error, "no clusterset IP");
                    problem = Some(error.to_string());
                }
            }
        }
        let problem = problem.filter(|_| addresses.is_empty());
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
            identities: resources::identities(&self.facts.trust_domain, &import.service, accounts.iter()),
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
            identities: resources::identities(&trust_domain, &import.service, export.service_accounts.iter()),
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

fn ports(import: &Import, cluster: &ClusterName) -> Vec<u16> {
    import.ports.iter().filter(|port| port.clusters.contains(cluster)).map(|port| port.port.port).collect()
}
