//! v1 Namespace.

use k8s_openapi::api::core::v1 as core;

use super::metadata;
use crate::LOCAL_SERVICES_LABEL;
use crate::resource::FieldError;

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: federation::Namespace,
    /// Whether it is labelled `isthmus.dev/local-services: enabled`: sidecars then carry traffic to its own Services, too.
    pub local_services: bool,
}

impl TryFrom<&core::Namespace> for Namespace {
    type Error = FieldError;

    fn try_from(namespace: &core::Namespace) -> Result<Self, FieldError> {
        let name = metadata::name(&namespace.metadata)?;
        let label = namespace.metadata.labels.as_ref().and_then(|labels| labels.get(LOCAL_SERVICES_LABEL));
        let local_services = match label.map(String::as_str) {
            Some("enabled") => true,
            None | Some("disabled") => false,
            Some(other) => {
                return Err(FieldError::new(
                    format!("metadata.labels.{LOCAL_SERVICES_LABEL}"),
                    format_args!("{other:?} is neither \"enabled\" nor \"disabled\""),
                ));
            }
        };
        Ok(Self { name: name.parse().map_err(|error| FieldError::new("metadata.name", error))?, local_services })
    }
}
