//! Names and namespaces.

use federation::{Namespace, ServiceId};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::DEFAULT_NAMESPACE;
use crate::resource::FieldError;

pub(super) fn namespace(metadata: &ObjectMeta) -> Result<Namespace, FieldError> {
    let text = metadata.namespace.as_deref().filter(|text| !text.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
    text.parse().map_err(|error| FieldError::new("metadata.namespace", error))
}

/// An object's name: an RFC 1123 subdomain.
pub(super) fn name(metadata: &ObjectMeta) -> Result<String, FieldError> {
    let text = metadata.name.as_deref().unwrap_or_default();
    if text.is_empty() {
        return Err(FieldError::new("metadata.name", "missing"));
    }
    if text.len() > 253 || text.split('.').any(|label| Namespace::parse(label).is_err()) {
        return Err(FieldError::new("metadata.name", format_args!("{text:?} is no RFC 1123 subdomain")));
    }
    Ok(text.to_owned())
}

/// The name of a Service, or of an object that is named after one.
pub(super) fn service(metadata: &ObjectMeta) -> Result<ServiceId, FieldError> {
    let namespace = namespace(metadata)?;
    let text = metadata.name.as_deref().unwrap_or_default();
    if text.is_empty() {
        return Err(FieldError::new("metadata.name", "missing"));
    }
    let name = text.parse().map_err(|error| FieldError::new("metadata.name", error))?;
    Ok(ServiceId::new(namespace, name))
}

/// A port number as Kubernetes has them, signed.
pub(super) fn port(number: i32, field: impl FnOnce() -> String) -> Result<u16, FieldError> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| FieldError::new(field(), format_args!("{number} is no port, allowed are 1 to 65535")))
}

/// A port's transport, TCP when not said.
pub(super) fn protocol(text: Option<&str>, field: impl FnOnce() -> String) -> Result<federation::Protocol, FieldError> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(federation::Protocol::Tcp),
        "UDP" => Ok(federation::Protocol::Udp),
        "SCTP" => Ok(federation::Protocol::Sctp),
        other => Err(FieldError::new(field(), format_args!("{other:?} is none of TCP, UDP, SCTP"))),
    }
}
