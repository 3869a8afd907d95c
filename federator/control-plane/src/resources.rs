//! Discovery resources: what proxies are told, made of what the cluster knows.
//!
//! A version is the hash of the content, so that equal content has one version on every replica and after any restart.

mod failover;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use federation::merge::Import;
use federation::{ClusterName, Gateway, HostLabel, Locality, ServiceHost, ServiceId, ServiceType, ZoneCapacity};
use federation_api::discovery::v1::access_policy::Action;
use federation_api::discovery::v1::{
    self as wire, Absent, AccessPolicy, AccessRule, Binding, Cluster, Endpoint, LocalServices, Mesh, Remote, Resource,
    Route, Service, TrustBundle, Workload, resource::Resource as Content,
};
use federation_api::record::v1 as record;
use federation_resources::{isthmus, pruned};
use prost::Message as _;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};

use crate::local::{LocalEndpoint, LocalService, LocalWorkload};
use crate::snapshot::ExporterView;

/// Where a sidecar takes mesh connections.
pub const MESH_PORT: u32 = 15008;

/// Bytes of a version.
const VERSION_BYTES: usize = 16;

/// `mesh`'s ages move in steps: proxies need not hear of every heartbeat.
pub const AGE_STEP: Duration = Duration::from_secs(10);

fn resource(name: String, content: Content) -> Resource {
    let mut resource = Resource { name, version: Vec::new(), resource: Some(content) };
    let hash = digest(&SHA256, &resource.encode_to_vec());
    resource.version = hash.as_ref()[..VERSION_BYTES].to_vec();
    resource
}

/// `service/<host>`
#[must_use]
pub fn service_name(service: &ServiceId) -> String {
    format!("service/{}", service.host())
}

/// `route/<host>`
#[must_use]
pub fn route_name(host: &ServiceHost) -> String {
    format!("route/{host}")
}

/// A host that was asked for by name and is not there.
#[must_use]
pub fn absent(host: &str) -> Resource {
    resource(format!("service/{host}"), Content::Absent(Absent {}))
}

/// A service for the sidecars of its callers. Clusters whose roots are not known are left out: they cannot be called.
#[must_use]
pub fn service(
    import: &Import,
    vips: &[IpAddr],
    clusters: &[ExporterView],
    policy: Option<&pruned::FailoverPolicy>,
) -> Arc<Resource> {
    let content = Service {
        namespace: import.service.namespace.to_string(),
        name: import.service.name.to_string(),
        host: import.service.host().to_string(),
        vips: vips.iter().map(ToString::to_string).collect(),
        ports: import.ports.iter().map(|port| (&port.port).into()).collect(),
        r#type: record::ServiceType::from(import.service_type).into(),
        client_ip_affinity_seconds: import
            .client_ip_affinity
            .map_or(0, |affinity| u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX)),
        clusters: clusters.iter().filter(|cluster| cluster.trusted).map(|it| cluster(import, it)).collect(),
        failover: policy.map(failover::policy),
    };
    Arc::new(resource(service_name(&import.service), Content::Service(content)))
}

fn cluster(import: &Import, view: &ExporterView) -> Cluster {
    let headless = import.service_type == ServiceType::Headless;
    let micros = view.round_trip.map_or(0, |time| u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1));
    Cluster {
        cluster: view.cluster.to_string(),
        identities: view.identities.clone(),
        trust_domain: view.trust_domain.clone(),
        ports: view.ports.iter().copied().map(u32::from).collect(),
        zones: view.zones.iter().map(Into::into).collect(),
        gateways: view.gateways.iter().map(Into::into).collect(),
        endpoints: view
            .endpoints
            .iter()
            .map(|it| endpoint(it, &view.trust_domain, import.service.namespace.as_str()))
            .collect(),
        suspect: view.suspect,
        headless: if headless { view.headless.iter().map(Into::into).collect() } else { Vec::new() },
        round_trip_us: micros,
    }
}

/// Each endpoint of a headless service, for the sidecars of those who call it by its own name: a service of its own, in one
/// cluster. That of another cluster has its stand-in's addresses; the own cluster's is dialled where it is.
#[must_use]
pub fn endpoints(import: &Import, clusters: &[ExporterView]) -> BTreeMap<ServiceHost, Arc<Resource>> {
    if import.service_type != ServiceType::Headless {
        return BTreeMap::new();
    }
    let mut endpoints = BTreeMap::new();
    for view in clusters.iter().filter(|view| view.trusted) {
        let host = |label: &HostLabel| import.service.endpoint_host(view.cluster.clone(), label.clone()).ok();
        let nobody = ExporterView {
            identities: Vec::new(),
            zones: Vec::new(),
            endpoints: Vec::new(),
            headless: Vec::new(),
            ..view.clone()
        };
        for (label, same) in by_label(&view.endpoints) {
            let Some(host) = host(label) else { continue };
            let accounts = same.iter().map(|it| &it.service_account);
            let identities = identities(&view.trust_domain, &import.service, accounts);
            let only = ExporterView { endpoints: same.into_iter().cloned().collect(), identities, ..nobody.clone() };
            let resource = one(import, &host, &[], &only);
            endpoints.insert(host, resource);
        }
        for endpoint in view.headless.iter().filter(|_| !view.local) {
            let Some(host) = endpoint.label().and_then(|label| host(&label)) else { continue };
            let identities = identities(&view.trust_domain, &import.service, [&endpoint.service_account]);
            let zones = vec![capacity_of_one(&endpoint.locality, endpoint.ready)];
            let only = ExporterView { zones, identities, ..nobody.clone() };
            let resource = one(import, &host, &endpoint.addresses, &only);
            endpoints.insert(host, resource);
        }
    }
    endpoints
}

/// The own endpoints of a headless service by what they are called.
fn by_label(endpoints: &[LocalEndpoint]) -> BTreeMap<&HostLabel, Vec<&LocalEndpoint>> {
    let mut by_label: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (label, endpoint) in endpoints.iter().flat_map(|it| it.labels.iter().map(move |label| (label, it))) {
        by_label.entry(label).or_default().push(endpoint);
    }
    by_label
}

fn capacity_of_one(locality: &Locality, ready: bool) -> ZoneCapacity {
    ZoneCapacity { locality: locality.clone(), total: 1, ready: ready.into() }
}

/// One endpoint as a service.
fn one(import: &Import, host: &ServiceHost, addresses: &[IpAddr], only: &ExporterView) -> Arc<Resource> {
    let content = Service {
        namespace: import.service.namespace.to_string(),
        name: import.service.name.to_string(),
        host: host.to_string(),
        vips: addresses.iter().map(ToString::to_string).collect(),
        ports: import.ports.iter().map(|port| (&port.port).into()).collect(),
        r#type: record::ServiceType::ClusterSetIp.into(),
        clusters: vec![cluster(import, only)],
        ..Service::default()
    };
    Arc::new(resource(format!("service/{host}"), Content::Service(content)))
}

/// The SPIFFE IDs that may answer for the service in a trust domain. The names come apart, so that no identity of another
/// trust domain or namespace can be written down.
pub(crate) fn identities<'a>(
    trust_domain: &str,
    service: &ServiceId,
    accounts: impl IntoIterator<Item = &'a String>,
) -> Vec<String> {
    let all: std::collections::BTreeSet<String> = accounts
        .into_iter()
        .filter_map(|account| identity(trust_domain, service.namespace.as_str(), account))
        .collect();
    all.into_iter().collect()
}

/// One of the cluster's own services, as it is, for the sidecars of its callers; `None` unless its namespace has opted in.
#[must_use]
pub fn local_service(local: &LocalService, cluster: &ClusterName, trust_domain: &str) -> Option<Arc<Resource>> {
    let service = local.service.as_ref().filter(|_| local.local)?;
    let namespace = local.id.namespace.as_str();
    let accounts = local.service_accounts();
    let with_sidecar = local.endpoints.iter().map(|it| endpoint(it, trust_domain, namespace));
    let host = local.id.local_host().to_string();
    let name = format!("service/{host}");
    let own = Cluster {
        cluster: cluster.to_string(),
        identities: accounts.iter().filter_map(|account| identity(trust_domain, namespace, account)).collect(),
        trust_domain: trust_domain.to_owned(),
        ports: service.ports.iter().map(|port| port.port.into()).collect(),
        endpoints: with_sidecar.chain(local.plain.iter().map(|it| plain_endpoint(it, &service.ports))).collect(),
        ..Cluster::default()
    };
    let affinity = service.client_ip_affinity.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let content = Service {
        namespace: namespace.to_owned(),
        name: local.id.name.to_string(),
        host,
        vips: service.addresses.iter().map(ToString::to_string).collect(),
        ports: service.ports.iter().map(Into::into).collect(),
        r#type: record::ServiceType::ClusterSetIp.into(),
        client_ip_affinity_seconds: affinity,
        clusters: vec![own],
        failover: None,
    };
    Some(Arc::new(resource(name, Content::Service(content))))
}

/// An endpoint without a sidecar: its application is called as it is.
fn plain_endpoint(endpoint: &LocalEndpoint, ports: &[federation::Port]) -> Endpoint {
    let target = |port: &federation::Port| Some((port.port.into(), LocalService::target(endpoint, port)?.into()));
    let tcp = ports.iter().filter(|port| port.protocol == federation::Protocol::Tcp);
    Endpoint {
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        locality: Some((&endpoint.locality).into()),
        ready: endpoint.ready,
        targets: tcp.filter_map(target).collect(),
        ..Endpoint::default()
    }
}

/// `local-services`; `None` where nobody has opted in.
#[must_use]
pub fn local_services<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> Option<Arc<Resource>> {
    let sorted: std::collections::BTreeSet<&IpAddr> = addresses.collect();
    let addresses: Vec<String> = sorted.into_iter().map(ToString::to_string).collect();
    let content = Content::LocalServices(LocalServices { addresses });
    let resource = |content| Arc::new(resource("local-services".to_owned(), content));
    Some(content).filter(|it| *it != Content::LocalServices(LocalServices::default())).map(resource)
}

fn endpoint(endpoint: &LocalEndpoint, trust_domain: &str, namespace: &str) -> Endpoint {
    Endpoint {
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        mesh_port: MESH_PORT,
        locality: Some((&endpoint.locality).into()),
        ready: endpoint.ready,
        identity: identity(trust_domain, namespace, &endpoint.service_account).unwrap_or_default(),
        weight: endpoint.weight,
        ..Endpoint::default()
    }
}

/// A workload's SPIFFE ID, if the names make one.
#[must_use]
pub fn identity(trust_domain: &str, namespace: &str, service_account: &str) -> Option<String> {
    let trust_domain: TrustDomain = trust_domain.parse().ok()?;
    SpiffeId::workload(&trust_domain, namespace, service_account).ok().map(|id| id.to_string())
}

/// An exported service for this cluster's gateways, and each endpoint of a headless one; none when it is not exported.
#[must_use]
pub fn routes(local: &LocalService, own: &ClusterName, trust_domain: &str) -> BTreeMap<ServiceHost, Arc<Resource>> {
    let Ok(Some((service, _))) = local.exported() else { return BTreeMap::new() };
    let each = by_label(&local.endpoints).into_iter();
    let host = |label: &HostLabel| local.id.endpoint_host(own.clone(), label.clone()).ok();
    let each = each.filter_map(|(label, same)| Some((host(label)?, same)));
    let hosts = std::iter::once((local.id.host(), local.endpoints.iter().collect())).chain(each);
    let tcp = service.ports.iter().filter(|port| port.protocol == federation::Protocol::Tcp);
    let ports: Vec<u32> = tcp.map(|port| port.port.into()).collect();
    let namespace = local.id.namespace.as_str();
    let route = |(host, endpoints): (ServiceHost, Vec<&LocalEndpoint>)| {
        let content = Route {
            namespace: namespace.to_owned(),
            name: local.id.name.to_string(),
            host: host.to_string(),
            ports: ports.clone(),
            endpoints: endpoints.into_iter().map(|it| endpoint(it, trust_domain, namespace)).collect(),
        };
        let resource = resource(route_name(&host), Content::Route(content));
        (host, Arc::new(resource))
    };
    hosts.map(route).collect()
}

/// Where another cluster is reached, for this cluster's gateways.
#[must_use]
pub fn remote(cluster: &ClusterName, gateways: &[Gateway]) -> Arc<Resource> {
    let gateways = gateways.iter().map(Into::into).collect();
    let content = Remote { cluster: cluster.to_string(), gateways };
    Arc::new(resource(format!("remote/{cluster}"), Content::Remote(content)))
}

/// The roots of a trust domain.
#[must_use]
pub fn trust_bundle(bundle: &Bundle) -> Arc<Resource> {
    let content = TrustBundle {
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: bundle.x509_authorities.iter().map(|der| der.to_vec()).collect(),
        sequence: bundle.sequence,
    };
    Arc::new(resource(format!("trust/{}", bundle.trust_domain), Content::TrustBundle(content)))
}

/// What a sidecar serves.
#[must_use]
pub fn workload<'a>(
    namespace: &str,
    service_account: &str,
    found: Option<&LocalWorkload>,
    policies: impl Iterator<Item = &'a pruned::AccessPolicy>,
) -> Resource {
    let content = Workload {
        endpoint: found.map(|workload| workload.id.clone()).unwrap_or_default(),
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        locality: found.map(|workload| (&workload.locality).into()),
        bindings: found.into_iter().flat_map(|workload| &workload.bindings).map(binding).collect(),
        policies: policies.map(access_policy).collect(),
    };
    resource("workload".to_owned(), Content::Workload(content))
}

fn access_policy(policy: &pruned::AccessPolicy) -> AccessPolicy {
    let spec = &policy.spec;
    let rule = |rule: &isthmus::AccessRule| AccessRule {
        spiffe_ids: rule.spiffe_ids.clone(),
        trust_domains: rule.trust_domains.clone(),
        clusters: rule.clusters.clone(),
        namespaces: rule.namespaces.clone(),
        methods: rule.methods.clone(),
        paths: rule.paths.clone(),
    };
    let action = match spec.action {
        isthmus::AccessAction::Allow => Action::Allow,
        isthmus::AccessAction::Deny => Action::Deny,
    };
    AccessPolicy {
        name: format!("{}/{}", policy.namespace, policy.name),
        action: action.into(),
        dry_run: spec.dry_run,
        strict: spec.strict,
        ports: spec.ports.iter().map(|port| u32::from(*port)).collect(),
        rules: spec.rules.iter().map(rule).collect(),
    }
}

fn binding(binding: &crate::local::Binding) -> Binding {
    Binding { host: binding.host.to_string(), port: Some((&binding.port).into()), target_port: binding.target.into() }
}

/// What every proxy must know.
#[derive(Clone, Debug)]
pub struct MeshFacts<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// The federation's domain.
    pub federation: &'a str,
    /// The cluster's trust domain.
    pub trust_domain: &'a str,
    /// The last word from the federation.
    pub applied: Option<SystemTime>,
    /// When the trust state was last known to be the newest.
    pub trust_confirmed: Option<SystemTime>,
    /// As the operator signed it.
    pub deny_list: Option<&'a record::Signed>,
    /// The key to verify it with.
    pub membership_root: Option<&'a [u8]>,
    /// Where imported services get their addresses from, as CIDRs.
    pub clusterset_ranges: Vec<String>,
    /// Where sidecars have to go to reach other clusters; nowhere: they dial by themselves.
    pub egress_gateways: &'a [Gateway],
}

/// `mesh`
#[must_use]
pub fn mesh(facts: &MeshFacts<'_>) -> Arc<Resource> {
    let content = Mesh {
        cluster: facts.cluster.to_owned(),
        federation: facts.federation.to_owned(),
        trust_domain: facts.trust_domain.to_owned(),
        federation_applied_at_ms: stepped_ms(facts.applied),
        deny_list: facts.deny_list.cloned(),
        membership_root: facts.membership_root.map(<[u8]>::to_vec).unwrap_or_default(),
        clusterset_ranges: facts.clusterset_ranges.clone(),
        egress_gateways: facts.egress_gateways.iter().map(Into::into).collect(),
        trust_confirmed_at_ms: stepped_ms(facts.trust_confirmed),
    };
    Arc::new(resource("mesh".to_owned(), wire::resource::Resource::Mesh(content)))
}

/// Unix milliseconds, down to a whole [`AGE_STEP`]; 0 for never.
fn stepped_ms(at: Option<SystemTime>) -> i64 {
    let since_epoch = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let stepped = since_epoch.as_secs() / AGE_STEP.as_secs() * AGE_STEP.as_secs();
    i64::try_from(stepped.saturating_mul(1000)).unwrap_or(i64::MAX)
}
