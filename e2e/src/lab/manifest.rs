//! Manifests as a cluster's API server and controllers hold them: exactly the Kubernetes kinds.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::{ClusterDescription, NAMESPACE, ServiceDescription};

/// A pod's facts that manifests name.
#[derive(Debug, Clone)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its service account.
    pub service_account: String,
}

/// Namespace and nodes.
#[must_use]
pub fn cluster(description: &ClusterDescription) -> String {
    let ClusterDescription { name, region, zone, .. } = description;
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}-node\n  labels:\n    \
         topology.kubernetes.io/region: {region}\n    topology.kubernetes.io/zone: {zone}\n"
    )
}

/// A service with its service account.
#[must_use]
pub fn service(service: &ServiceDescription) -> String {
    let ServiceDescription { name, port, target_port, port_name, .. } = service;
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
         type: ClusterIP\n  selector: {{app: {name}}}\n  ports:\n  - name: {port_name}\n    port: {port}\n    \
         targetPort: {target_port}\n"
    )
}

/// A running pod with a sidecar.
#[must_use]
pub fn pod(cluster: &ClusterDescription, pod: &PodFacts, app: &str) -> String {
    let PodFacts { name, address, service_account } = pod;
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  labels: {{app: {app}}}\n  \
         annotations:\n    isthmus.dev/sidecar: \"true\"\nspec:\n  nodeName: {node}-node\n  \
         serviceAccountName: {service_account}\n  containers:\n  - name: server\n    image: shop\nstatus:\n  \
         phase: Running\n  podIP: {address}\n  podIPs: [{{ip: {address}}}]\n",
        node = cluster.name,
    )
}

/// The slice that the EndpointSlice controller keeps for a service; each pod with its readiness.
#[must_use]
pub fn endpoint_slice(cluster: &ClusterDescription, service: &ServiceDescription, pods: &[(PodFacts, bool)]) -> String {
    let name = service.name;
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-x7k2p\n  \
         namespace: {NAMESPACE}\n  labels:\n    kubernetes.io/service-name: {name}\n    \
         endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io\naddressType: IPv4\nports:\n\
         - name: {port_name}\n  port: {port}\n  protocol: TCP\nendpoints:\n",
        port_name = service.port_name,
        port = service.target_port,
    );
    if pods.is_empty() {
        text = text.replace("endpoints:\n", "endpoints: []\n");
    }
    for (pod, ready) in pods {
        let _ = write!(
            text,
            "- addresses: [{address}]\n  conditions: {{ready: {ready}, serving: {ready}, terminating: false}}\n  \
             nodeName: {node}-node\n  zone: {zone}\n  targetRef: {{kind: Pod, name: {name}, namespace: {NAMESPACE}}}\n",
            address = pod.address,
            node = cluster.name,
            zone = cluster.zone,
            name = pod.name,
        );
    }
    text
}
