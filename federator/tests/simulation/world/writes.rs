//! How replicas write what clusters publish.

use std::time::Duration;

use federation_api::federation::v1::SessionRequest;
use federation_api::record::v1::{Signed, Statement};
use federation_store::{Committed, Operation, Transaction};
use federator::admission::{Epoch, Offer, Plan, fitting, plan};
use federator::index::parse_store_key;
use federator::protocol::{Heard, Protocol};
use federator::quota::Bucket;
use prost::Message as _;
use rand::RngExt as _;

use super::{Event, Mutation, World};
use crate::checks::{Check, Violation};
use crate::keys::{membership, name, number};

impl World {
    pub(super) fn request(&mut self, id: u64, request: SessionRequest) {
        let deaf = self.mutation == Mutation::ListenToTheDeaf;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(protocol) = &mut connection.protocol else { return };
        if (connection.publishing || protocol.is_full()) && !deaf {
            connection.waiting.push_back(request);
            return;
        }
        let now = self.start + Duration::from_millis(self.now);
        match protocol.hear(request, 100, now) {
            Err(_) => self.cut(id),
            Ok(Heard::Publish(records)) => {
                connection.publishing = true;
                let member = &membership(connection.cluster, connection.generation).member;
                let mut examined: Vec<_> =
                    records.iter().map(|signed| Offer::examine(member, &self.quota, signed.clone())).collect();
                if self.mutation == Mutation::TrustAnySigner {
                    examined = records.into_iter().map(|signed| self.examine_blindly(signed)).collect();
                }
                assert_eq!(fitting(&examined), examined.len());
                self.write(id, examined);
            }
            Ok(_) => {}
        }
        let _ = self.pump(id);
    }

    fn examine_blindly(&self, signed: Signed) -> Offer {
        let statement = Statement::decode(signed.message.clone()).unwrap();
        let speaker = number(&statement.cluster.parse().unwrap());
        Offer::examine(&membership(speaker, self.clusters[speaker].generation).member, &self.quota, signed)
    }

    pub(super) fn write(&mut self, id: u64, offers: Vec<Offer>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let member = &membership(connection.cluster, connection.generation).member;
        let index = &self.replicas[connection.replica].index;
        let bucket = Bucket::full(&self.quota, self.instant());
        let pause = |count| bucket.wait(&self.quota, count);
        let plan = plan(member, connection.epoch.as_ref(), &offers, index, &self.quota, 1_000, pause);
        self.soon(40, Event::Commit(id, Box::new((offers, plan))));
    }

    pub(super) fn commit(&mut self, id: u64, (offers, plan): (Vec<Offer>, Plan)) -> Result<(), Violation> {
        // A transaction that is on its way is applied, whatever became of its session meanwhile.
        let Some(connection) = self.connections.get(&id) else { return Ok(()) };
        let (number, generation) = (connection.cluster, connection.generation);
        let (replica, epoch) = (connection.replica, connection.epoch.clone().unwrap());
        if self.replicas[replica].partitioned {
            self.soon(200, Event::Cut(id));
            return Ok(());
        }
        let committed = match plan.transaction.clone() {
            None => Committed::Done(0),
            Some(mut transaction) => {
                if self.mutation == Mutation::IgnoreEpoch {
                    transaction.expect.retain(|expect| expect.key != epoch.key);
                }
                let committed = self.store.commit(&transaction);
                if let Committed::Done(_) = committed {
                    self.may_write(number, replica)?;
                    self.written(number, generation, &epoch, &transaction)?;
                }
                committed
            }
        };
        self.soon(40, Event::Answer(id, Box::new((offers, plan, committed))));
        Ok(())
    }

    /// Judges what a session has written.
    fn written(
        &mut self,
        number: usize,
        generation: usize,
        epoch: &Epoch,
        done: &Transaction,
    ) -> Result<(), Violation> {
        if self.store.modified(&epoch.key) != epoch.modified {
            return Err(Violation {
                check: Check::Fenced,
                text: format!("an older session of {} wrote", name(number)),
            });
        }
        for operation in &done.operations {
            let Operation::Put { key, value, .. } = operation else { continue };
            let Some((cluster, record)) = parse_store_key(key) else { continue };
            let signed = Signed::decode(value.clone()).unwrap();
            let own = cluster == name(number).as_str() && membership(number, generation).member.verify(&signed).is_ok();
            if !own {
                let text = format!("a session of {} wrote {key}", name(number));
                return Err(Violation { check: Check::NoCrossClusterWrite, text });
            }
            let statement = Statement::decode(signed.message).unwrap();
            let position = (statement.generation, statement.sequence);
            let evicted = self.denied.evicts(&name(number), statement.generation);
            let highest = self.highest.entry((cluster.to_owned(), record)).or_default();
            // What an evicted membership has said counts for nobody any more. A replica that knows of the eviction deletes
            // it, another one that does not yet may store it once more; that nothing is left of it is for `Evicted` to say.
            if position <= *highest && !evicted {
                let text = format!("the store took {key} back to {position:?} from {highest:?}");
                return Err(Violation { check: Check::NoResurrection, text });
            }
            *highest = position.max(*highest);
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, id: u64, (offers, plan, committed): (Vec<Offer>, Plan, Committed)) {
        // Now and then the answer is lost: the session ends, and whether it was stored is unknown.
        let lost = self.faulty() && self.random.random_bool(0.03);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if lost {
            self.cut(id);
            return;
        }
        let epoch = connection.epoch.clone().unwrap();
        let results = match committed {
            Committed::Done(revision) => plan.results(&offers, revision),
            Committed::Conflict { key } if key == epoch.key => plan.fenced(&offers),
            Committed::Conflict { .. } => {
                self.soon(60, Event::Retry(id, offers));
                return;
            }
        };
        connection.publishing = false;
        if let Some(protocol) = &mut connection.protocol {
            protocol.published(results);
        }
        self.listen(id);
        let _ = self.pump(id);
    }

    pub(super) fn listen(&mut self, id: u64) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let full = connection.protocol.as_ref().is_none_or(Protocol::is_full);
            if connection.publishing || full {
                return;
            }
            let Some(request) = connection.waiting.pop_front() else { return };
            self.request(id, request);
        }
    }
}
