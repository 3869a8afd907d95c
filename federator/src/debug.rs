//! What operators see on the admin listener, besides metrics.
//!
//! - `/debug/federation`: the replica: its revision, records, members, and who is connected since when.
//! - `/debug/sessions`: the sessions open here: who has been told and has applied what, and how far behind it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::routing::get;
use axum::{Json, Router};
use federation_store::Revision;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cache::Cache;
use crate::members::Members;
use crate::metrics::{Member, Metrics};
use crate::protocol::MISSED_HEARTBEATS;
use crate::registry::Registry;

/// How often the gauges are brought up to date.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// What is looked at.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) cache: Cache,
    pub(crate) registry: Registry,
    pub(crate) members: watch::Receiver<Arc<Members>>,
    pub(crate) replica: String,
    pub(crate) heartbeat: Duration,
}

impl View {
    /// The routes.
    pub(crate) fn routes(&self) -> Router {
        let (federation, sessions) = (self.clone(), self.clone());
        Router::new()
            .route("/debug/federation", get(move || std::future::ready(Json(federation.federation()))))
            .route("/debug/sessions", get(move || std::future::ready(Json(sessions.sessions()))))
    }

    fn federation(&self) -> Value {
        let clusters = self.cache.liveness().clusters();
        let members: Vec<_> = self.members.borrow().clusters().map(ToString::to_string).collect();
        let (collected, usages) = self.cache.read(|index| {
            let usages: BTreeMap<_, _> = index.usages().map(|(cluster, usage)| (cluster.clone(), *usage)).collect();
            (index.collected(), usages)
        });
        let clusters = clusters.iter().map(|(cluster, state)| {
            json!({
                "cluster": cluster, "connected": state.connected, "sinceMs": state.since_ms,
                "replica": state.replica, "appliedRevision": state.applied,
            })
        });
        let usages = usages.iter().map(|(cluster, usage)| {
            json!({
                "cluster": cluster, "exports": usage.exports, "records": usage.records,
                "withdrawals": usage.withdrawals, "bytes": usage.bytes,
            })
        });
        json!({
            "replica": self.replica,
            "incarnation": self.cache.incarnation(),
            "revision": self.cache.revision(),
            "collectedRevision": collected,
            "records": self.cache.read(crate::index::Index::len),
            "members": members,
            "clusters": clusters.collect::<Vec<_>>(),
            "usage": usages.collect::<Vec<_>>(),
        })
    }

    fn sessions(&self) -> Value {
        let revision = self.cache.revision();
        json!({
            "replica": self.replica,
            "incarnation": self.cache.incarnation(),
            "revision": revision,
            "lateMs": self.late_ms(),
            "sessions": self.registry.list(Instant::now(), revision),
        })
    }

    /// An acknowledgement that is owed for longer is late.
    fn late_ms(&self) -> u64 {
        u64::try_from((self.heartbeat * MISSED_HEARTBEATS).as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps the gauges true.
    pub(crate) async fn observe(self, metrics: Metrics) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let late = self.late_ms();
        let mut shown: BTreeMap<String, bool> = BTreeMap::new();
        loop {
            let revision = self.cache.revision();
            metrics.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
            metrics.connected.set(count(self.cache.liveness().connected()));
            metrics.members.set(count(self.members.borrow().clusters().count()));
            shown.values_mut().for_each(|seen| *seen = false);
            self.observe_records(&metrics, &mut shown);
            self.observe_sessions(&metrics, &mut shown, revision, late);
            // Clusters that are gone leave no labels behind.
            shown.retain(|cluster, seen| {
                if !*seen {
                    let member = Member { cluster: cluster.clone() };
                    metrics.exports.remove(&member);
                    metrics.lag_seconds.remove(&member);
                    metrics.lag_revisions.remove(&member);
                }
                *seen
            });
            tokio::time::sleep(OBSERVE_EVERY).await;
        }
    }

    fn observe_records(&self, metrics: &Metrics, shown: &mut BTreeMap<String, bool>) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let (mut records, mut bytes, mut withdrawals) = (0, 0, 0);
        self.cache.read(|index| {
            for (cluster, usage) in index.usages() {
                records += usage.records;
                bytes += usage.bytes;
                withdrawals += usage.withdrawals;
                let member = Member { cluster: cluster.to_string() };
                metrics.exports.get_or_create(&member).set(count(usage.exports));
                shown.insert(member.cluster, true);
            }
        });
        metrics.records.set(count(records));
        metrics.record_bytes.set(count(bytes));
        metrics.withdrawals.set(count(withdrawals));
    }

    fn observe_sessions(&self, metrics: &Metrics, shown: &mut BTreeMap<String, bool>, revision: Revision, late: u64) {
        let sessions = self.registry.list(Instant::now(), revision);
        let mut slowest: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let (mut lagging, mut waiting) = (0, 0);
        for session in sessions {
            lagging += i64::from(session.unacknowledged_ms > late);
            waiting += session.answers_waiting;
            let worst = slowest.entry(session.cluster).or_default();
            *worst = (worst.0.max(session.unacknowledged_ms), worst.1.max(session.behind));
        }
        metrics.lagging.set(lagging);
        metrics.answers_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        // A cluster whose last session ended is not slow, but gone: `clusters_connected` tells.
        for (cluster, (milliseconds, behind)) in slowest {
            let member = Member { cluster };
            metrics.lag_seconds.get_or_create(&member).set(milliseconds as f64 / 1000.0);
            metrics.lag_revisions.get_or_create(&member).set(i64::try_from(behind).unwrap_or(i64::MAX));
            shown.insert(member.cluster, true);
        }
    }
}
