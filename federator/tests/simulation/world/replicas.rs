//! What replicas do beside writing: sessions, the watch, leases, and what they hear of trust-bundle.

use std::collections::BTreeMap;

use federation_api::federation::v1::session_request::Request;
use federation_api::federation::v1::{ClientHeartbeat, Hello, Presence, Welcome};
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::DenyList;
use federation_store::{Committed, LeaseId, Transaction, layout};
use federator::admission::Epoch;
use federator::collect;
use federator::index::Index;
use federator::liveness::Liveness;
use federator::members::Members;
use federator::protocol::{OUTBOX, Protocol, resumes};
use prost::Message as _;
use rand::RngExt as _;

use super::{AGE, Ear, Event, HEARTBEAT, IN_FLIGHT, Mutation, REPLICAS, TTL, World};
use crate::checks::{Check, Violation};
use crate::keys::{CLUSTERS, members, name, signed};
use crate::store::Store;

pub(super) struct Replica {
    pub(super) index: Index,
    pub(super) incarnation: u64,
    pub(super) up: bool,
    /// It cannot reach the store.
    pub(super) partitioned: bool,
    ages: collect::Ages,
    pub(super) liveness: Liveness,
    pub(super) members: Members,
    /// The list it knows, by its epoch.
    pub(super) denied: DenyList,
    lease: LeaseId,
    /// Publishing sessions here, by their epochs.
    held: BTreeMap<usize, Epoch>,
    /// How often it has died.
    life: u64,
}

impl Replica {
    pub(super) fn new() -> Self {
        Self {
            index: Index::default(),
            incarnation: 0,
            up: true,
            partitioned: false,
            ages: collect::Ages::default(),
            liveness: Liveness::new(),
            members: members(),
            denied: crate::keys::nobody(),
            lease: LeaseId::new(0),
            held: BTreeMap::new(),
            life: 0,
        }
    }

    pub(super) fn die(&mut self) {
        self.up = false;
        self.life += 1;
        self.lease = LeaseId::new(0);
        self.held.clear();
    }

    fn works(&self, store: &Store) -> bool {
        self.up && !self.partitioned && self.incarnation == store.incarnation
    }

    /// Reads everything.
    fn read(&mut self, store: &Store) {
        self.index = read(store);
        let alive = store.contents.iter().filter(|(key, _)| key.starts_with(layout::ALIVE));
        self.liveness.replace(alive.map(|(key, (_, value))| (key.as_str(), value)));
    }
}

impl World {
    pub(super) fn open(&mut self, id: u64, hello: &Hello) {
        let connection = &self.connections[&id];
        let (number, replica) = (connection.cluster, connection.replica);
        let lease = self.replicas[replica].lease;
        let found = &self.replicas[replica];
        // Without a lease a replica lets nobody in.
        if found.partitioned || !self.store.is_kept(lease) || found.members.member(&name(number)).is_none() {
            self.soon(300, Event::Cut(id));
            return;
        }
        let cluster = name(number);
        let (key, revision) = (layout::epoch(cluster.as_str()), self.store.revision);
        let modified = self.store.modified(&key);
        self.trace(|| format!("{cluster} opens {id} at {replica}"));
        let taken = Transaction::new().expecting(&key, modified).put(&key, revision.to_be_bytes().to_vec()).put_leased(
            layout::alive(cluster.as_str()),
            presence(),
            lease,
        );
        let Committed::Done(modified) = self.store.commit(&taken) else { unreachable!("the store answers at once") };
        let epoch = Epoch { key, modified, number: modified };
        self.replicas[replica].held.insert(number, epoch.clone());
        let found = &self.replicas[replica];
        let incarnation = found.incarnation.to_string();
        let mut resumed = resumes(hello, &incarnation, &found.index);
        resumed |= self.mutation == Mutation::ResumeAnywhere && hello.revision > 0;
        let protocol = Protocol::open(cluster, hello, resumed, &found.index, HEARTBEAT, self.instant()).unwrap();
        let welcome = Welcome { version: 1, incarnation: incarnation.clone(), resumed, ..Welcome::default() };
        let delay = self.random.random_range(1..50);
        let connection = self.connections.get_mut(&id).unwrap();
        connection.protocol = Some(protocol);
        connection.epoch = Some(epoch);
        connection.incarnation = incarnation;
        connection.down = self.now + delay;
        let at = connection.down;
        self.at(at, Event::Welcome(id, welcome));
    }

    /// Sends what there is room for.
    pub(super) fn pump(&mut self, id: u64) -> Result<(), Violation> {
        self.listen(id);
        loop {
            let delay = self.random.random_range(1..60);
            let now = self.instant();
            let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
            let Some(protocol) = &mut connection.protocol else { return Ok(()) };
            if protocol.waiting() > OUTBOX {
                let text = format!("{} answers wait for a receiver", protocol.waiting());
                return Err(Violation { check: Check::BoundedMemory, text });
            }
            if connection.in_flight.len() >= IN_FLIGHT {
                return Ok(());
            }
            match protocol.next(&self.replicas[connection.replica].index, now) {
                Err(_) => {
                    self.cut(id);
                    return Ok(());
                }
                Ok(None) => return Ok(()),
                Ok(Some(response)) => {
                    connection.in_flight.push_back(response);
                    connection.down = connection.down.max(self.now + delay) + 1;
                    let at = connection.down;
                    self.at(at, Event::Response(id));
                }
            }
        }
    }

    pub(super) fn beat(&mut self, id: u64) -> Result<(), Violation> {
        let now = self.instant();
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let number = connection.cluster;
        if let Some(protocol) = &mut connection.protocol {
            if !protocol.is_full() {
                let (clusters, last) = self.replicas[connection.replica].liveness.since(connection.told_liveness);
                connection.told_liveness = last;
                if !clusters.is_empty() {
                    protocol.liveness(clusters);
                }
            }
            let listening = !connection.publishing && !protocol.is_full();
            if !listening {
                protocol.heard(now);
            }
            if protocol.timeout(now, 0).is_err() {
                self.cut(id);
                return Ok(());
            }
        }
        let applied_revision = self.clusters[number].cursor.revision;
        self.send(id, Request::Heartbeat(ClientHeartbeat { applied_revision }));
        self.push(number);
        self.soon(500, Event::Beat(id));
        self.pump(id)
    }

    pub(super) fn watch(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        if replica.up && !replica.partitioned {
            if replica.incarnation != self.store.incarnation {
                // It notices that the store has another history, and starts again.
                self.crash(number);
            } else if let Some(batches) = self.store.after(replica.index.revision()) {
                let most = self.random.random_range(1..8);
                for (revision, changes) in batches.take(most) {
                    for (key, value) in changes {
                        let alive = key.starts_with(layout::ALIVE);
                        match value {
                            Some(value) if alive => replica.liveness.put(key, value),
                            Some(value) => replica.index.put(key, *revision, value).unwrap(),
                            None if alive => replica.liveness.lost(key),
                            None => replica.index.remove(key),
                        }
                    }
                    replica.index.reach(*revision);
                }
            } else {
                replica.read(&self.store);
            }
        }
        let ids: Vec<_> = self.connections.iter().filter(|(_, it)| it.replica == number).map(|(id, _)| *id).collect();
        for id in ids {
            let _ = self.pump(id);
        }
        self.soon(150, Event::Watch(number));
    }

    pub(super) fn collect(&mut self, number: usize) {
        self.soon(1_000, Event::Collect(number));
        let now = self.instant();
        let replica = &mut self.replicas[number];
        if !replica.works(&self.store) {
            return;
        }
        replica.ages.note(now, replica.index.revision());
        let old = replica.ages.older_than(now, AGE);
        let mark = self.store.modified(layout::COLLECTED);
        let keep = self.mutation == Mutation::KeepTheEvicted;
        let void = |cluster: &_, generation| !keep && replica.members.void(cluster, generation);
        let planned = collect::plan(&replica.index, void, old, &self.quota, mark);
        let Some(collection) = planned.into_iter().next() else { return };
        let mut transaction = collection.transaction;
        match self.mutation {
            Mutation::CollectWithoutMark => {
                transaction.operations.retain(|operation| operation.key() != layout::COLLECTED);
            }
            Mutation::CollectHeads => {
                let heads = layout::heads(collection.cluster.as_str());
                if transaction.operations.iter().all(|operation| operation.key() != heads) {
                    transaction = transaction.delete(heads);
                }
            }
            _ => {}
        }
        let _ = self.store.commit(&transaction);
    }

    pub(super) fn start_replica(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        replica.liveness = Liveness::new();
        replica.read(&self.store);
        replica.incarnation = self.store.incarnation;
        replica.ages = collect::Ages::default();
        replica.up = true;
        self.hear_of_denied(Ear::Replica(number), self.denied.epoch);
    }

    /// The replica's lease; a new one when it ran out.
    fn lease_of(&mut self, number: usize) -> LeaseId {
        let lease = self.replicas[number].lease;
        if self.store.is_kept(lease) {
            return lease;
        }
        self.next += 1;
        let lease = LeaseId::new(self.next);
        self.replicas[number].lease = lease;
        self.store.keep(lease, self.now);
        lease
    }

    pub(super) fn keep_leases(&mut self) {
        self.at(self.now + TTL / 3, Event::Leases);
        if self.mutation != Mutation::LeaseForever {
            self.store.expire(self.now, TTL);
        }
        for number in 0..REPLICAS {
            if !self.replicas[number].works(&self.store) {
                continue;
            }
            let before = self.replicas[number].lease;
            let lease = self.lease_of(number);
            self.store.keep(lease, self.now);
            if lease == before || self.mutation == Mutation::ForgetTheLease {
                continue;
            }
            for (cluster, epoch) in self.replicas[number].held.clone() {
                let put = Transaction::new().expecting(&epoch.key, epoch.modified);
                // When it conflicts, a newer session has put the key.
                let _ = self.store.commit(&put.put_leased(layout::alive(name(cluster).as_str()), presence(), lease));
            }
        }
    }

    /// A session of a replica has ended: its key is given up when nobody has put it anew for a while.
    /// A replica that died has forgotten it: its lease runs out.
    pub(super) fn released(&mut self, replica: usize, cluster: usize, epoch: &Epoch) {
        let life = self.replicas[replica].life;
        self.at(self.now + TTL, Event::GiveUp { replica, life, cluster, epoch: epoch.number });
    }

    pub(super) fn give_up(&mut self, number: usize, life: u64, cluster: usize, epoch: u64) {
        let replica = &mut self.replicas[number];
        if replica.life != life {
            return;
        }
        if !replica.works(&self.store) {
            self.at(self.now + TTL, Event::GiveUp { replica: number, life, cluster, epoch });
            return;
        }
        let blindly = self.mutation == Mutation::GiveUpBlindly;
        let Some(held) = replica.held.get(&cluster).filter(|held| blindly || held.number == epoch).cloned() else {
            return;
        };
        let mut delete = Transaction::new().delete(layout::alive(name(cluster).as_str()));
        if !blindly {
            delete = delete.expecting(&held.key, held.modified);
            replica.held.remove(&cluster);
        }
        let given = self.store.commit(&delete);
        self.trace(|| format!("{number} gives up {}: {given:?}", name(cluster)));
    }

    /// The operator's list reaches everybody, each in its own time.
    pub(super) fn deny(&mut self, change: impl FnOnce(&mut DenyList)) {
        change(&mut self.denied);
        self.trace(|| format!("shut out: {:?}, evicted: {:?}", self.denied.clusters, self.denied.evictions));
        self.denied.epoch += 1;
        let epoch = self.denied.epoch;
        (0..REPLICAS).for_each(|number| self.soon(500, Event::Denied(Ear::Replica(number), epoch)));
        (0..CLUSTERS).for_each(|number| self.soon(500, Event::Denied(Ear::Cluster(number), epoch)));
    }

    pub(super) fn hear_of_denied(&mut self, ear: Ear, epoch: u64) {
        if epoch < self.denied.epoch {
            return;
        }
        let number = match ear {
            Ear::Cluster(number) => return self.clusters[number].deny(&self.denied),
            Ear::Replica(number) => number,
        };
        let replica = &mut self.replicas[number];
        if !replica.up || replica.denied.epoch >= self.denied.epoch {
            return;
        }
        let deny_list = Some(signed(&self.denied));
        replica.members.apply(&WatchResponse { deny_list, ..WatchResponse::default() });
        replica.denied = self.denied.clone();
        let shut_out = |cluster: usize| self.replicas[number].members.member(&name(cluster)).is_none();
        let here = self.connections.iter().filter(|(_, it)| it.replica == number && shut_out(it.cluster));
        let ids: Vec<_> = here.map(|(id, _)| *id).collect();
        if self.mutation != Mutation::LetTheQuarantinedGoOn {
            ids.into_iter().for_each(|id| self.cut(id));
        }
    }
}

fn presence() -> Vec<u8> {
    Presence { since_ms: 1, replica: String::new() }.encode_to_vec()
}

fn read(store: &Store) -> Index {
    let mut index = Index::default();
    let mut entries: Vec<_> = store.contents.iter().collect();
    entries.sort_by_key(|(_, (modified, _))| *modified);
    for (key, (modified, value)) in entries {
        index.put(key, *modified, value).unwrap();
    }
    index.reach(store.revision);
    index
}
