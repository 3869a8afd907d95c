//! The manifests' text.

use std::io;
use std::time::SystemTime;

use federation::export::IpFamily;
use federation::merge::Import;
use federation::{ServiceId, ServiceType};
use federation_resources::mcs::{
    ClientIpConfig, EndpointSliceObjects, ImportCluster, ImportPort, ImportType, ServiceExport, ServiceExportSpec,
    ServiceExportStatus, ServiceImport, ServiceImportSpec, ServiceImportStatus, SessionAffinityConfig,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as KubernetesCondition, Time};
use serde::{Deserialize, Serialize};

use crate::conditions::{self, Condition, Transitions};
use crate::snapshot::{ExportView, ServiceView};

/// The first line of every file.
pub(super) const HEADER: &str = "# Written by the control-plane; changes are overwritten.\n";

pub(super) fn import_manifest(
    view: &ServiceView,
    transitions: &mut Transitions,
    object: &str,
    now: SystemTime,
) -> io::Result<String> {
    let import = &view.import;
    let mut manifest = ServiceImport::new(import.service.name.as_str(), import_spec(import, view));
    manifest.metadata.namespace = Some(import.service.namespace.to_string());
    manifest.metadata.labels = Some(import.labels.clone()).filter(|labels| !labels.is_empty());
    manifest.metadata.annotations = Some(import.annotations.clone()).filter(|annotations| !annotations.is_empty());
    let ready = conditions::of_import(view.without_vip.as_deref());
    manifest.status = Some(ServiceImportStatus {
        clusters: import.clusters.iter().map(|cluster| ImportCluster { cluster: cluster.to_string() }).collect(),
        conditions: vec![condition(&ready, transitions, object, now)],
        endpoint_slice_objects: Some(EndpointSliceObjects::Absent),
    });
    text(&manifest)
}

/// What an import says, whoever writes it.
pub(crate) fn import_spec(import: &Import, view: &ServiceView) -> ServiceImportSpec {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let ports = import.ports.iter().map(|port| ImportPort {
        name: port.port.name.clone(),
        protocol: port.port.protocol.to_string(),
        app_protocol: some(&port.port.app_protocol),
        port: port.port.port,
    });
    let families = view.vips.iter().map(|address| if address.is_ipv4() { IpFamily::IPv4 } else { IpFamily::IPv6 });
    let headless = import.service_type == ServiceType::Headless;
    let families: Vec<_> = if headless { import.ip_families.clone() } else { families.collect() };
    let timeout = import.client_ip_affinity.map(|affinity| i32::try_from(affinity.as_secs()).unwrap_or(i32::MAX));
    ServiceImportSpec {
        ports: ports.collect(),
        ips: view.vips.iter().map(ToString::to_string).collect(),
        type_: if headless { ImportType::Headless } else { ImportType::ClusterSetIP },
        session_affinity: Some(if timeout.is_some() { "ClientIP" } else { "None" }.to_owned()),
        session_affinity_config: timeout.map(|seconds| SessionAffinityConfig {
            client_ip: Some(ClientIpConfig { timeout_seconds: Some(seconds) }),
        }),
        ip_families: families.iter().map(|family| format!("{family:?}")).collect(),
        internal_traffic_policy: some(&import.internal_traffic_policy),
        traffic_distribution: some(&import.traffic_distribution),
    }
}

pub(super) fn export_manifest(
    id: &ServiceId,
    view: &ExportView,
    transitions: &mut Transitions,
    object: &str,
    now: SystemTime,
) -> io::Result<String> {
    let spec =
        ServiceExportSpec { exported_labels: view.labels.clone(), exported_annotations: view.annotations.clone() };
    let mut manifest = ServiceExport::new(id.name.as_str(), spec);
    manifest.metadata.namespace = Some(id.namespace.to_string());
    manifest.metadata.creation_timestamp = Some(time(view.created));
    let conditions = view.conditions.iter().map(|it| condition(it, transitions, object, now));
    manifest.status = Some(ServiceExportStatus { conditions: conditions.collect() });
    text(&manifest)
}

fn condition(
    condition: &Condition,
    transitions: &mut Transitions,
    object: &str,
    now: SystemTime,
) -> KubernetesCondition {
    KubernetesCondition {
        type_: condition.kind.to_owned(),
        status: condition.status.to_owned(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_time: time(transitions.since(object, condition, now)),
        observed_generation: None,
    }
}

/// To whole seconds, as the API has times.
fn time(at: SystemTime) -> Time {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    Time(i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default())
}

fn text<T: Serialize>(manifest: &T) -> io::Result<String> {
    let body = serde_saphyr::to_string(manifest).map_err(io::Error::other)?;
    Ok(format!("{HEADER}{body}"))
}

/// The conditions in a manifest that was written before; none where it is not one.
pub(super) fn read_conditions(text: &str, mut take: impl FnMut(&str, &str, SystemTime)) {
    #[derive(Deserialize)]
    struct Written {
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        conditions: Vec<KubernetesCondition>,
    }
    if let Ok(written) = serde_saphyr::from_str::<Written>(text) {
        for condition in written.status.conditions {
            take(&condition.type_, &condition.status, SystemTime::from(condition.last_transition_time.0));
        }
    }
}
