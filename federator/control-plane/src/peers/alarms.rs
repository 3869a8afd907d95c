//! What should worry an operator: somebody says two things, or holds something back.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use federation::ClusterName;
use tracing::{error, warn};

/// Records may lag behind their heads for this long before they count as withheld: the federator keeps the newest per
/// key and may deliver them in any order.
const LAG: Duration = Duration::from_secs(15);

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The cluster signed two records with one sequence. Its key may be in other hands.
    Equivocation,
    /// The cluster's signed heads cover records that do not arrive.
    Withheld,
}

impl fmt::Display for AlarmKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Equivocation => "equivocation",
            Self::Withheld => "withheld",
        })
    }
}

/// One alarm. Equivocation stays until the program restarts; withholding until it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// What is wrong.
    pub kind: AlarmKind,
    /// About what.
    pub detail: String,
    /// Since when.
    pub since: SystemTime,
}

#[derive(Debug, Default)]
pub(super) struct Alarms {
    raised: BTreeMap<ClusterName, BTreeMap<AlarmKind, Alarm>>,
    differing: BTreeMap<ClusterName, SystemTime>,
}

impl Alarms {
    pub(super) fn raise(&mut self, cluster: &ClusterName, kind: AlarmKind, detail: String, now: SystemTime) {
        let alarms = self.raised.entry(cluster.clone()).or_default();
        if alarms.get(&kind).is_none_or(|alarm| alarm.detail != detail) {
            error!(%cluster, %kind, detail, "alarm about a cluster's records");
            alarms.insert(kind, Alarm { kind, detail, since: now });
        }
    }

    /// The scopes that differ from the cluster's heads now.
    pub(super) fn withheld(&mut self, cluster: &ClusterName, differing: &[String], now: SystemTime) {
        if differing.is_empty() {
            self.differing.remove(cluster);
            let cleared = self.raised.get_mut(cluster).and_then(|alarms| alarms.remove(&AlarmKind::Withheld));
            if cleared.is_some() {
                warn!(%cluster, "nothing is withheld any more");
            }
            return;
        }
        let since = *self.differing.entry(cluster.clone()).or_insert(now);
        if now.duration_since(since).is_ok_and(|lag| lag >= LAG) {
            self.raise(cluster, AlarmKind::Withheld, differing.join(", "), now);
        }
    }

    pub(super) fn of(&self, cluster: &ClusterName) -> impl Iterator<Item = &Alarm> {
        self.raised.get(cluster).into_iter().flat_map(BTreeMap::values)
    }
}
