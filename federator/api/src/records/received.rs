//! What a receiver does with what it is told: whom to believe, what to let go of, and when to ask for everything again.
//!
//! ```text
//!   told ─► apply ─► newer: held ─────────┐
//!                └─► older: kept aside ───┤
//!                                         ├─► the owner's heads agree with what was told? ─► the rest goes, the older counts
//!   complete, or a late word ─► settle ───┘
//!                                         └─► they differ, for long ─► a snapshot, ever more rarely
//! ```
//!
//! Pure: control-planes and the simulation of the federation run the same rules. Nothing goes but by the owner's signed
//! heads, so a federator that lies, lags or was set back can make a receiver ask again, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use federation::{ClusterName, Namespace, RecordKey};

use crate::federation::v1::ClusterLiveness;

use super::{Applied, Comparison, HeadScope, Reconciled, RecordSet};
use crate::verify::VerifiedStatement;

/// Older words that are kept aside for one cluster, at most: a cluster that was set back further comes again with the next
/// snapshots.
const MAX_OLDER: usize = 10_000;

/// What a receiver puts up with.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A difference from an owner's heads that lasts so long is not the network's: only a snapshot can tell why. Each one
    /// that did not help doubles the time to the next.
    pub first: Duration,
    /// The longest time between two of them: what an owner that lies about its own records costs.
    pub longest: Duration,
    /// More withdrawals of one cluster are forgotten, where its heads protect their keys.
    pub withdrawals: usize,
}

/// What the federation knows of a cluster's session. Nothing is believed or let go of for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Its lease holds.
    pub connected: bool,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
    /// The revision it last said it had applied.
    pub applied_revision: u64,
}

/// A cluster whose records differed lately.
#[derive(Clone, Copy, Debug)]
struct Lasting {
    /// When it has lasted long enough; `None` while nothing differs.
    due: Option<Instant>,
    wait: Duration,
    /// Forgotten when nothing has differed until then.
    until: Instant,
}

/// The records that a receiver holds, and how they relate to what it was told.
#[derive(Clone, Debug)]
pub struct Received {
    records: RecordSet,
    /// Keys that came since a session without resumption began: what the federator has.
    told: BTreeMap<ClusterName, BTreeSet<RecordKey>>,
    /// Words that came since then and are older than what is held.
    older: BTreeMap<ClusterName, BTreeMap<RecordKey, VerifiedStatement>>,
    /// Clusters whose heads came older than they are held: the federation was set back, or hides something.
    set_back: BTreeSet<ClusterName>,
    /// Namespaces all of whose records were told; `None` before the first snapshot is complete.
    covered: Option<BTreeSet<Namespace>>,
    touched: BTreeSet<ClusterName>,
    differing: BTreeMap<ClusterName, Vec<HeadScope>>,
    lasting: BTreeMap<ClusterName, Lasting>,
    liveness: BTreeMap<ClusterName, Liveness>,
    patience: Patience,
}

impl Received {
    /// Nothing is held.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            records: RecordSet::new(),
            told: BTreeMap::new(),
            older: BTreeMap::new(),
            set_back: BTreeSet::new(),
            covered: None,
            touched: BTreeSet::new(),
            differing: BTreeMap::new(),
            lasting: BTreeMap::new(),
            liveness: BTreeMap::new(),
            patience,
        }
    }

    /// What is held.
    #[must_use]
    pub fn records(&self) -> &RecordSet {
        &self.records
    }

    /// What was [applied](Self::apply) so far came from this receiver's own disk. Where heads agree with it, no older word
    /// counts.
    pub fn restored(&mut self) {
        for cluster in std::mem::take(&mut self.touched) {
            for scope in self.records.scopes(&cluster) {
                self.records.forget_withdrawals(&cluster, &scope);
            }
        }
    }

    /// A session begins: it goes on where another one ended, or with a snapshot.
    pub fn session_begins(&mut self, resumed: bool) {
        if !resumed {
            self.told.clear();
            self.older.clear();
            self.set_back.clear();
            self.covered = None;
            self.differing.clear();
        }
    }

    /// Takes a verified statement; what follows from it, [`settle`](Self::settle) says.
    pub fn apply(&mut self, statement: VerifiedStatement) -> Applied {
        let (cluster, key) = (statement.cluster.clone(), statement.key.clone());
        let applied = self.records.check(&statement);
        match applied {
            Applied::New | Applied::Same => {
                if let Some(older) = self.older.get_mut(&cluster) {
                    older.remove(&key);
                }
                if key == RecordKey::Heads {
                    self.set_back.remove(&cluster);
                }
                self.records.apply(statement);
            }
            Applied::Stale if key == RecordKey::Heads => {
                self.set_back.insert(cluster.clone());
            }
            Applied::Stale => {
                let older = self.older.entry(cluster.clone()).or_default();
                if older.len() < MAX_OLDER || older.contains_key(&key) {
                    older.insert(key.clone(), statement);
                }
            }
            Applied::Equivocation => return applied,
        }
        self.told.entry(cluster.clone()).or_default().insert(key);
        self.touched.insert(cluster);
        applied
    }

    /// Acts on what came since the last call: heads may come later than what they are about, and the other way round. While
    /// a snapshot is on its way, its end is waited for. Returns what changed by it.
    pub fn settle(&mut self) -> Vec<(ClusterName, RecordKey)> {
        let touched = std::mem::take(&mut self.touched);
        let mut changed = Vec::new();
        if self.covered.is_none() {
            return changed;
        }
        for cluster in &touched {
            for scope in self.covered_scopes(cluster) {
                changed.extend(self.settle_scope(cluster, &scope));
            }
        }
        changed
    }

    /// The session covers these namespaces, and no others any more.
    pub fn covers(&mut self, namespaces: &BTreeSet<Namespace>) {
        if let Some(covered) = &mut self.covered {
            covered.clone_from(namespaces);
        }
    }

    /// All records of namespaces have come: lets go of what they lacked, where the owners' heads agree.
    pub fn complete(&mut self, namespaces: &[Namespace]) -> Vec<(ClusterName, RecordKey)> {
        self.covered.get_or_insert_default().extend(namespaces.iter().cloned());
        self.touched.extend(self.records.clusters().cloned());
        self.settle()
    }

    /// Compares everything with the owners' heads: what memberships that were replaced have said goes too.
    pub fn check(&mut self) -> Vec<(ClusterName, RecordKey)> {
        let mut changed = Vec::new();
        self.differing.clear();
        for cluster in self.records.clusters().cloned().collect::<Vec<_>>() {
            let mut differing = Vec::new();
            for scope in self.records.scopes(&cluster) {
                changed.extend(self.dropped(&cluster, |records| records.drop_replaced(&cluster, &scope)));
                if self.is_covered(&scope) && self.records.compare(&cluster, &scope) == Comparison::Differs {
                    differing.push(scope);
                }
            }
            if !differing.is_empty() || self.set_back.contains(&cluster) {
                self.differing.insert(cluster.clone(), differing);
            }
            if self.records.of_cluster(&cluster).filter(|it| !it.is_live()).count() > self.patience.withdrawals {
                for scope in self.covered_scopes(&cluster) {
                    self.records.forget_withdrawals(&cluster, &scope);
                }
            }
        }
        changed
    }

    /// The scopes of a cluster that differed from its heads when they were last [compared](Self::check).
    #[must_use]
    pub fn differing(&self, cluster: &ClusterName) -> &[HeadScope] {
        self.differing.get(cluster).map_or(&[], Vec::as_slice)
    }

    /// The newest heads that the federation told of a cluster are older than those that are held: it was set back, or hides
    /// something.
    #[must_use]
    pub fn was_set_back(&self, cluster: &ClusterName) -> bool {
        self.set_back.contains(cluster)
    }

    /// Whether something has differed for so long that the session must begin again, with a snapshot: news alone do not say
    /// what is missing. To be asked after [`check`](Self::check).
    pub fn needs_a_snapshot(&mut self, now: Instant) -> bool {
        let Patience { first, longest, .. } = self.patience;
        let mut needs = false;
        for cluster in self.differing.keys() {
            let it = self.lasting.entry(cluster.clone()).or_insert(Lasting { due: None, wait: first, until: now });
            if *it.due.get_or_insert(now + it.wait) <= now {
                needs = true;
                it.wait = (it.wait * 2).min(longest);
                it.due = Some(now + it.wait);
            }
        }
        self.lasting.retain(|cluster, it| {
            if !self.differing.contains_key(cluster) && it.due.take().is_some() {
                it.until = now + it.wait;
            }
            it.due.is_some() || now < it.until
        });
        needs
    }

    /// Takes the federation's word on the clusters' sessions. Returns who was lost or came back.
    pub fn set_liveness(&mut self, clusters: &[ClusterLiveness]) -> BTreeSet<ClusterName> {
        let mut changed = BTreeSet::new();
        for it in clusters {
            let Ok(cluster) = it.cluster.parse::<ClusterName>() else { continue };
            let liveness =
                Liveness { connected: it.connected, since_ms: it.since_ms, applied_revision: it.applied_revision };
            let before = self.liveness.insert(cluster.clone(), liveness);
            if before.is_none_or(|before| before.connected != it.connected) {
                changed.insert(cluster);
            }
        }
        changed
    }

    /// A cluster's session, as far as the federation has said.
    #[must_use]
    pub fn liveness(&self, cluster: &ClusterName) -> Option<Liveness> {
        self.liveness.get(cluster).copied()
    }

    /// The federation has lost touch with it. What is not known is not suspected.
    #[must_use]
    pub fn suspects(&self, cluster: &ClusterName) -> bool {
        self.liveness(cluster).is_some_and(|liveness| !liveness.connected)
    }

    /// Drops what memberships up to and including a generation have said: an eviction, or a departure.
    pub fn evict(&mut self, cluster: &ClusterName, through: u64) -> Vec<VerifiedStatement> {
        if let Some(older) = self.older.get_mut(cluster) {
            older.retain(|_, statement| statement.generation > through);
        }
        let dropped = self.records.evict(cluster, through);
        if self.records.of_cluster(cluster).next().is_none() {
            self.set_back.remove(cluster);
            self.differing.remove(cluster);
        }
        dropped
    }

    fn is_covered(&self, scope: &HeadScope) -> bool {
        self.covered.as_ref().is_some_and(|covered| match scope {
            HeadScope::Namespace(namespace) => covered.contains(namespace),
            HeadScope::Cluster => true,
        })
    }

    fn covered_scopes(&self, cluster: &ClusterName) -> Vec<HeadScope> {
        self.records.scopes(cluster).into_iter().filter(|scope| self.is_covered(scope)).collect()
    }

    fn settle_scope(&mut self, cluster: &ClusterName, scope: &HeadScope) -> Vec<(ClusterName, RecordKey)> {
        let (nothing, none) = (BTreeSet::new(), BTreeMap::new());
        let told = self.told.get(cluster).unwrap_or(&nothing);
        let older = self.older.get(cluster).unwrap_or(&none);
        let Reconciled::Dropped(keys) = self.records.settle(cluster, scope, told, older) else {
            return self.dropped(cluster, |records| records.drop_replaced(cluster, scope));
        };
        if let Some(older) = self.older.get_mut(cluster) {
            older.retain(|key, _| HeadScope::of(key).as_ref() != Some(scope));
        }
        keys.into_iter().map(|key| (cluster.clone(), key)).collect()
    }

    fn dropped(
        &mut self,
        cluster: &ClusterName,
        drop: impl FnOnce(&mut RecordSet) -> Reconciled,
    ) -> Vec<(ClusterName, RecordKey)> {
        match drop(&mut self.records) {
            Reconciled::Dropped(keys) => keys.into_iter().map(|key| (cluster.clone(), key)).collect(),
            Reconciled::Kept => Vec::new(),
        }
    }
}
