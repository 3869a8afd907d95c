//! A receiver's set of records: the newest word of each cluster on each key, and whether something is withheld.
//!
//! A record is never taken back by being absent. It goes by a signed withdrawal, by an eviction, or when the owner's
//! signed [heads](Head) say that it is gone. A lower sequence replaces a higher one in one case only: newer heads of the
//! owner list just that, since its state and the federation's were both set back.

mod heads;
mod received;

use std::collections::{BTreeMap, BTreeSet};

use federation::{ClusterName, Export, Gateway, RecordKey, ServiceId};

use crate::payload::Payload;
use crate::verify::VerifiedStatement;

pub use heads::{Head, HeadScope};
pub use received::{Liveness, Patience, Received};

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Newer than what was there: taken.
    New,
    /// Known already.
    Same,
    /// Older than what is there: a replay or a late copy. Ignored.
    Stale,
    /// The same generation and sequence with other content: refused, to be reported.
    Equivocation,
}

/// How held records relate to their owner's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// All live records are held, and nothing else.
    Agrees,
    /// A held record is newer than the heads: the next heads will tell.
    Ahead,
    /// A record or a withdrawal is missing. When this lasts, somebody withholds it.
    Differs,
    /// The owner has sent no heads yet.
    Unknown,
}

/// What [`RecordSet::reconcile`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// The heads agree that these are gone: dropped; or that an older word on them counts: set back.
    Dropped(Vec<RecordKey>),
    /// They do not: everything is kept.
    Kept,
}

/// A point in a cluster's statements.
type Position = (u64, u64);

#[derive(Clone, Debug, Default)]
struct ClusterRecords {
    records: BTreeMap<RecordKey, VerifiedStatement>,
    /// Nothing up to here is news, whether its key is held or not. Set where the owner's heads agreed with what was held.
    floors: BTreeMap<HeadScope, Position>,
}

impl ClusterRecords {
    /// The position of the heads, where they do not list the scope.
    fn unlisted(&self, scope: &HeadScope) -> Option<Position> {
        let statement = self.records.get(&RecordKey::Heads)?;
        let Payload::Heads(heads) = &statement.payload else { return None };
        (heads.iter().all(|head| head.scope != *scope)).then(|| statement.position())
    }
}

/// The records of all clusters.
#[derive(Clone, Debug, Default)]
pub struct RecordSet {
    clusters: BTreeMap<ClusterName, ClusterRecords>,
}

impl VerifiedStatement {
    fn position(&self) -> Position {
        (self.generation, self.sequence)
    }

    /// Whether it says something other than that the key has no value.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !matches!(self.payload, Payload::Withdrawal)
    }
}

impl RecordSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What [`Self::apply`] would answer.
    #[must_use]
    pub fn check(&self, statement: &VerifiedStatement) -> Applied {
        let Some(records) = self.clusters.get(&statement.cluster) else { return Applied::New };
        let position = statement.position();
        let scope = HeadScope::of(&statement.key);
        let floor = scope.as_ref().and_then(|scope| records.floors.get(scope));
        let news = if floor.is_some_and(|floor| position <= *floor) { Applied::Stale } else { Applied::New };
        let Some(held) = records.records.get(&statement.key) else {
            // A scope that heads do not list has no value that is older than they, whether a floor is known (a restart
            // forgets it where nothing is left) or not.
            let unlisted =
                || scope.is_some_and(|scope| records.unlisted(&scope).is_some_and(|heads| position <= heads));
            return if statement.is_live() && unlisted() { Applied::Stale } else { news };
        };
        match position.cmp(&held.position()) {
            std::cmp::Ordering::Greater => news,
            std::cmp::Ordering::Less => Applied::Stale,
            std::cmp::Ordering::Equal if statement.signed.message == held.signed.message => Applied::Same,
            std::cmp::Ordering::Equal => Applied::Equivocation,
        }
    }

    /// Takes a statement when it is newer than what is held for its key.
    pub fn apply(&mut self, statement: VerifiedStatement) -> Applied {
        let applied = self.check(&statement);
        if applied == Applied::New {
            let records = self.clusters.entry(statement.cluster.clone()).or_default();
            records.records.insert(statement.key.clone(), statement);
        }
        applied
    }

    /// Clusters with at least one record.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        self.clusters.keys()
    }

    /// All that is held of a cluster, withdrawals among it, in the order of keys.
    pub fn of_cluster(&self, cluster: &ClusterName) -> impl Iterator<Item = &VerifiedStatement> {
        self.clusters.get(cluster).into_iter().flat_map(|records| records.records.values())
    }

    /// All that is held.
    pub fn iter(&self) -> impl Iterator<Item = &VerifiedStatement> {
        self.clusters.values().flat_map(|records| records.records.values())
    }

    /// The newest statement on a key, which may be a withdrawal.
    #[must_use]
    pub fn record(&self, cluster: &ClusterName, key: &RecordKey) -> Option<&VerifiedStatement> {
        self.clusters.get(cluster)?.records.get(key)
    }

    /// Who exports a service, and how.
    pub fn exports<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = (&'a ClusterName, &'a Export)> {
        let key = RecordKey::Export(service.clone());
        self.clusters.iter().filter_map(move |(cluster, records)| match &records.records.get(&key)?.payload {
            Payload::Export(export) => Some((cluster, export.as_ref())),
            _ => None,
        })
    }

    /// Every service that some cluster exports.
    #[must_use]
    pub fn services(&self) -> BTreeSet<&ServiceId> {
        let service = |statement| match statement {
            &VerifiedStatement { key: RecordKey::Export(ref service), payload: Payload::Export(_), .. } => {
                Some(service)
            }
            _ => None,
        };
        self.iter().filter_map(service).collect()
    }

    /// A cluster's gateways.
    #[must_use]
    pub fn gateways(&self, cluster: &ClusterName) -> &[Gateway] {
        match self.record(cluster, &RecordKey::Gateways).map(|statement| &statement.payload) {
            Some(Payload::Gateways(gateways)) => gateways,
            _ => &[],
        }
    }

    /// The heads of what is live: what a cluster says of its own records.
    #[must_use]
    pub fn heads(&self, cluster: &ClusterName) -> Vec<Head> {
        let scopes: BTreeSet<_> =
            self.of_cluster(cluster).filter(|it| it.is_live()).filter_map(|it| HeadScope::of(&it.key)).collect();
        scopes.into_iter().map(|scope| self.head(cluster, &scope)).collect()
    }

    fn head(&self, cluster: &ClusterName, scope: &HeadScope) -> Head {
        let live = self.in_scope(cluster, scope).filter(|it| it.is_live());
        let lines: Vec<_> = live.map(|it| (&it.key, it.sequence)).collect();
        Head::of(scope.clone(), lines)
    }

    fn in_scope<'a>(
        &'a self,
        cluster: &ClusterName,
        scope: &'a HeadScope,
    ) -> impl Iterator<Item = &'a VerifiedStatement> {
        self.of_cluster(cluster).filter(move |it| HeadScope::of(&it.key).as_ref() == Some(scope))
    }

    /// The scopes that a cluster's records, or its heads, are about.
    #[must_use]
    pub fn scopes(&self, cluster: &ClusterName) -> BTreeSet<HeadScope> {
        let listed = self.record(cluster, &RecordKey::Heads).into_iter().flat_map(|it| match &it.payload {
            Payload::Heads(heads) => heads.as_slice(),
            _ => &[],
        });
        let held = self.of_cluster(cluster).filter_map(|it| HeadScope::of(&it.key));
        listed.map(|head| head.scope.clone()).chain(held).collect()
    }

    /// Holds what is held of a scope against the owner's newest heads.
    #[must_use]
    pub fn compare(&self, cluster: &ClusterName, scope: &HeadScope) -> Comparison {
        let Some((position, said)) = self.said(cluster, scope) else { return Comparison::Unknown };
        if self.head(cluster, scope) == said {
            return Comparison::Agrees;
        }
        let ahead = self.in_scope(cluster, scope).any(|it| it.position() > position);
        if ahead { Comparison::Ahead } else { Comparison::Differs }
    }

    /// The owner's word on a scope and when it was said. A scope that the heads do not list has no live records.
    fn said(&self, cluster: &ClusterName, scope: &HeadScope) -> Option<(Position, Head)> {
        let statement = self.record(cluster, &RecordKey::Heads)?;
        let Payload::Heads(heads) = &statement.payload else { return None };
        let head = heads.iter().find(|head| head.scope == *scope).cloned();
        Some((statement.position(), head.unwrap_or_else(|| Head::of(scope.clone(), []))))
    }

    /// After a snapshot of a scope that had only the keys `present`: drops the others if, and only if, the owner's heads
    /// agree that exactly the present ones are live. What is newer than the heads stays.
    pub fn reconcile(&mut self, cluster: &ClusterName, scope: &HeadScope, present: &BTreeSet<RecordKey>) -> Reconciled {
        self.settle(cluster, scope, present, &BTreeMap::new())
    }

    /// As [`reconcile`](Self::reconcile), where some of the keys came with `older` words than are held. If it is these that
    /// the heads list, then they are the owner's newest word on what it says, and replace what is held.
    pub fn settle(
        &mut self,
        cluster: &ClusterName,
        scope: &HeadScope,
        present: &BTreeSet<RecordKey>,
        older: &BTreeMap<RecordKey, VerifiedStatement>,
    ) -> Reconciled {
        let Some((position, said)) = self.said(cluster, scope) else { return Reconciled::Kept };
        // Heads have no say on words that are newer than they.
        let covered = |it: &VerifiedStatement| it.generation == position.0 && it.position() <= position;
        let overruled = |key| self.record(cluster, key).is_none_or(|held| held.position() <= position);
        let older: BTreeMap<_, _> = older.iter().filter(|(key, it)| covered(it) && overruled(key)).collect();
        let keys = present.iter().filter(|key| HeadScope::of(key).as_ref() == Some(scope));
        let word = |key| older.get(key).copied().or_else(|| self.record(cluster, key));
        let words: Vec<_> = keys.filter_map(word).collect();
        let live = words.iter().filter(|it| it.is_live()).map(|it| (&it.key, it.sequence));
        if Head::of(scope.clone(), live) != said {
            return Reconciled::Kept;
        }
        let back = words.into_iter().filter(|it| older.contains_key(&it.key)).cloned().collect::<Vec<_>>();
        let gone = |it: &VerifiedStatement| it.is_live() && it.position() <= position && !present.contains(&it.key);
        let mut changed = self.forget(cluster, scope, position, gone);
        for statement in back {
            changed.push(statement.key.clone());
            let records = self.clusters.entry(cluster.clone()).or_default();
            records.records.insert(statement.key.clone(), statement);
        }
        Reconciled::Dropped(changed)
    }

    /// Drops the records of memberships that the one whose heads are held has replaced, if these heads agree.
    pub fn drop_replaced(&mut self, cluster: &ClusterName, scope: &HeadScope) -> Reconciled {
        let Some(((generation, _), _)) = self.said(cluster, scope) else { return Reconciled::Kept };
        let current = self.in_scope(cluster, scope).filter(|it| it.generation == generation);
        let current = current.map(|it| it.key.clone()).collect();
        self.reconcile(cluster, scope, &current)
    }

    /// Forgets the withdrawals of a scope where the owner's heads agree with what is held: from then on the heads'
    /// sequence protects those keys from replays. Returns how many were forgotten.
    pub fn forget_withdrawals(&mut self, cluster: &ClusterName, scope: &HeadScope) -> usize {
        let Some((position, _)) = self.said(cluster, scope) else { return 0 };
        if self.compare(cluster, scope) != Comparison::Agrees {
            return 0;
        }
        self.forget(cluster, scope, position, |it| !it.is_live() && it.position() <= position).len()
    }

    /// Only where heads agreed, and only what is not newer than they: `position` then stands for the keys forgotten.
    fn forget(
        &mut self,
        cluster: &ClusterName,
        scope: &HeadScope,
        position: Position,
        gone: impl Fn(&VerifiedStatement) -> bool,
    ) -> Vec<RecordKey> {
        let Some(records) = self.clusters.get_mut(cluster) else { return Vec::new() };
        let in_scope = |key: &RecordKey| HeadScope::of(key).as_ref() == Some(scope);
        let keys = records.records.extract_if(.., |key, it| in_scope(key) && gone(it)).map(|(key, _)| key).collect();
        let floor = records.floors.entry(scope.clone()).or_default();
        *floor = position.max(*floor);
        keys
    }

    /// Drops what memberships up to and including a generation have said: an eviction.
    pub fn evict(&mut self, cluster: &ClusterName, through: u64) -> Vec<VerifiedStatement> {
        let Some(records) = self.clusters.get_mut(cluster) else { return Vec::new() };
        let dropped = records.records.extract_if(.., |_, statement| statement.generation <= through);
        let dropped = dropped.map(|(_, statement)| statement).collect();
        if records.records.is_empty() {
            self.clusters.remove(cluster);
        }
        dropped
    }
}
