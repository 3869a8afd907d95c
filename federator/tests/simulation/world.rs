//! Clusters, replicas, the store and the network between them, in one queue of events.
//!
//! Everything that a replica decides is the service's own code: `Index`, `Protocol`, `admission`, `collect`. What clusters
//! hold is `RecordSet`. The world gives them time, order and faults, all drawn from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use federation::{ClusterName, RecordKey};
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{
    ClientHeartbeat, Hello, Interest, Publish, SessionRequest, Welcome, session_request::Request,
};
use federation_api::record::v1::{Signed, Statement};
use federation_api::records::RecordSet;
use federation_store::{Committed, Operation, Revision, Transaction, layout};
use federator::admission::{Epoch, Offer, Plan, fitting, plan};
use federator::collect;
use federator::index::{Index, parse_store_key};
use federator::protocol::{Heard, OUTBOX, Protocol, resumes};
use federator::quota::{Bucket, Quota};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::checks::{Check, Violation};
use super::cluster::{Cluster, namespace};
use super::keys::{CLUSTERS, GENERATIONS, membership, name, number};
use super::store::Store;

/// A rule that is broken on purpose, to see that a check notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mutation {
    #[default]
    None,
    /// Transactions do not expect the session's epoch.
    IgnoreEpoch,
    /// A record is verified as its own speaker's, whoever's session it comes through.
    TrustAnySigner,
    /// Sessions resume by revision alone, across restores.
    ResumeAnywhere,
    /// Collections leave no mark.
    CollectWithoutMark,
    /// Collections take the heads too.
    CollectHeads,
    /// Receivers take older records.
    BelieveOldWords,
    /// Receivers let go of whatever a snapshot lacks.
    DropWhatASnapshotLacks,
    /// Answers pile up for receivers that do not read.
    ListenToTheDeaf,
}

const REPLICAS: usize = 2;
const SERVICES: usize = 3;
/// Faults happen until then, milliseconds.
const FAULTS_END: u64 = 12_000;
/// By then everybody must agree.
const END: u64 = 36_000;
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Withdrawals are kept so long here.
const AGE: Duration = Duration::from_secs(3);
/// Responses on their way to a client, at most.
const IN_FLIGHT: usize = 2;

enum Event {
    Connect(usize),
    Request(u64, SessionRequest),
    Response(u64, Response),
    Welcome(u64, Welcome),
    Cut(u64),
    Commit(u64, Box<(Vec<Offer>, Plan)>),
    Answer(u64, Box<(Vec<Offer>, Plan, Committed)>),
    Retry(u64, Vec<Offer>),
    Watch(usize),
    Beat(u64),
    Collect(usize),
    Change(usize),
    Fault,
    Attack,
    Start(usize),
}

struct Replica {
    index: Index,
    incarnation: u64,
    up: bool,
    /// It cannot reach the store.
    partitioned: bool,
    ages: collect::Ages,
}

struct Connection {
    cluster: usize,
    replica: usize,
    protocol: Option<Protocol>,
    epoch: Option<Epoch>,
    incarnation: String,
    publishing: bool,
    waiting: VecDeque<SessionRequest>,
    in_flight: usize,
    /// When the last message in each direction arrives: a connection keeps its order.
    up: u64,
    down: u64,
    /// The client reads nothing until then.
    deaf_until: u64,
    revision: Revision,
    positions: HashMap<(String, String), (u64, u64)>,
    generation: usize,
}

pub(crate) struct World {
    now: u64,
    start: Instant,
    random: StdRng,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    next: u64,
    store: Store,
    backups: Vec<Store>,
    replicas: Vec<Replica>,
    clusters: Vec<Cluster>,
    connections: BTreeMap<u64, Connection>,
    /// The highest position of each key that this history of the store has held.
    highest: HashMap<(String, String), (u64, u64)>,
    old_words: Vec<Signed>,
    mutation: Mutation,
    quota: Quota,
    pub(crate) steps: u64,
}

/// Runs one world to its end.
pub(crate) fn run(seed: u64, mutation: Mutation) -> Result<u64, Violation> {
    let mut world = World::new(seed, mutation);
    while let Some(Reverse((at, id))) = world.queue.pop() {
        if at > END {
            break;
        }
        world.now = at;
        world.steps += 1;
        let event = world.events.remove(&id).unwrap();
        world.step(event)?;
    }
    world.converged()?;
    Ok(world.steps)
}

impl World {
    fn new(seed: u64, mutation: Mutation) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let clusters = (0..CLUSTERS).map(|number| {
            let interest = (0..3).filter(|_| random.random_bool(0.7)).map(namespace).collect();
            let mut cluster = Cluster::new(number, interest);
            cluster.skew = random.random_range(-5_000..5_000);
            cluster
        });
        let clusters = clusters.collect();
        let replica = |_| Replica {
            index: Index::default(),
            incarnation: 0,
            up: true,
            partitioned: false,
            ages: collect::Ages::default(),
        };
        let mut world = Self {
            now: 0,
            start: Instant::now(),
            random,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            next: 0,
            store: Store::default(),
            backups: Vec::new(),
            replicas: (0..REPLICAS).map(replica).collect(),
            clusters,
            connections: BTreeMap::new(),
            highest: HashMap::new(),
            old_words: Vec::new(),
            mutation,
            quota: Quota { records: 12, exports: 9, ..Quota::default() },
            steps: 0,
        };
        for number in 0..CLUSTERS {
            world.soon(100, Event::Connect(number));
            world.soon(300, Event::Change(number));
        }
        for number in 0..REPLICAS {
            world.soon(50, Event::Watch(number));
            world.soon(1_000, Event::Collect(number));
        }
        world.soon(1_000, Event::Fault);
        world.soon(1_000, Event::Attack);
        world
    }

    fn at(&mut self, at: u64, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((at, self.next)));
        self.events.insert(self.next, event);
    }

    fn soon(&mut self, within: u64, event: Event) {
        let wait = self.random.random_range(1..=within);
        self.at(self.now + wait, event);
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn faulty(&self) -> bool {
        self.now < FAULTS_END
    }

    fn step(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Connect(cluster) => self.connect(cluster),
            Event::Welcome(id, welcome) => self.welcome(id, &welcome),
            Event::Request(id, request) => self.request(id, request),
            Event::Response(id, response) => self.response(id, response)?,
            Event::Cut(id) => self.cut(id),
            Event::Commit(id, commit) => self.commit(id, *commit)?,
            Event::Answer(id, answer) => self.answer(id, *answer),
            Event::Retry(id, offers) => self.write(id, offers),
            Event::Watch(replica) => self.watch(replica),
            Event::Beat(id) => self.beat(id)?,
            Event::Collect(replica) => self.collect(replica),
            Event::Change(cluster) => self.change(cluster),
            Event::Fault => self.fault(),
            Event::Attack => self.attack(),
            Event::Start(replica) => self.start_replica(replica),
        }
        Ok(())
    }

    // --- what clusters do ---

    fn change(&mut self, number: usize) {
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
                self.old_words.extend(cluster.envelopes().cloned());
            }
        }
        let cluster = &mut self.clusters[number];
        cluster.say(self.now);
        cluster.say_again(self.now);
        if self.random.random_bool(0.5) {
            let state = cluster.state.clone();
            cluster.saved.push(state);
        }
        self.soon(1_500, Event::Change(number));
        // A broken rule must show by itself, not be healed by the receivers.
        let connection = self.clusters[number].connection.filter(|_| self.mutation == Mutation::None);
        if let Some(id) = connection.filter(|_| self.clusters[number].needs_a_snapshot(self.now)) {
            self.clusters[number].begin_anew();
            self.cut(id);
        }
        self.push(number);
    }

    fn connect(&mut self, number: usize) {
        if self.clusters[number].connection.is_some() {
            return;
        }
        let replica = self.random.random_range(0..REPLICAS);
        if !self.replicas[replica].up || (self.faulty() && self.random.random_bool(0.1)) {
            self.soon(500, Event::Connect(number));
            return;
        }
        let hello = self.clusters[number].hello();
        self.next += 1;
        let (id, generation) = (self.next, self.clusters[number].generation);
        let connection = Connection {
            cluster: number,
            replica,
            protocol: None,
            epoch: None,
            incarnation: String::new(),
            publishing: false,
            waiting: VecDeque::new(),
            in_flight: 0,
            up: self.now,
            down: self.now,
            deaf_until: 0,
            revision: 0,
            positions: HashMap::new(),
            generation,
        };
        self.clusters[number].connection = Some(id);
        self.connections.insert(id, connection);
        self.open(id, &hello);
    }

    fn welcome(&mut self, id: u64, welcome: &Welcome) {
        let Some(connection) = self.connections.get(&id) else { return };
        let number = connection.cluster;
        if self.clusters[number].connection != Some(id) {
            return;
        }
        self.clusters[number].connected(welcome);
        self.soon(500, Event::Beat(id));
        self.push(number);
    }

    /// Says what the cluster has to say.
    fn push(&mut self, number: usize) {
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

    fn send(&mut self, id: u64, request: Request) {
        let delay = self.random.random_range(1..60);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.up = connection.up.max(self.now + delay) + 1;
        let at = connection.up;
        self.at(at, Event::Request(id, SessionRequest { request: Some(request) }));
    }

    fn response(&mut self, id: u64, response: Response) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        if connection.deaf_until > self.now {
            let at = connection.deaf_until.max(connection.down) + 1;
            connection.down = at;
            self.at(at, Event::Response(id, response));
            return Ok(());
        }
        connection.in_flight -= 1;
        let (number, incarnation) = (connection.cluster, connection.incarnation.clone());
        if self.clusters[number].connection == Some(id) {
            self.told(id, number, &incarnation, response)?;
        }
        self.pump(id)
    }

    fn told(&mut self, id: u64, number: usize, incarnation: &str, response: Response) -> Result<(), Violation> {
        let generations: [usize; CLUSTERS] = std::array::from_fn(|number| self.clusters[number].generation);
        let mutation = self.mutation;
        match response {
            Response::Changes(changes) => {
                self.monotonic(id, changes.revision, &changes.records)?;
                let cluster = &mut self.clusters[number];
                cluster.changes(incarnation, changes.revision, &changes.records, &generations, mutation)?;
            }
            Response::SnapshotComplete(complete) => {
                self.monotonic(id, complete.revision, &[])?;
                let cluster = &mut self.clusters[number];
                let dropped = cluster.complete(incarnation, complete.revision, &complete.namespaces, mutation);
                for (owner, key, position) in dropped {
                    if self.clusters[super::keys::number(&owner)].position(&key) == Some(position) {
                        let text = format!("{} let go of {key}, which {owner} exports", self.clusters[number].name());
                        return Err(Violation { check: Check::NoLostExport, text });
                    }
                }
            }
            Response::Published(published) => {
                if self.clusters[number].published(&published.results) {
                    self.cut(id);
                    return Ok(());
                }
                self.push(number);
            }
            Response::Heartbeat(beat) => self.clusters[number].come_along(beat.revision),
            _ => {}
        }
        Ok(())
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

    // --- what replicas do ---

    fn open(&mut self, id: u64, hello: &Hello) {
        let connection = &self.connections[&id];
        let (number, replica) = (connection.cluster, connection.replica);
        if self.replicas[replica].partitioned {
            self.soon(300, Event::Cut(id));
            return;
        }
        let (key, revision) = (layout::epoch(name(number).as_str()), self.store.revision);
        let modified = self.store.modified(&key);
        let taken = Transaction::new().expecting(&key, modified).put(&key, revision.to_be_bytes().to_vec());
        let Committed::Done(modified) = self.store.commit(&taken) else { unreachable!("the store answers at once") };
        let found = &self.replicas[replica];
        let incarnation = found.incarnation.to_string();
        let mut resumed = resumes(hello, &incarnation, &found.index);
        resumed |= self.mutation == Mutation::ResumeAnywhere && hello.revision > 0;
        let protocol = Protocol::open(name(number), hello, resumed, &found.index, HEARTBEAT, self.instant()).unwrap();
        let epoch = Epoch { key, modified, number: modified };
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

    fn request(&mut self, id: u64, request: SessionRequest) {
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

    fn write(&mut self, id: u64, offers: Vec<Offer>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let member = &membership(connection.cluster, connection.generation).member;
        let index = &self.replicas[connection.replica].index;
        let bucket = Bucket::full(&self.quota, self.instant());
        let pause = |count| bucket.wait(&self.quota, count);
        let plan = plan(member, connection.epoch.as_ref(), &offers, index, &self.quota, 1_000, pause);
        self.soon(40, Event::Commit(id, Box::new((offers, plan))));
    }

    fn commit(&mut self, id: u64, (offers, plan): (Vec<Offer>, Plan)) -> Result<(), Violation> {
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
            let highest = self.highest.entry((cluster.to_owned(), record)).or_default();
            if position <= *highest {
                let text = format!("the store took {key} back to {position:?} from {highest:?}");
                return Err(Violation { check: Check::NoResurrection, text });
            }
            *highest = position;
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, (offers, plan, committed): (Vec<Offer>, Plan, Committed)) {
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

    fn listen(&mut self, id: u64) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let full = connection.protocol.as_ref().is_none_or(Protocol::is_full);
            if connection.publishing || full {
                return;
            }
            let Some(request) = connection.waiting.pop_front() else { return };
            self.request(id, request);
        }
    }

    /// Sends what there is room for.
    fn pump(&mut self, id: u64) -> Result<(), Violation> {
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
            if connection.in_flight >= IN_FLIGHT {
                return Ok(());
            }
            match protocol.next(&self.replicas[connection.replica].index, now) {
                Err(_) => {
                    self.cut(id);
                    return Ok(());
                }
                Ok(None) => return Ok(()),
                Ok(Some(response)) => {
                    connection.in_flight += 1;
                    connection.down = connection.down.max(self.now + delay) + 1;
                    let at = connection.down;
                    self.at(at, Event::Response(id, response));
                }
            }
        }
    }

    fn beat(&mut self, id: u64) -> Result<(), Violation> {
        let now = self.instant();
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let number = connection.cluster;
        if let Some(protocol) = &mut connection.protocol {
            let listening = !connection.publishing && !protocol.is_full();
            if !listening {
                protocol.heard(now);
            }
            if protocol.timeout(now, 0).is_err() {
                self.cut(id);
                return Ok(());
            }
        }
        let applied_revision = self.clusters[number].state.cursor.revision;
        self.send(id, Request::Heartbeat(ClientHeartbeat { applied_revision }));
        self.push(number);
        self.soon(500, Event::Beat(id));
        self.pump(id)
    }

    fn watch(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        if replica.up && !replica.partitioned {
            if replica.incarnation != self.store.incarnation {
                // It notices that the store has another history, and starts again.
                self.crash(number);
            } else if let Some(batches) = self.store.after(replica.index.revision()) {
                let most = self.random.random_range(1..8);
                for (revision, changes) in batches.take(most) {
                    for (key, value) in changes {
                        match value {
                            Some(value) => replica.index.put(key, *revision, value).unwrap(),
                            None => replica.index.remove(key),
                        }
                    }
                    replica.index.reach(*revision);
                }
            } else {
                replica.index = read(&self.store);
            }
        }
        let ids: Vec<_> = self.connections.iter().filter(|(_, it)| it.replica == number).map(|(id, _)| *id).collect();
        for id in ids {
            let _ = self.pump(id);
        }
        self.soon(150, Event::Watch(number));
    }

    fn collect(&mut self, number: usize) {
        self.soon(1_000, Event::Collect(number));
        let now = self.instant();
        let replica = &mut self.replicas[number];
        if !replica.up || replica.partitioned || replica.incarnation != self.store.incarnation {
            return;
        }
        replica.ages.note(now, replica.index.revision());
        let old = replica.ages.older_than(now, AGE);
        let mark = self.store.modified(layout::COLLECTED);
        let planned = collect::plan(&replica.index, |_, _| false, old, &self.quota, mark);
        let Some(collection) = planned.into_iter().next() else { return };
        let mut transaction = collection.transaction;
        match self.mutation {
            Mutation::CollectWithoutMark => {
                transaction.operations.retain(|operation| operation.key() != layout::COLLECTED);
            }
            Mutation::CollectHeads => transaction = transaction.delete(layout::heads(collection.cluster.as_str())),
            _ => {}
        }
        let _ = self.store.commit(&transaction);
    }

    // --- what goes wrong ---

    fn fault(&mut self) {
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
            50..60 => self.replicas[replica].partitioned ^= true,
            60..70 => {
                let until = self.now + self.random.random_range(500..5_000);
                if let Some(connection) = self.clusters[cluster].connection.and_then(|id| self.connections.get_mut(&id))
                {
                    connection.deaf_until = until;
                }
            }
            70..76 => self.store.compact(),
            76..82 => self.backups.push(self.store.clone()),
            82..85 => self.restore(),
            85..93 => self.restart(cluster),
            93..96 => self.join(cluster),
            _ => self.clusters[cluster].skew = self.random.random_range(-5_000..5_000),
        }
    }

    fn heal(&mut self) {
        for number in 0..REPLICAS {
            self.replicas[number].partitioned = false;
        }
        for connection in self.connections.values_mut() {
            connection.deaf_until = 0;
        }
        for cluster in &mut self.clusters {
            cluster.skew = 0;
        }
    }

    fn cut(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let cluster = &mut self.clusters[connection.cluster];
        if cluster.connection == Some(id) {
            cluster.connection = None;
            cluster.in_flight = false;
            self.soon(500, Event::Connect(connection.cluster));
        }
    }

    fn crash(&mut self, number: usize) {
        self.replicas[number].up = false;
        let ids: Vec<_> = self.connections.iter().filter(|(_, it)| it.replica == number).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.cut(id));
        self.soon(1_000, Event::Start(number));
    }

    fn start_replica(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        replica.index = read(&self.store);
        replica.incarnation = self.store.incarnation;
        replica.ages = collect::Ages::default();
        replica.up = true;
    }

    /// The store is brought back from a backup, with all replicas down, as an operator does it.
    fn restore(&mut self) {
        if self.backups.is_empty() {
            return;
        }
        let backup = self.random.random_range(0..self.backups.len());
        self.store.restore(&self.backups[backup]);
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
        self.clusters[number].restart(saved);
        self.soon(1_000, Event::Connect(number));
    }

    fn join(&mut self, number: usize) {
        let generation = self.clusters[number].generation + 1;
        if generation >= GENERATIONS {
            return;
        }
        if let Some(id) = self.clusters[number].connection.take() {
            self.cut(id);
        }
        // Sessions of the membership before are known to be void at once.
        let old: Vec<_> = self.connections.iter().filter(|(_, it)| it.cluster == number).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.cut(id));
        self.clusters[number].join(generation);
        self.soon(1_000, Event::Connect(number));
    }

    /// Somebody says old words again, its own or others', through a session that it holds.
    fn attack(&mut self) {
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

    fn converged(&self) -> Result<(), Violation> {
        let wrong = |text: String| Err(Violation { check: Check::Convergence, text });
        for owner in &self.clusters {
            let exported = owner.exported();
            for receiver in self.clusters.iter().filter(|receiver| receiver.number != owner.number) {
                let mut wanted = exported.clone();
                wanted.retain(|key, _| key.namespace().is_some_and(|it| receiver.interest.contains(it)));
                let believed = receiver.believed(&owner.name());
                if believed != wanted {
                    let key = wanted.keys().chain(believed.keys()).find(|key| wanted.get(key) != believed.get(key));
                    let key = key.unwrap().clone();
                    let stored = self.replicas[0].index.record(&owner.name(), &key.to_string());
                    let stored = stored.map(|it| (it.revision, it.position(), it.is_withdrawn()));
                    let held = receiver.state.records.record(&owner.name(), &key);
                    let held = held.map(|it| (it.generation, it.sequence, it.is_live()));
                    let heads = |records: &RecordSet| {
                        let heads = records.record(&owner.name(), &RecordKey::Heads);
                        heads.map(|it| (it.generation, it.sequence))
                    };
                    let heads = heads(&receiver.state.records);
                    let (stored_heads, signed) = (
                        self.replicas[0].index.record(&owner.name(), "heads").map(|it| it.position()),
                        owner.position(&key),
                    );
                    let (receiver, owner): (ClusterName, _) = (receiver.name(), owner.name());
                    return wrong(format!(
                        "{receiver} holds {held:?} of {owner}'s {key} ({:?}, wanted {:?}); stored {stored:?}, signed {signed:?}; \
                         heads: held {heads:?}, stored {stored_heads:?}",
                        believed.get(&key),
                        wanted.get(&key)
                    ));
                }
            }
        }
        let live: BTreeSet<_> = self
            .clusters
            .iter()
            .flat_map(|owner| owner.exported().into_keys().map(|key| (owner.number, key)))
            .collect();
        for (number, replica) in self.replicas.iter().enumerate() {
            let records = replica.index.len();
            if records > live.len() + 2 * CLUSTERS {
                let text = format!("replica {number} keeps {records} records of {} live ones", live.len());
                return Err(Violation { check: Check::BoundedMemory, text });
            }
        }
        Ok(())
    }
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

fn statement_of(signed: &Signed) -> String {
    let statement = Statement::decode(signed.message.clone()).unwrap_or_default();
    format!("{} of {}", statement.key, statement.cluster)
}
