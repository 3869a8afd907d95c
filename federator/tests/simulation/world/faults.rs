//! What goes wrong.

use federation_api::federation::v1::Publish;
use federation_api::federation::v1::session_request::Request;
use federation_api::record::v1::{Signed, Statement};
use federation_api::trust::v1::WatchResponse;
use federator::index::parse_store_key;
use prost::Message as _;
use rand::RngExt as _;

use super::{AWAY_UNTIL, Event, REPLICAS, World};
use crate::cluster::Cluster;
use crate::keys::{CLUSTERS, GENERATIONS, membership, name};

impl World {
    pub(super) fn fault(&mut self) {
        if !self.faulty() {
            self.heal();
            return;
        }
        self.soon(900, Event::Fault);
        let (cluster, replica) = (self.random.random_range(0..CLUSTERS), self.random.random_range(0..REPLICAS));
        match self.random.random_range(0..100) {
            0..25 => {
                if let Some(id) = self.clusters[cluster].connection {
                    self.cut(id);
                }
            }
            // The client is gone, and the replica does not know: its session lives on beside the next one.
            25..40 => {
                if let Some(id) = self.clusters[cluster].connection.take() {
                    self.at(self.now + 3_000, Event::Cut(id));
                    self.soon(300, Event::Connect(cluster));
                }
            }
            40..50 => self.crash(replica),
            50..60 => {
                self.trace(|| format!("replica {replica} is cut off, or no more"));
                self.replicas[replica].partitioned ^= true;
            }
            60..70 => {
                let until = self.now + self.random.random_range(500..5_000);
                if let Some(connection) = self.clusters[cluster].connection.and_then(|id| self.connections.get_mut(&id))
                {
                    connection.deaf_until = until;
                }
            }
            70..76 => {
                self.trace(|| "the store compacts".to_owned());
                self.store.compact();
            }
            76..82 => self.backups.push(self.store.clone()),
            82..85 => self.restore(),
            85..93 => self.restart(cluster),
            93..95 => self.join(cluster),
            95..97 => self.quarantine(cluster),
            97 => self.evict(cluster),
            _ => self.clusters[cluster].skew = self.random.random_range(-5_000..5_000),
        }
    }

    fn heal(&mut self) {
        for replica in &mut self.replicas {
            replica.partitioned = false;
        }
        for connection in self.connections.values_mut() {
            connection.deaf_until = 0;
        }
        for cluster in &mut self.clusters {
            cluster.skew = 0;
        }
        if !self.denied.clusters.is_empty() {
            self.deny(|list| list.clusters.clear());
        }
    }

    pub(super) fn cut(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.trace(|| format!("cut {id} of {} at {}", name(connection.cluster), connection.replica));
        if let Some(epoch) = &connection.epoch {
            self.released(connection.replica, connection.cluster, epoch);
        }
        let cluster = &mut self.clusters[connection.cluster];
        if cluster.connection == Some(id) {
            cluster.connection = None;
            cluster.in_flight = false;
            self.soon(500, Event::Connect(connection.cluster));
        }
    }

    pub(super) fn crash(&mut self, number: usize) {
        self.trace(|| format!("replica {number} dies"));
        let ids: Vec<_> = self.connections.iter().filter(|(_, it)| it.replica == number).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.cut(id));
        self.replicas[number].die();
        self.soon(1_000, Event::Start(number));
    }

    /// The store is brought back from a backup, with all replicas down, as an operator does it.
    fn restore(&mut self) {
        if self.backups.is_empty() {
            return;
        }
        self.trace(|| "the store is restored".to_owned());
        let backup = self.random.random_range(0..self.backups.len());
        self.store.restore(&self.backups[backup], self.now);
        self.highest.clear();
        for (key, (_, value)) in &self.store.contents {
            if let Some((cluster, record)) = parse_store_key(key) {
                let statement = Statement::decode(Signed::decode(value.clone()).unwrap().message).unwrap();
                self.highest.insert((cluster.to_owned(), record), (statement.generation, statement.sequence));
            }
        }
        (0..REPLICAS).for_each(|number| self.crash(number));
    }

    fn restart(&mut self, number: usize) {
        if let Some(id) = self.clusters[number].connection.take() {
            self.cut(id);
        }
        let count = self.clusters[number].saved.len();
        let saved = if count == 0 { 0 } else { self.random.random_range(0..count) };
        self.trace(|| format!("{} restarts as it was {saved} of {count}", name(number)));
        self.clusters[number].restart(saved);
        self.soon(1_000, Event::Connect(number));
    }

    fn join(&mut self, number: usize) {
        let generation = self.clusters[number].generation + 1;
        if generation >= GENERATIONS || self.clusters[number].evicted {
            return;
        }
        // Sessions of the membership before are known to be void at once.
        self.disconnect(number);
        self.trace(|| format!("{} joins again", name(number)));
        self.clusters[number].join(generation);
        let joined =
            WatchResponse { members: vec![membership(number, generation).source.clone()], ..WatchResponse::default() };
        for replica in &mut self.replicas {
            replica.members.apply(&joined);
        }
        self.soon(1_000, Event::Connect(number));
    }

    fn disconnect(&mut self, number: usize) {
        if let Some(id) = self.clusters[number].connection.take() {
            self.cut(id);
        }
        let old: Vec<_> = self.connections.iter().filter(|(_, it)| it.cluster == number).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.cut(id));
    }

    /// The operator shuts a cluster out, or lets it in again.
    fn quarantine(&mut self, number: usize) {
        let cluster = name(number);
        self.deny(|list| {
            if !list.clusters.remove(&cluster) {
                list.clusters.insert(cluster);
            }
        });
    }

    /// The operator ends a membership. Its cluster comes back with the next one, or not at all.
    fn evict(&mut self, number: usize) {
        let generation = membership(number, self.clusters[number].generation).member.generation();
        self.deny(|list| {
            list.evictions.insert(name(number), generation);
        });
        let last = self.clusters[number].generation + 1 >= GENERATIONS;
        if last || self.random.random_bool(0.5) {
            self.clusters[number].evicted = true;
        } else {
            self.join(number);
        }
    }

    /// A cluster is gone for longer than withdrawals are kept.
    pub(super) fn leave(&mut self) {
        let number = self.random.random_range(0..CLUSTERS);
        self.trace(|| format!("{} is away", name(number)));
        self.clusters[number].away_until = AWAY_UNTIL;
        let replica = self.clusters[number].connection.and_then(|id| self.connections.get(&id)).map(|it| it.replica);
        self.disconnect(number);
        // Nobody is left then to give its key up.
        if let Some(replica) = replica.filter(|_| self.random.random_bool(0.5)) {
            self.crash(replica);
        }
        let held = self.clusters.iter().map(Cluster::held).collect();
        self.away = Some((number, held));
        self.soon(500, Event::Connect(number));
    }

    /// Somebody says old words again, its own or others', through a session that it holds.
    pub(super) fn attack(&mut self) {
        if !self.faulty() {
            return;
        }
        self.soon(1_000, Event::Attack);
        let ids: Vec<_> = self.connections.keys().copied().collect();
        if self.old_words.is_empty() || ids.is_empty() {
            return;
        }
        let id = ids[self.random.random_range(0..ids.len())];
        let records = vec![self.old_words[self.random.random_range(0..self.old_words.len())].clone()];
        if self.connections[&id].protocol.is_some() {
            self.send(id, Request::Publish(Publish { records }));
        }
    }
}
