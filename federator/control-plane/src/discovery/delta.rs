//! What one proxy has been sent, and what the newest snapshot adds to that. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use federation::MeshHost;
use federation_api::discovery::v1::{KnownResource, Resource, Subscribe};

use crate::proxies::Kind;
use crate::resources;
use crate::snapshot::Snapshot;

/// Hosts and addresses that one sidecar may ask for, and resources it may hold.
pub(super) const MAX_SUBSCRIPTIONS: usize = 20_000;

/// Whom the proxy serves.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) addresses: Vec<IpAddr>,
    /// The cluster's own trust domain: a gateway needs no other.
    pub(super) trust_domain: String,
}

/// One proxy's subscriptions, and the versions it has.
#[derive(Debug)]
pub(super) struct ProxyState {
    subject: Subject,
    hosts: BTreeSet<String>,
    /// Asked for by address, and of no service yet.
    addresses: BTreeSet<IpAddr>,
    sent: BTreeMap<String, Vec<u8>>,
}

/// What to send.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Delta {
    pub(super) resources: Vec<Resource>,
    pub(super) removed: Vec<String>,
}

/// More was asked for than one proxy may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl ProxyState {
    pub(super) fn new(subject: Subject, known: Vec<KnownResource>) -> Result<Self, TooMany> {
        if known.len() > MAX_SUBSCRIPTIONS {
            return Err(TooMany);
        }
        let sent = known.into_iter().map(|known| (known.name, known.version)).collect();
        Ok(Self { subject, hosts: BTreeSet::new(), addresses: BTreeSet::new(), sent })
    }

    /// Changes what the proxy asks for. Texts that are no host or address are as good as absent.
    pub(super) fn subscribe(&mut self, subscribe: Subscribe) -> Result<(), TooMany> {
        let canonical = |host: &str| host.parse::<MeshHost>().map(|host| host.to_string());
        for host in &subscribe.remove_hosts {
            self.hosts.remove(host);
            self.hosts.remove(&canonical(host).unwrap_or_default());
        }
        self.hosts.extend(subscribe.add_hosts.into_iter().map(|host| canonical(&host).unwrap_or(host)));
        self.addresses.extend(subscribe.add_addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
        if self.hosts.len() + self.addresses.len() > MAX_SUBSCRIPTIONS { Err(TooMany) } else { Ok(()) }
    }

    /// What the proxy lacks of the snapshot; from here on it counts as sent. Before the snapshot is whole nothing is said
    /// to be gone or absent.
    pub(super) fn delta(&mut self, snapshot: &Snapshot) -> Delta {
        self.resolve_addresses(snapshot);
        let mut delta = Delta::default();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for resource in self.wanted(snapshot) {
            if self.sent.get(&resource.name) != Some(&resource.version) {
                self.sent.insert(resource.name.clone(), resource.version.clone());
                delta.resources.push(resource.as_ref().clone());
            }
            wanted.insert(resource.name.clone());
        }
        if snapshot.synced {
            delta.removed = self.sent.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
            self.sent.retain(|name, _| wanted.contains(name));
        }
        delta
    }

    fn resolve_addresses(&mut self, snapshot: &Snapshot) {
        let host = |address: &IpAddr| match snapshot.by_vip.get(address) {
            Some(host) => Some(host.to_string()),
            None => snapshot.by_cluster_ip.get(address).map(|service| service.local_host().to_string()),
        };
        self.addresses.retain(|address| match host(address) {
            Some(host) => {
                self.hosts.insert(host);
                false
            }
            None => true,
        });
    }

    fn wanted(&self, snapshot: &Snapshot) -> Vec<Arc<Resource>> {
        let mut wanted = vec![Arc::clone(&snapshot.mesh)];
        match self.subject.kind {
            Kind::Gateway => {
                wanted.extend(snapshot.trust.get(&self.subject.trust_domain).cloned());
                wanted.extend(snapshot.routes.values().cloned());
                wanted.extend(snapshot.remotes.values().cloned());
            }
            Kind::Sidecar => {
                wanted.extend(snapshot.trust.values().cloned());
                wanted.push(Arc::new(self.workload(snapshot)));
                wanted.extend(snapshot.local_addresses.clone());
                wanted.extend(self.hosts.iter().filter_map(|host| service(snapshot, host)));
            }
        }
        wanted
    }

    fn workload(&self, snapshot: &Snapshot) -> Resource {
        let Subject { namespace, service_account, addresses, .. } = &self.subject;
        let workloads = snapshot.workloads.get(namespace.as_str());
        let found = workloads.and_then(|workloads| workloads.find(addresses, service_account));
        let policies = workloads.into_iter().flat_map(|workloads| workloads.policies(service_account));
        resources::workload(namespace, service_account, found, policies)
    }
}

fn service(snapshot: &Snapshot, host: &str) -> Option<Arc<Resource>> {
    let found = host.parse().ok().and_then(|host| match host {
        MeshHost::ClusterSet(host) => {
            let view = snapshot.services.get(host.service())?;
            if host.endpoint().is_some() { view.endpoints.get(&host) } else { Some(&view.resource) }
        }
        MeshHost::Local(service) => snapshot.local_services.get(&service),
    });
    match found {
        Some(resource) => Some(Arc::clone(resource)),
        None => snapshot.synced.then(|| Arc::new(resources::absent(host))),
    }
}
