//! isthmus.dev FailoverPolicy and AccessPolicy.

use std::time::SystemTime;

use federation::{Namespace, ServiceName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::metadata;
use crate::isthmus::{self, AccessPolicySpec, FailoverPolicySpec};
use crate::resource::FieldError;

/// Where traffic of imports goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverPolicy {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// When it was made, which manifests usually do not say: of several for one service, the oldest applies.
    pub created: Option<SystemTime>,
    /// The import that it is for; `None`: every one of the namespace without a policy of its own.
    pub service: Option<ServiceName>,
    /// What it says.
    pub spec: FailoverPolicySpec,
}

impl TryFrom<&isthmus::FailoverPolicy> for FailoverPolicy {
    type Error = FieldError;

    fn try_from(policy: &isthmus::FailoverPolicy) -> Result<Self, FieldError> {
        isthmus::validate(policy)?;
        let service = policy.spec.service.as_deref().map(str::parse).transpose();
        Ok(Self {
            namespace: metadata::namespace(&policy.metadata)?,
            name: metadata::name(&policy.metadata)?,
            created: created(&policy.metadata),
            service: service.map_err(|error| FieldError::new("spec.service", error))?,
            spec: policy.spec.clone(),
        })
    }
}

/// Who may call workloads of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessPolicy {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// What it says.
    pub spec: AccessPolicySpec,
}

impl TryFrom<&isthmus::AccessPolicy> for AccessPolicy {
    type Error = FieldError;

    fn try_from(policy: &isthmus::AccessPolicy) -> Result<Self, FieldError> {
        isthmus::validate(policy)?;
        Ok(Self {
            namespace: metadata::namespace(&policy.metadata)?,
            name: metadata::name(&policy.metadata)?,
            spec: policy.spec.clone(),
        })
    }
}

fn created(metadata: &ObjectMeta) -> Option<SystemTime> {
    metadata.creation_timestamp.as_ref().map(|time| SystemTime::from(time.0))
}
