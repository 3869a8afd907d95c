//! A failover policy, as the control-plane hands it on.

use std::time::Duration;

use balance::{RetryBudgetSettings, Settings};
use federation::order::{Dimension, Mode, Preference, Target};
use federation_api::discovery::v1::FailoverPolicy;
use federation_api::discovery::v1::failover_policy as wire;

use crate::service::{ResourceError, parse_all};

/// What a policy says about one service; the default is what holds without one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Failover {
    /// `<namespace>/<name>` of the policy, for whoever asks why.
    pub(crate) name: Option<String>,
    /// Where requests go.
    pub(crate) preference: Preference,
    /// When endpoints and clusters are left.
    pub(crate) settings: Settings,
    /// How many retries are allowed.
    pub(crate) budget: RetryBudgetSettings,
    /// What is tried again.
    pub(crate) retrying: Retrying,
}

/// What is tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retrying {
    /// How long one try may take to its response's head; none unless a policy says so, since it would kill slow but correct
    /// calls.
    pub(crate) per_try_timeout: Option<Duration>,
    /// Requests are repeated whatever their method.
    pub(crate) any_method: bool,
}

impl TryFrom<FailoverPolicy> for Failover {
    type Error = ResourceError;

    fn try_from(policy: FailoverPolicy) -> Result<Self, ResourceError> {
        let targets = policy
            .targets
            .into_iter()
            .enumerate()
            .map(|(place, wire)| target(wire).map_err(|error| error.within(&format!("targets[{place}]"))))
            .collect::<Result<_, _>>()?;
        let distribute = policy
            .distribute
            .into_iter()
            .enumerate()
            .map(|(place, share)| {
                let cluster = share.cluster.parse();
                let named = |error| ResourceError::new(format!("distribute[{place}].cluster"), error);
                Ok((cluster.map_err(named)?, share.weight))
            })
            .collect::<Result<_, ResourceError>>()?;
        let prefer = policy.prefer.iter().map(|dimension| dimension_of(*dimension)).collect::<Result<_, _>>()?;
        let preference = Preference { prefer, targets, distribute, local_only: policy.local_only };
        let mut settings = Settings::default();
        if let Some(percent) = policy.overprovisioning_percent {
            settings.overprovisioning = f64::from(percent) / 100.0;
        }
        if let Some(failures) = policy.consecutive_failures {
            settings.consecutive_failures = failures;
        }
        if let Some(percent) = policy.success_rate_percent {
            settings.success_rate = f64::from(percent) / 100.0;
        }
        let milliseconds = |time: u32| Duration::from_millis(time.into());
        if let Some(time) = policy.max_ejection_ms {
            settings.max_ejection = milliseconds(time);
        }
        // The one that is not set gives way to the one that is.
        match policy.base_ejection_ms.map(milliseconds) {
            Some(base) => {
                settings.base_ejection = base;
                settings.max_ejection = settings.max_ejection.max(base);
            }
            None => settings.base_ejection = settings.base_ejection.min(settings.max_ejection),
        }
        if let Some(problem) = settings.problems().first() {
            return Err(ResourceError::new("", problem));
        }
        let mut budget = RetryBudgetSettings::default();
        if let Some(percent) = policy.retry_budget_percent {
            budget.share = f64::from(percent) / 100.0;
            // None at all is none.
            budget.floor_per_second = if percent == 0 { 0 } else { budget.floor_per_second };
        }
        let retrying = Retrying {
            per_try_timeout: policy.per_try_timeout_ms.filter(|time| *time > 0).map(milliseconds),
            any_method: policy.retry_non_idempotent,
        };
        Ok(Self { name: Some(policy.name), preference, settings, budget, retrying })
    }
}

fn target(wire: wire::Target) -> Result<Target, ResourceError> {
    let mode = match wire::Mode::try_from(wire.mode) {
        Ok(wire::Mode::None) => Mode::None,
        Ok(wire::Mode::Only) => Mode::Only,
        Ok(wire::Mode::Unspecified | wire::Mode::Any) => Mode::Any,
        Ok(wire::Mode::AnyExcept) => Mode::AnyExcept,
        Err(error) => return Err(ResourceError::new("mode", error)),
    };
    Ok(Target { from: parse_all("from", &wire.from)?, mode, to: parse_all("to", &wire.to)? })
}

fn dimension_of(wire: i32) -> Result<Dimension, ResourceError> {
    match wire::Dimension::try_from(wire) {
        Ok(wire::Dimension::Zone) => Ok(Dimension::Zone),
        Ok(wire::Dimension::Region) => Ok(Dimension::Region),
        Ok(wire::Dimension::Cluster) => Ok(Dimension::Cluster),
        Ok(wire::Dimension::Unspecified) | Err(_) => {
            Err(ResourceError::new("prefer", format!("{wire} is no dimension")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_is_not_set_keeps_its_default() {
        let failover = Failover::try_from(FailoverPolicy { name: "shop/f".to_owned(), ..FailoverPolicy::default() });
        assert_eq!(failover.unwrap(), Failover { name: Some("shop/f".to_owned()), ..Failover::default() });
    }

    #[test]
    fn thresholds_are_taken_and_nonsense_is_refused() {
        let policy = FailoverPolicy {
            overprovisioning_percent: Some(200),
            consecutive_failures: Some(2),
            success_rate_percent: Some(50),
            base_ejection_ms: Some(120_000),
            retry_budget_percent: Some(0),
            per_try_timeout_ms: Some(300),
            retry_non_idempotent: true,
            ..FailoverPolicy::default()
        };
        let failover = Failover::try_from(policy.clone()).unwrap();
        assert_eq!((failover.settings.overprovisioning, failover.settings.success_rate), (2.0, 0.5));
        assert_eq!(failover.settings.consecutive_failures, 2);
        assert_eq!(failover.settings.max_ejection, Duration::from_secs(120));
        assert_eq!(failover.budget, RetryBudgetSettings { share: 0.0, floor_per_second: 0 });
        let retrying = Retrying { per_try_timeout: Some(Duration::from_millis(300)), any_method: true };
        assert_eq!(failover.retrying, retrying);
        for broken in [
            FailoverPolicy { overprovisioning_percent: Some(50), ..policy.clone() },
            FailoverPolicy { consecutive_failures: Some(0), ..policy.clone() },
            FailoverPolicy { prefer: vec![9], ..policy.clone() },
            FailoverPolicy {
                targets: vec![wire::Target { to: vec!["Not".to_owned()], ..wire::Target::default() }],
                ..policy
            },
        ] {
            Failover::try_from(broken).unwrap_err();
        }
    }
}
