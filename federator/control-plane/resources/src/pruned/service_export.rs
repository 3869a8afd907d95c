//! multicluster.x-k8s.io ServiceExport.

use std::collections::BTreeMap;
use std::time::SystemTime;

use federation::ServiceId;

use super::metadata;
use crate::mcs;
use crate::resource::FieldError;

/// The wish to export the service of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceExport {
    /// The service.
    pub id: ServiceId,
    /// `spec.exportedLabels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.exportedAnnotations`.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`, which manifests usually lack.
    pub created: Option<SystemTime>,
}

impl TryFrom<&mcs::ServiceExport> for ServiceExport {
    type Error = FieldError;

    fn try_from(export: &mcs::ServiceExport) -> Result<Self, FieldError> {
        Ok(Self {
            id: metadata::service(&export.metadata)?,
            labels: export.spec.exported_labels.clone(),
            annotations: export.spec.exported_annotations.clone(),
            created: export.metadata.creation_timestamp.as_ref().map(|time| SystemTime::from(time.0)),
        })
    }
}
