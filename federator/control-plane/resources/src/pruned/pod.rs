//! v1 Pod.

use std::net::IpAddr;

use federation::Namespace;
use k8s_openapi::api::core::v1 as core;

use super::metadata;
use crate::resource::FieldError;
use crate::{MAX_WEIGHT, SIDECAR_ANNOTATION, WEIGHT_ANNOTATION};

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
    /// What `isthmus.dev/weight` says, 1 when it is absent.
    pub weight: u32,
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
        Ok(Self {
            namespace: metadata::namespace(&pod.metadata)?,
            name: metadata::name(&pod.metadata)?,
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            node: spec.and_then(|spec| spec.node_name.clone()),
            sidecar: sidecar(pod)?,
            weight: weight(pod)?,
            addresses: addresses(pod)?,
        })
    }
}

fn annotation<'a>(pod: &'a core::Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn sidecar(pod: &core::Pod) -> Result<bool, FieldError> {
    match annotation(pod, SIDECAR_ANNOTATION) {
        Some("true") => Ok(true),
        None | Some("false") => Ok(false),
        Some(other) => Err(FieldError::new(
            format!("metadata.annotations.{SIDECAR_ANNOTATION}"),
            format_args!("{other:?} is neither \"true\" nor \"false\""),
        )),
    }
}

fn weight(pod: &core::Pod) -> Result<u32, FieldError> {
    let Some(text) = annotation(pod, WEIGHT_ANNOTATION) else { return Ok(1) };
    text.parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight)).ok_or_else(|| {
        FieldError::new(
            format!("metadata.annotations.{WEIGHT_ANNOTATION}"),
            format_args!("{text:?} is no whole number from 1 to {MAX_WEIGHT}"),
        )
    })
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
