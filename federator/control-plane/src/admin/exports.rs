//! `export` and `unexport`: a ServiceExport is written where the cluster's services are declared, or removed from there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use federation::ServiceId;
use federation_resources::mcs::{ServiceExport, ServiceExportSpec};
use federation_resources::pruned::ServiceKind;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mesh_runtime::write_atomically;
use tokio::time::timeout;

use super::{Admin, Refusal};
use crate::config::Origin;
use crate::snapshot::Snapshot;

/// How long a Service that was just written may take to be read, and an export to be seen.
const PATIENCE: Duration = Duration::from_secs(2);
/// Manifests hold no secrets.
const FILE_MODE: u32 = 0o644;

/// Exports a service. Returns the file, and whether it is new.
pub(super) async fn add(admin: &Admin, namespace: &str, name: &str) -> Result<(PathBuf, bool), Refusal> {
    let id = parse(namespace, name)?;
    let file = file(admin, &id)?;
    let there = |snapshot: &Snapshot| snapshot.local.get(&id).is_some_and(|local| local.service.is_some());
    let exported = |snapshot: &Snapshot| snapshot.exports.contains_key(&id);
    if !seen(admin, there).await {
        let here = format!("{} has no Service {id}: it is exported where it is declared", admin.config.cluster);
        return Err(Refusal::new(StatusCode::NOT_FOUND, here));
    }
    let local = admin.snapshots.borrow().local.get(&id).cloned();
    let kind = local.and_then(|local| local.service.as_ref().map(|service| service.kind));
    if kind == Some(ServiceKind::ExternalName) {
        let why = format!("{id} is an ExternalName Service, which cannot be exported");
        return Err(Refusal::new(StatusCode::CONFLICT, why));
    }
    if exported(&admin.snapshots.borrow()) {
        return Ok((file, false));
    }
    let mut manifest = ServiceExport::new(id.name.as_str(), ServiceExportSpec::default());
    manifest.metadata.namespace = Some(id.namespace.to_string());
    manifest.metadata.creation_timestamp = Some(Time(now()));
    let text = serde_saphyr::to_string(&manifest).map_err(internal)?;
    blocking({
        let file = file.clone();
        move || write_atomically(&file, text.as_bytes(), FILE_MODE)
    })
    .await?;
    if !seen(admin, exported).await {
        let why = format!("{} is written but was not read within {PATIENCE:?}", file.display());
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why));
    }
    Ok((file, true))
}

/// Withdraws an export that was written here.
pub(super) async fn remove(admin: &Admin, namespace: &str, name: &str) -> Result<(), Refusal> {
    let id = parse(namespace, name)?;
    let file = file(admin, &id)?;
    let directory = file.parent().map(Path::to_owned).unwrap_or_default();
    let removed = blocking(move || match std::fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    })
    .await?;
    if removed {
        let gone = seen(admin, |snapshot| !snapshot.exports.contains_key(&id)).await;
        if gone {
            return Ok(());
        }
    }
    if admin.snapshots.borrow().exports.contains_key(&id) {
        let directory = directory.display();
        let why = format!("the ServiceExport {id} stands in a manifest in {directory}: remove it there");
        return Err(Refusal::new(StatusCode::CONFLICT, why));
    }
    if removed {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::NOT_FOUND, format!("{id} is not exported")))
}

fn parse(namespace: &str, name: &str) -> Result<ServiceId, Refusal> {
    ServiceId::parse_parts(namespace, name).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))
}

/// Namespaces and names have no dots, so no two services share a file. In a Kubernetes cluster the operator's own rights
/// count, not the control-plane's: it has none to write ServiceExports.
fn file(admin: &Admin, id: &ServiceId) -> Result<PathBuf, Refusal> {
    match admin.config.origin() {
        Some(Origin::Directories { manifests, .. }) => {
            Ok(manifests.join(format!("{}.{}.serviceexport.yaml", id.namespace, id.name)))
        }
        _ => {
            let why = format!(
                "this cluster's exports are objects of its API: kubectl -n {} create or delete the ServiceExport {}",
                id.namespace, id.name
            );
            Err(Refusal::new(StatusCode::CONFLICT, why))
        }
    }
}

async fn seen(admin: &Admin, condition: impl Fn(&Snapshot) -> bool) -> bool {
    let mut snapshots = admin.snapshots.clone();
    let waiting = snapshots.wait_for(|snapshot| condition(snapshot));
    matches!(timeout(PATIENCE, waiting).await, Ok(Ok(_)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(internal)?.map_err(internal)
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}

/// The API's times have whole seconds.
fn now() -> Timestamp {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default()
}
