//! Clusters: what this cluster knows of the other members.

use std::time::{Duration, SystemTime};

use federation_resources::isthmus::{ClusterGateway, ClusterStatus as ApiStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition as ApiCondition;

use super::wanted::{condition, time};
use crate::conditions::Condition;
use crate::peers::Liveness;
use crate::snapshot::ClusterStatus;

/// The status of a member's Cluster.
pub(super) fn status(cluster: &ClusterStatus, there: Option<&ApiStatus>, now: SystemTime) -> ApiStatus {
    let suspect = cluster.liveness.as_ref().and_then(suspect_since);
    let (status, reason, message) = if cluster.quarantined {
        ("False", "Quarantined", "the operator has shut it out")
    } else if !cluster.bundle {
        ("False", "NoTrustBundle", "its roots are not known: it cannot be called")
    } else if suspect.is_some() {
        ("False", "Suspect", "the federation has lost touch with it: it is used last")
    } else {
        ("True", "Connected", "it can be called")
    };
    let ready = Condition { kind: "Ready", status, reason: reason.to_owned(), message: message.to_owned() };
    let known: &[ApiCondition] = there.map(|there| there.conditions.as_slice()).unwrap_or_default();
    let gateways = cluster.gateways.iter().map(|gateway| ClusterGateway {
        address: format!("{}:{}", gateway.address, gateway.port),
        zone: gateway.locality.zone.clone(),
    });
    ApiStatus {
        generation: cluster.generation,
        exports: u32::try_from(cluster.exports).unwrap_or(u32::MAX),
        gateways: gateways.collect(),
        suspect_since: suspect.map(time),
        conditions: vec![condition(&ready, known, None, now)],
    }
}

fn suspect_since(liveness: &Liveness) -> Option<SystemTime> {
    let since = Duration::from_millis(u64::try_from(liveness.since_ms).unwrap_or_default().min(1 << 50));
    (!liveness.connected).then(|| SystemTime::UNIX_EPOCH + since)
}
