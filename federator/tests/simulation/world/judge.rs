//! What must hold, while it goes on and in the end.

use std::collections::BTreeSet;

use federation::{ClusterName, RecordKey};
use federation_api::records::RecordSet;

use super::World;
use crate::checks::{Check, Violation};
use crate::keys::{CLUSTERS, name, number};
use crate::receiver::Held;

impl World {
    /// Nobody lets go of a word that is the last its owner said on the key, and means.
    pub(super) fn lost_nothing(&self, receiver: usize, before: &Held) -> Result<(), Violation> {
        let receiver = &self.clusters[receiver];
        let now = receiver.held();
        for ((owner, key), word) in before {
            if now.get(&(owner.clone(), key.clone())) == Some(word) || receiver.denied.evicts(owner, word.0.0) {
                continue;
            }
            let last = self.last.get(&(number(owner), key.to_string())) == Some(&word.1);
            if last && self.clusters[number(owner)].position(key) == Some(word.0) {
                let text = format!("{} let go of {key} at {:?}, which {owner} exports", receiver.name(), word.0);
                return Err(Violation { check: Check::NoLostExport, text });
            }
        }
        Ok(())
    }

    /// A write by somebody of whom the replica knows that it is shut out.
    pub(super) fn may_write(&self, cluster: usize, replica: usize) -> Result<(), Violation> {
        if self.replicas[replica].members.member(&name(cluster)).is_none() {
            let text = format!("{} is shut out and writes", name(cluster));
            return Err(Violation { check: Check::CutOff, text });
        }
        Ok(())
    }

    /// Everybody suspects who is away, and holds what it has said.
    pub(super) fn away_is_known(&self) -> Result<(), Violation> {
        let Some((away, held)) = &self.away else { return Ok(()) };
        for receiver in self.clusters.iter().filter(|it| it.number != *away && !it.evicted) {
            if self.clusters[*away].evicted {
                continue;
            }
            let of_it = held[receiver.number].iter().filter(|((owner, _), _)| *owner == name(*away));
            let of_it: Held = of_it.map(|(key, word)| (key.clone(), word.clone())).collect();
            self.lost_nothing(receiver.number, &of_it)?;
            if receiver.connection.is_some() && !receiver.received.suspects(&name(*away)) {
                let text = format!("{} does not suspect {}, which is away", receiver.name(), name(*away));
                return Err(Violation { check: Check::Suspicion, text });
            }
        }
        Ok(())
    }

    /// When the faults are long over.
    pub(super) fn converged(&self) -> Result<(), Violation> {
        for owner in &self.clusters {
            for receiver in self.clusters.iter().filter(|it| it.number != owner.number && !it.evicted) {
                self.nothing_of_evicted(&owner.name(), receiver.received.records())?;
                self.agree(owner.number, receiver.number)?;
                if receiver.received.suspects(&owner.name()) && !owner.evicted {
                    let text = format!("{} suspects {}, which is there", receiver.name(), owner.name());
                    return Err(Violation { check: Check::Suspicion, text });
                }
            }
        }
        self.bounded()
    }

    fn nothing_of_evicted(&self, owner: &ClusterName, records: &RecordSet) -> Result<(), Violation> {
        let held = records.of_cluster(owner).map(|it| it.generation);
        let indexes = self.replicas.iter().flat_map(|replica| replica.index.records());
        let stored = indexes.filter(|it| it.cluster() == owner).map(|it| it.position().0);
        if held.chain(stored).any(|generation| self.denied.evicts(owner, generation)) {
            let text = format!("words of {owner} outlived its eviction");
            return Err(Violation { check: Check::Evicted, text });
        }
        Ok(())
    }

    fn agree(&self, owner: usize, receiver: usize) -> Result<(), Violation> {
        let (owner, receiver) = (&self.clusters[owner], &self.clusters[receiver]);
        let mut wanted = owner.exported();
        wanted.retain(|key, _| key.namespace().is_some_and(|it| receiver.interest.contains(it)));
        let believed = receiver.believed(&owner.name());
        let differs = |key: &&RecordKey| wanted.get(*key) != believed.get(*key);
        let Some(key) = wanted.keys().chain(believed.keys()).find(differs) else { return Ok(()) };
        let stored =
            |key: &str| self.replicas[0].index.record(&owner.name(), key).map(|it| (it.position(), it.is_withdrawn()));
        let held = |key: &RecordKey| {
            let held = receiver.received.records().record(&owner.name(), key);
            held.map(|it| ((it.generation, it.sequence), !it.is_live()))
        };
        let text = format!(
            "{} holds {:?} of {}'s {key} ({:?}, wanted {:?}); stored {:?}, signed {:?}; heads: held {:?}, stored {:?}",
            receiver.name(),
            held(key),
            owner.name(),
            believed.get(key),
            wanted.get(key),
            stored(&key.to_string()),
            owner.position(key),
            held(&RecordKey::Heads),
            stored("heads"),
        );
        Err(Violation { check: Check::Convergence, text })
    }

    fn bounded(&self) -> Result<(), Violation> {
        let live = self.clusters.iter().flat_map(|owner| owner.exported().into_keys().map(|key| (owner.number, key)));
        let live = live.collect::<BTreeSet<_>>().len();
        for (number, replica) in self.replicas.iter().enumerate() {
            let records = replica.index.len();
            if records > live + 2 * CLUSTERS {
                let text = format!("replica {number} keeps {records} records of {live} live ones");
                return Err(Violation { check: Check::BoundedMemory, text });
            }
        }
        Ok(())
    }
}
