//! The CustomResourceDefinitions of every kind that is defined here, made of the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::about::ClusterProperty;
use crate::isthmus::{AccessPolicy, Cluster, FailoverPolicy};
use crate::mcs::{self, ServiceExport, ServiceImport};

/// The release of mcs-api whose definitions ours stand for, as installers compare them.
const MCS_RELEASE: &str = "v0.5.2";

/// Every definition, in the order of its name.
///
/// # Errors
/// A generated schema does not convert: a fault of the types, which the tests would find.
pub fn all() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    let mut definitions = vec![
        AccessPolicy::crd(),
        ClusterProperty::crd(),
        Cluster::crd(),
        FailoverPolicy::crd(),
        mcs_definition(ServiceExport::crd()),
        mcs_definition(ServiceImport::crd()),
    ];
    for version in definitions.iter_mut().flat_map(|definition| &mut definition.spec.versions) {
        finish(version)?;
    }
    definitions.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    Ok(definitions)
}

/// Both versions have the same fields.
fn mcs_definition(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let labels = definition.metadata.labels.get_or_insert_default();
    labels.insert("multicluster.x-k8s.io/release-version".to_owned(), MCS_RELEASE.to_owned());
    labels.insert("multicluster.x-k8s.io/crd-schema-revision".to_owned(), "0".to_owned());
    if let Some(stored) = definition.spec.versions.first().cloned() {
        let name = mcs::SERVED_VERSION.to_owned();
        definition.spec.versions.push(CustomResourceDefinitionVersion { name, storage: false, ..stored });
    }
    definition
}

/// What derives do not say: conditions are a map by type with the API's own bounds. Objects whose spec may be empty may
/// lack it; formats that the API does not know go.
fn finish(version: &mut CustomResourceDefinitionVersion) -> Result<(), serde_json::Error> {
    let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
        return Ok(());
    };
    let spec = schema.properties.as_ref().and_then(|properties| properties.get("spec"));
    if spec.is_some_and(|spec| spec.required.is_none() && spec.nullable == Some(true)) {
        schema.required = None;
    }
    let mut whole = serde_json::to_value(&*schema)?;
    drop_unknown_formats(&mut whole);
    *schema = serde_json::from_value(whole)?;
    let status = schema.properties.as_mut().and_then(|properties| properties.get_mut("status"));
    let Some(status) = status.and_then(|status| status.properties.as_mut()) else { return Ok(()) };
    if let Some(conditions) = status.get_mut("conditions") {
        keyed_by(conditions, "type");
        let mut whole = serde_json::to_value(&*conditions)?;
        let fields = &mut whole["items"]["properties"];
        fields["status"]["enum"] = json!(["True", "False", "Unknown"]);
        fields["reason"]["pattern"] = json!("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$");
        fields["reason"]["minLength"] = json!(1);
        fields["reason"]["maxLength"] = json!(1024);
        fields["message"]["maxLength"] = json!(32768);
        fields["type"]["maxLength"] = json!(316);
        *conditions = serde_json::from_value(whole)?;
    }
    if let Some(clusters) = status.get_mut("clusters") {
        keyed_by(clusters, "cluster");
    }
    Ok(())
}

fn drop_unknown_formats(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            fields.values_mut().for_each(drop_unknown_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_unknown_formats),
        _ => {}
    }
}

fn keyed_by(list: &mut JSONSchemaProps, key: &str) {
    list.x_kubernetes_list_type = Some("map".to_owned());
    list.x_kubernetes_list_map_keys = Some(vec![key.to_owned()]);
}
