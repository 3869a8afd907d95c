//! A failover policy for the sidecars of its service's callers.

use federation_api::discovery::v1::FailoverPolicy;
use federation_api::discovery::v1::failover_policy as wire;
use federation_resources::isthmus::{self, TargetMode};
use federation_resources::pruned;

/// What a policy says, as proxies are told it.
pub(super) fn policy(policy: &pruned::FailoverPolicy) -> FailoverPolicy {
    let spec = &policy.spec;
    let ejection = spec.ejection.clone().unwrap_or_default();
    let retries = spec.retries.clone().unwrap_or_default();
    FailoverPolicy {
        name: format!("{}/{}", policy.namespace, policy.name),
        prefer: spec.prefer.iter().map(|it| dimension(*it).into()).collect(),
        targets: spec.targets.iter().map(target).collect(),
        distribute: spec
            .distribute
            .iter()
            .map(|share| wire::Share { cluster: share.cluster.clone(), weight: share.weight })
            .collect(),
        local_only: spec.local_only,
        overprovisioning_percent: spec.overprovisioning_percent,
        consecutive_failures: ejection.consecutive_failures,
        success_rate_percent: ejection.success_rate_percent,
        base_ejection_ms: ejection.base_time.map(milliseconds),
        max_ejection_ms: ejection.max_time.map(milliseconds),
        retry_budget_percent: retries.budget_percent,
        per_try_timeout_ms: retries.per_try_timeout.map(milliseconds),
        retry_non_idempotent: retries.non_idempotent,
    }
}

const fn dimension(dimension: isthmus::Dimension) -> wire::Dimension {
    match dimension {
        isthmus::Dimension::Zone => wire::Dimension::Zone,
        isthmus::Dimension::Region => wire::Dimension::Region,
        isthmus::Dimension::Cluster => wire::Dimension::Cluster,
    }
}

fn target(target: &isthmus::FailoverTarget) -> wire::Target {
    let mode = match target.mode {
        TargetMode::None => wire::Mode::None,
        TargetMode::Only => wire::Mode::Only,
        TargetMode::Any => wire::Mode::Any,
        TargetMode::AnyExcept => wire::Mode::AnyExcept,
    };
    wire::Target { from: target.from.clone(), mode: mode.into(), to: target.to.clone() }
}

/// Between 1 ms and 1 h, as the schema has it.
fn milliseconds(duration: kube::core::Duration) -> u32 {
    u32::try_from(std::time::Duration::from(duration).as_millis()).unwrap_or(u32::MAX)
}
