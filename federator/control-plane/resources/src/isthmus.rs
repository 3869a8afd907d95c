//! `isthmus.dev/v1alpha1`: the kinds of our own.
//!
//! Each carries a structural schema with CEL rules, which an API server applies; objects that come from files are held to
//! the same rules.

mod access_policy;
mod cluster;
mod failover_policy;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::resource::FieldError;

pub use access_policy::{AccessAction, AccessPolicy, AccessPolicySpec, AccessRule};
pub use cluster::{Cluster, ClusterGateway, ClusterSpec, ClusterStatus};
pub use failover_policy::{
    Dimension, EjectionSpec, FailoverPolicy, FailoverPolicySpec, FailoverTarget, RetrySpec, Share, TargetMode,
};

/// The API group.
pub const GROUP: &str = "isthmus.dev";

/// What became of a policy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `Accepted`: True=`Accepted`; False=`Invalid`, `Overridden`.
    pub conditions: Vec<Condition>,
}

/// Applies the kind's schema rules, as an API server would.
///
/// # Errors
/// The first rule that does not hold, with its field.
pub(crate) fn validate<T: kube::CustomResourceExt + Serialize>(object: &T) -> Result<(), FieldError> {
    let failed = |error: serde_json::Error| FieldError::new("spec", error);
    let crd = T::crd();
    let schema = crd.spec.versions.into_iter().next().and_then(|version| version.schema?.open_api_v3_schema);
    let schema: Value = serde_json::to_value(schema).map_err(failed)?;
    let value = serde_json::to_value(object).map_err(failed)?;
    let errors = kube::core::cel::validate_cel(object).err().map(|errors| errors.to_string());
    if let Some(error) = bounds(&schema, &value, String::new()) {
        return Err(error);
    }
    errors.map_or(Ok(()), |errors| Err(FieldError::new("spec", errors)))
}

/// The bounds of a structural schema that CEL does not look at: numbers and lengths of lists. Serde has seen to names and enums.
fn bounds(schema: &Value, value: &Value, path: String) -> Option<FieldError> {
    let wrong = |what: String| Some(FieldError::new(path.trim_start_matches('.'), what));
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
            match (bound("minimum"), bound("maximum")) {
                (Some(minimum), _) if number < minimum => wrong(format!("{number} is less than {minimum}")),
                (_, Some(maximum)) if number > maximum => wrong(format!("{number} is more than {maximum}")),
                _ => None,
            }
        }
        Value::Array(items) => {
            let most = schema.get("maxItems").and_then(Value::as_u64);
            if most.is_some_and(|most| items.len() as u64 > most) {
                return wrong(format!("has more than {} entries", most.unwrap_or_default()));
            }
            let of_items = schema.get("items")?;
            items.iter().enumerate().find_map(|(index, item)| bounds(of_items, item, format!("{path}[{index}]")))
        }
        Value::Object(fields) => {
            let properties = schema.get("properties")?;
            fields.iter().find_map(|(name, field)| bounds(properties.get(name)?, field, format!("{path}.{name}")))
        }
        _ => None,
    }
}
