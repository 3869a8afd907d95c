//! What clusters do, and what they are told.

use std::collections::VecDeque;

use federation_api::federation::v1::session_request::Request;
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{Interest, Publish, SessionRequest, Welcome};
use federation_api::record::v1::{Signed, Statement};
use federation_store::Revision;
use prost::Message as _;
use rand::RngExt as _;

use super::{Connection, Event, REPLICAS, SERVICES, World};
use crate::checks::{Check, Violation};
use crate::cluster::namespace;
use crate::keys::CLUSTERS;

impl World {
    pub(super) fn change(&mut self, number: usize) {
        if self.faulty() {
            let service = (self.random.random_range(0..3), self.random.random_range(0..SERVICES));
            let version = self.random.random_range(0..1_000);
            let cluster = &mut self.clusters[number];
            if self.random.random_bool(0.4) {
                cluster.wanted.remove(&service);
            } else {
                cluster.wanted.insert(service, version);
            }
            if self.random.random_bool(0.1) {
                let namespace = namespace(self.random.random_range(0..3));
                if !cluster.interest.remove(&namespace) {
                    cluster.interest.insert(namespace);
                }
            }
            if self.random.random_bool(0.3) && self.old_words.len() < 30 {
                self.old_words.extend(cluster.envelopes());
            }
        }
        let now = self.moment(number);
        let cluster = &mut self.clusters[number];
        cluster.say(now);
        for signed in cluster.signed.drain(..) {
            let key = Statement::decode(signed.message.clone()).unwrap().key;
            self.last.insert((number, key), signed.message);
        }
        if self.faulty() && self.random.random_bool(0.5) {
            self.clusters[number].save();
        }
        self.soon(1_500, Event::Change(number));
        self.push(number);
    }

    pub(super) fn connect(&mut self, number: usize) {
        let cluster = &self.clusters[number];
        if cluster.connection.is_some() || cluster.evicted {
            return;
        }
        let replica = self.random.random_range(0..REPLICAS);
        let away = cluster.away_until > self.now;
        if away || !self.replicas[replica].up || (self.faulty() && self.random.random_bool(0.1)) {
            self.soon(500, Event::Connect(number));
            return;
        }
        let hello = self.clusters[number].hello();
        self.next += 1;
        let (id, generation) = (self.next, self.clusters[number].generation);
        let connection = Connection::new(number, replica, generation, self.now);
        self.clusters[number].connection = Some(id);
        self.connections.insert(id, connection);
        self.open(id, &hello);
    }

    pub(super) fn welcome(&mut self, id: u64, welcome: &Welcome) -> Result<(), Violation> {
        let Some(connection) = self.connections.get(&id) else { return Ok(()) };
        let number = connection.cluster;
        if self.clusters[number].connection != Some(id) {
            return Ok(());
        }
        let before = self.clusters[number].held();
        self.clusters[number].connected(welcome, self.mutation);
        self.lost_nothing(number, &before)?;
        self.soon(500, Event::Beat(id));
        self.push(number);
        Ok(())
    }

    /// Says what the cluster has to say.
    pub(super) fn push(&mut self, number: usize) {
        let Some(id) = self.clusters[number].connection else { return };
        if self.connections.get(&id).is_none_or(|connection| connection.incarnation.is_empty()) {
            return;
        }
        if self.clusters[number].told_interest != self.clusters[number].interest {
            let namespaces = self.clusters[number].ask();
            self.send(id, Request::Interest(Interest { namespaces }));
        }
        if !self.clusters[number].in_flight && self.clusters[number].has_waiting() {
            let records = self.clusters[number].batch(4);
            self.clusters[number].in_flight = true;
            self.send(id, Request::Publish(Publish { records }));
        }
    }

    pub(super) fn send(&mut self, id: u64, request: Request) {
        let delay = self.random.random_range(1..60);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.up = connection.up.max(self.now + delay) + 1;
        let at = connection.up;
        self.at(at, Event::Request(id, SessionRequest { request: Some(request) }));
    }

    pub(super) fn response(&mut self, id: u64) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        if connection.deaf_until > self.now {
            let at = connection.deaf_until;
            self.at(at, Event::Response(id));
            return Ok(());
        }
        let Some(response) = connection.in_flight.pop_front() else { return Ok(()) };
        let (number, incarnation) = (connection.cluster, connection.incarnation.clone());
        if self.clusters[number].connection == Some(id) {
            self.told(id, number, &incarnation, response)?;
        }
        self.pump(id)
    }

    fn told(&mut self, id: u64, number: usize, incarnation: &str, response: Response) -> Result<(), Violation> {
        let generations: [usize; CLUSTERS] = std::array::from_fn(|number| self.clusters[number].generation);
        let mutation = self.mutation;
        let before = self.clusters[number].held();
        match response {
            Response::Changes(changes) => {
                self.monotonic(id, changes.revision, &changes.records)?;
                let cluster = &mut self.clusters[number];
                cluster.changes(incarnation, changes.revision, &changes.records, &generations, mutation)?;
            }
            Response::SnapshotComplete(complete) => {
                self.monotonic(id, complete.revision, &[])?;
                self.clusters[number].complete(incarnation, complete.revision, &complete.namespaces)?;
            }
            Response::Published(published) => {
                if self.clusters[number].published(&published.results) {
                    self.cut(id);
                    return Ok(());
                }
                self.push(number);
            }
            Response::Heartbeat(beat) => {
                let now = self.moment(number);
                if self.clusters[number].come_along(beat.revision, now, mutation) {
                    self.cut(id);
                }
            }
            Response::Liveness(liveness) => self.clusters[number].heard_of(&liveness.clusters, mutation),
            _ => {}
        }
        self.lost_nothing(number, &before)
    }

    fn monotonic(&mut self, id: u64, revision: Revision, records: &[Signed]) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let violation = |text: String| Err(Violation { check: Check::MonotonicReads, text });
        if revision < connection.revision {
            return violation(format!("revision {revision} after {}", connection.revision));
        }
        connection.revision = revision;
        for signed in records {
            let statement = Statement::decode(signed.message.clone()).unwrap();
            let position = (statement.generation, statement.sequence);
            let key = (statement.cluster, statement.key);
            let highest = connection.positions.entry(key).or_default();
            if position < *highest {
                return violation(format!("{} went from {highest:?} to {position:?}", statement_of(signed)));
            }
            *highest = position;
        }
        Ok(())
    }
}

impl Connection {
    fn new(cluster: usize, replica: usize, generation: usize, now: u64) -> Self {
        Self {
            cluster,
            replica,
            protocol: None,
            epoch: None,
            incarnation: String::new(),
            publishing: false,
            waiting: Default::default(),
            in_flight: VecDeque::new(),
            up: now,
            down: now,
            deaf_until: 0,
            revision: 0,
            positions: Default::default(),
            generation,
            told_liveness: 0,
        }
    }
}

fn statement_of(signed: &Signed) -> String {
    let statement = Statement::decode(signed.message.clone()).unwrap_or_default();
    format!("{} of {}", statement.key, statement.cluster)
}
