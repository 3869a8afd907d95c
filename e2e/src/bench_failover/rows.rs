//! The rows of the failover table: what is broken, and what callers may see of it.

use std::time::Duration;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Row {
    ServerKilled,
    GatewayKilled,
    GatewayReplaced,
    Unready,
    ControlPlaneKilled,
    Blackholed,
    Healed,
    FederationKilled,
    LeaderKilled,
    Quarantined,
}

impl Row {
    pub(super) const ALL: [Self; 10] = [
        Self::ServerKilled,
        Self::GatewayKilled,
        Self::GatewayReplaced,
        Self::Unready,
        Self::ControlPlaneKilled,
        Self::Blackholed,
        Self::Healed,
        Self::FederationKilled,
        Self::LeaderKilled,
        Self::Quarantined,
    ];

    /// For goals, and for `--only`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ServerKilled => "server_killed",
            Self::GatewayKilled => "gateway_killed",
            Self::GatewayReplaced => "gateway_replaced",
            Self::Unready => "unready",
            Self::ControlPlaneKilled => "control_plane_killed",
            Self::Blackholed => "blackholed",
            Self::Healed => "healed",
            Self::FederationKilled => "federation_killed",
            Self::LeaderKilled => "leader_killed",
            Self::Quarantined => "quarantined",
        }
    }

    /// For people.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::ServerKilled => "server process killed",
            Self::GatewayKilled => "one of two gateways killed",
            Self::GatewayReplaced => "gateways restarted in turn, SIGTERM",
            Self::Unready => "all local endpoints become unready",
            Self::ControlPlaneKilled => "every control-plane killed, a sidecar restarted",
            Self::Blackholed => "a cluster's network drops everything",
            Self::Healed => "it heals",
            Self::FederationKilled => "every federator, trust-bundle and etcd member killed",
            Self::LeaderKilled => "etcd's leader killed while exports change",
            Self::Quarantined => "a cluster is quarantined",
        }
    }

    /// What the time of an injection is.
    pub(super) const fn what(self) -> &'static str {
        match self {
            Self::ServerKilled | Self::GatewayKilled | Self::GatewayReplaced | Self::FederationKilled => {
                "until every request was prompt again"
            }
            Self::Unready => "until the last request that still began there",
            Self::ControlPlaneKilled => "until the restarted sidecar serves from disk",
            Self::Blackholed => "longest that an idempotent request waited, or that new ones still began there",
            Self::Healed => "until requests are answered at home",
            Self::LeaderKilled => "until the change is seen elsewhere",
            Self::Quarantined => "until the last byte",
        }
    }

    /// The longest that it may take, where there is such a limit.
    pub(super) const fn limit(self) -> Option<Duration> {
        match self {
            Self::Unready => Some(Duration::from_millis(100)),
            Self::ControlPlaneKilled | Self::Blackholed | Self::Quarantined => Some(Duration::from_secs(1)),
            Self::Healed => Some(Duration::from_secs(10)),
            Self::LeaderKilled => Some(Duration::from_secs(3)),
            Self::ServerKilled | Self::GatewayKilled | Self::GatewayReplaced | Self::FederationKilled => None,
        }
    }
}

/// What one injection of a fault did.
#[derive(Clone, Debug)]
pub(super) struct Injection {
    /// See [`Row::what`].
    pub(super) time: Duration,
    /// Requests that were watched.
    pub(super) requests: usize,
    /// Those that failed and should not have.
    pub(super) failed: Vec<String>,
    /// Those that cannot be repeated and were under way when their server died.
    pub(super) interrupted: usize,
}
