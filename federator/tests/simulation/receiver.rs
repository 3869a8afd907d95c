//! The receiving side of a cluster: what it makes of what it is told.

use std::collections::BTreeMap;

use bytes::Bytes;
use federation::{ClusterName, Namespace, RecordKey};
use federation_api::federation::v1::ClusterLiveness;
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::records::Applied;
use federation_api::verify::{DenyList, VerifiedStatement};
use federation_store::Revision;

use super::checks::{Check, Violation};
use super::cluster::{Cluster, Cursor, Moment};
use super::keys::{CLUSTERS, verify};
use super::world::Mutation;

pub(crate) type Position = (u64, u64);

/// A word that was believed, and its bytes.
pub(crate) type Word = (Position, Bytes);

/// The exports that are held, each with its word.
pub(crate) type Held = BTreeMap<(ClusterName, RecordKey), Word>;

impl Cluster {
    pub(crate) fn changes(
        &mut self,
        incarnation: &str,
        revision: Revision,
        records: &[Signed],
        generations: &[usize; CLUSTERS],
        mutation: Mutation,
    ) -> Result<(), Violation> {
        for signed in records {
            let Some(statement) = verify(signed, generations) else { continue };
            if statement.cluster == self.name() {
                if mutation != Mutation::ForgetForGood {
                    self.publications.told(signed.clone());
                }
                continue;
            }
            if self.denied.evicts(&statement.cluster, statement.generation) {
                continue;
            }
            let mut applied = self.received.apply((*statement).clone());
            if mutation == Mutation::BelieveOldWords && applied == Applied::Stale {
                self.received.evict(&statement.cluster, u64::MAX);
                applied = self.received.apply((*statement).clone());
            }
            if applied == Applied::New {
                let (own, cluster, key) = (self.name(), statement.cluster.clone(), statement.key.clone());
                let position = (statement.generation, statement.sequence);
                let highest = self.highest.entry((cluster.clone(), key.clone())).or_default();
                // A withdrawal takes nothing back: where it is news nothing newer is held, and a receiver that restarts may
                // hear one again that it had forgotten since the heads spoke for it.
                if statement.is_live() && position <= *highest {
                    let heads = self.received.records().record(&cluster, &RecordKey::Heads);
                    let heads = heads.map(|heads| (heads.generation, heads.sequence, heads.payload.clone()));
                    let text = format!(
                        "{own} took {key} of {cluster} back to {position:?} from {highest:?}; heads: {heads:?}"
                    );
                    return Err(Violation { check: Check::NoResurrection, text });
                }
                *highest = position.max(*highest);
            }
        }
        if mutation != Mutation::SettleWithSnapshotsOnly {
            let changed = self.received.settle();
            self.note_set_back(changed)?;
        }
        self.reached(incarnation, revision);
        Ok(())
    }

    /// Words that an owner's newer heads have brought back count from then on. Heads that are not above what they replace
    /// may not.
    fn note_set_back(&mut self, changed: Vec<(ClusterName, RecordKey)>) -> Result<(), Violation> {
        for (cluster, key) in changed {
            let records = self.received.records();
            let position = |key| records.record(&cluster, key).map(|held| (held.generation, held.sequence));
            let (Some(back), heads) = (position(&key), position(&RecordKey::Heads)) else { continue };
            let before = self.highest.insert((cluster.clone(), key.clone()), back);
            if heads < before {
                let text = format!("{} went from {before:?} of {cluster}'s {key} back to {back:?}", self.name());
                return Err(Violation { check: Check::NoResurrection, text });
            }
        }
        Ok(())
    }

    pub(crate) fn complete(
        &mut self,
        incarnation: &str,
        revision: Revision,
        namespaces: &[String],
    ) -> Result<(), Violation> {
        let namespaces: Vec<Namespace> = namespaces.iter().map(|name| name.parse().unwrap()).collect();
        let changed = self.received.complete(&namespaces);
        self.note_set_back(changed)?;
        let wanted = namespaces.into_iter().filter(|namespace| self.told_interest.contains(namespace));
        self.covered.get_or_insert_default().extend(wanted);
        self.reached(incarnation, revision);
        Ok(())
    }

    fn reached(&mut self, incarnation: &str, revision: Revision) {
        if let Some(namespaces) = self.covered.clone() {
            self.received.covers(&namespaces);
            if !self.anew {
                self.cursor = Cursor { incarnation: incarnation.to_owned(), revision, namespaces };
            }
        }
    }

    /// A heartbeat: who has applied everything it was told comes along. Returns whether the next session is to begin with a
    /// snapshot, at once.
    pub(crate) fn come_along(&mut self, revision: Revision, now: Moment, mutation: Mutation) -> bool {
        if self.covered.is_some() && !self.anew {
            self.cursor.revision = self.cursor.revision.max(revision);
        }
        self.received.check();
        if self.anew || mutation.never_asks_again() || !self.received.needs_a_snapshot(now.instant) {
            return false;
        }
        self.anew = true;
        self.cursor = Cursor::default();
        true
    }

    /// The federation's word on sessions.
    pub(crate) fn heard_of(&mut self, clusters: &[ClusterLiveness], mutation: Mutation) {
        self.received.set_liveness(clusters);
        for lost in clusters.iter().filter(|it| mutation == Mutation::DropTheLost && !it.connected) {
            self.received.evict(&lost.cluster.parse().unwrap(), u64::MAX);
        }
    }

    /// The operator's word on who is shut out.
    pub(crate) fn deny(&mut self, list: &DenyList) {
        if list.epoch > self.denied.epoch {
            self.denied = list.clone();
            for (cluster, through) in list.evictions.clone() {
                self.received.evict(&cluster, through);
            }
        }
    }

    /// What it holds of a cluster's exports, believed or not.
    pub(crate) fn held(&self) -> Held {
        let live = self.received.records().iter().filter(|it| it.is_live() && it.key != RecordKey::Heads);
        let word = |it: &VerifiedStatement| ((it.generation, it.sequence), it.signed.message.clone());
        live.map(|it| ((it.cluster.clone(), it.key.clone()), word(it))).collect()
    }

    /// What it believes of another cluster in the namespaces it has.
    pub(crate) fn believed(&self, cluster: &ClusterName) -> BTreeMap<RecordKey, String> {
        let exports =
            self.received.records().of_cluster(cluster).filter(|it| {
                it.is_live() && it.key.namespace().is_some_and(|namespace| self.interest.contains(namespace))
            });
        let version = |payload: &Payload| match payload {
            Payload::Export(export) => export.labels.get("version").cloned().unwrap_or_default(),
            _ => String::new(),
        };
        exports.filter(|_| !self.denied.quarantines(cluster)).map(|it| (it.key.clone(), version(&it.payload))).collect()
    }
}
