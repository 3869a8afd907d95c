//! What each workload of a namespace answers, found by its address.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use federation::{Locality, MeshHost, Namespace, Port};
use federation_resources::pruned::AccessPolicy;

use super::{LocalIndex, LocalService};

/// The workloads of a namespace that have a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceWorkloads {
    by_address: HashMap<IpAddr, Vec<LocalWorkload>>,
    policies: Vec<AccessPolicy>,
}

/// A pod with a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalWorkload {
    /// `<cluster>/<namespace>/<pod>`
    pub id: String,
    /// Who it is.
    pub service_account: String,
    /// Where it is.
    pub locality: Locality,
    /// What it answers, by service and port.
    pub bindings: Vec<Binding>,
}

/// A port of an exported service, or of a local one, that a workload answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The service, and by which grant it is answered.
    pub host: MeshHost,
    /// Its port.
    pub port: Port,
    /// Where the application listens.
    pub target: u16,
}

impl NamespaceWorkloads {
    pub(super) fn compute<'a>(
        index: &'a LocalIndex,
        namespace: &Namespace,
        services: impl Iterator<Item = &'a LocalService>,
    ) -> Self {
        let mut workloads: BTreeMap<String, (Vec<IpAddr>, LocalWorkload)> = BTreeMap::new();
        for pod in index.pods(namespace).filter(|pod| pod.sidecar) {
            let node = pod.node.as_deref().and_then(|node| index.locality_of_node(node));
            let workload = LocalWorkload {
                id: index.endpoint_id(namespace, &pod.name),
                service_account: pod.service_account.clone(),
                locality: node.cloned().unwrap_or_default(),
                bindings: Vec::new(),
            };
            workloads.insert(pod.name.clone(), (pod.addresses.clone(), workload));
        }
        for service in services {
            let exported = service.is_exported().then(|| service.id.host());
            let local = service.local.then(|| service.id.local_host());
            let ports = service.service.as_ref().map(|service| service.ports.as_slice()).unwrap_or_default();
            for endpoint in &service.endpoints {
                let Some((addresses, workload)) = workloads.get_mut(&endpoint.pod) else { continue };
                addresses.extend(endpoint.addresses.iter().copied());
                workload.locality = endpoint.locality.clone();
                let own = exported.iter().flat_map(|_| endpoint.hosts(&service.id, &index.cluster));
                let hosts = exported.iter().cloned().chain(own).map(MeshHost::from).chain(local.clone());
                for host in hosts {
                    workload.bindings.extend(ports.iter().filter_map(|port| {
                        let target = LocalService::target(endpoint, port)?;
                        Some(Binding { host: host.clone(), port: port.clone(), target })
                    }));
                }
            }
        }
        let mut by_address: HashMap<IpAddr, Vec<LocalWorkload>> = HashMap::new();
        for (_, (mut addresses, workload)) in workloads {
            addresses.sort_unstable();
            addresses.dedup();
            for address in addresses {
                by_address.entry(address).or_default().push(workload.clone());
            }
        }
        Self { by_address, policies: index.access_policies(namespace).cloned().collect() }
    }

    /// The access policies that protect workloads of a service account.
    pub fn policies<'a>(&'a self, service_account: &'a str) -> impl Iterator<Item = &'a AccessPolicy> {
        self.policies.iter().filter(move |policy| {
            let accounts = &policy.spec.service_accounts;
            accounts.is_empty() || accounts.iter().any(|account| account == service_account)
        })
    }

    /// The workload of that service account at one of the addresses.
    #[must_use]
    pub fn find(&self, addresses: &[IpAddr], service_account: &str) -> Option<&LocalWorkload> {
        let at = addresses.iter().filter_map(|address| self.by_address.get(address)).flatten();
        at.into_iter().find(|workload| workload.service_account == service_account)
    }
}
