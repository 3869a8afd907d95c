//! v1 Pod.

use federation::Namespace;
use k8s_openapi::api::core::v1 as core;

use super::metadata;
use crate::SIDECAR_ANNOTATION;
use crate::resource::FieldError;

/// A pod's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Its service account, `default` when none is named.
    pub service_account: String,
    /// Its node, once it is scheduled.
    pub node: Option<String>,
    /// Whether it carries `isthmus.dev/sidecar: "true"`.
    pub sidecar: bool,
}

impl TryFrom<&core::Pod> for Pod {
    type Error = FieldError;

    fn try_from(pod: &core::Pod) -> Result<Self, FieldError> {
        let spec = pod.spec.as_ref();
        let account = spec
            .and_then(|spec| spec.service_account_name.clone().or_else(|| spec.service_account.clone()))
            .filter(|account| !account.is_empty());
        let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(SIDECAR_ANNOTATION));
        let sidecar = match annotation.map(String::as_str) {
            Some("true") => true,
            None | Some("false") => false,
            Some(other) => {
                return Err(FieldError::new(
                    format!("metadata.annotations.{SIDECAR_ANNOTATION}"),
                    format_args!("{other:?} is neither \"true\" nor \"false\""),
                ));
            }
        };
        Ok(Self {
            namespace: metadata::namespace(&pod.metadata)?,
            name: metadata::name(&pod.metadata)?,
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            node: spec.and_then(|spec| spec.node_name.clone()),
            sidecar,
        })
    }
}
