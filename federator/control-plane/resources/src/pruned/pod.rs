//! v1 Pod.

use std::net::IpAddr;

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
    /// Its addresses, from its status, once it has some.
    pub addresses: Vec<IpAddr>,
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
            addresses: addresses(pod)?,
        })
    }
}

fn addresses(pod: &core::Pod) -> Result<Vec<IpAddr>, FieldError> {
    let Some(status) = &pod.status else { return Ok(Vec::new()) };
    let parse = |text: &str, field: String| {
        text.parse().map_err(|_| FieldError::new(field, format_args!("{text:?} is no address")))
    };
    let several = status.pod_ips.as_deref().unwrap_or_default();
    if several.is_empty() {
        let one = status.pod_ip.as_deref().filter(|text| !text.is_empty());
        return one.into_iter().map(|text| parse(text, "status.podIP".to_owned())).collect();
    }
    let parsed =
        several.iter().enumerate().map(|(index, pod_ip)| parse(&pod_ip.ip, format!("status.podIPs[{index}].ip")));
    parsed.collect()
}
