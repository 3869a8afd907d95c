//! Clusters, replicas, the store and the network between them, in one queue of events.
//!
//! Everything that a replica decides is the service's own code: `Index`, `Protocol`, `Members`, `Liveness`, `admission`,
//! `collect`. What clusters say is `Publications`, what they hold is `Received`, as in a control-plane. The world gives them
//! time, order and faults, all drawn from one seed.

mod clients;
mod faults;
mod judge;
mod replicas;
mod writes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{SessionRequest, Welcome};
use federation_api::record::v1::Signed;
use federation_api::verify::DenyList;
use federation_store::{Committed, Revision};
use federator::admission::{Epoch, Offer, Plan};
use federator::protocol::Protocol;
use federator::quota::Quota;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::checks::Violation;
use super::cluster::{Cluster, Moment, namespace};
use super::keys::{CLUSTERS, nobody};
use super::receiver::Held;
use super::store::Store;
use replicas::Replica;

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
    /// Receivers let go of everything when a snapshot begins.
    DropBeforeASnapshot,
    /// Answers pile up for receivers that do not read.
    ListenToTheDeaf,
    /// Publishers do not take back what they have forgotten.
    ForgetForGood,
    /// Receivers act on heads at the end of snapshots only, and never ask for one.
    SettleWithSnapshotsOnly,
    /// Receivers never ask for a snapshot.
    NeverAskAgain,
    /// Receivers let go of what lost clusters have said.
    DropTheLost,
    /// Leases never run out.
    LeaseForever,
    /// A replica whose lease ran out does not put its sessions' keys again.
    ForgetTheLease,
    /// The key of a session that ended is given up, whoever has put it since.
    GiveUpBlindly,
    /// Quarantine concerns new sessions only.
    LetTheQuarantinedGoOn,
    /// What an evicted membership has said is not deleted.
    KeepTheEvicted,
}

impl Mutation {
    /// Receivers would heal what this breaks: it must show by itself.
    pub(crate) fn never_asks_again(self) -> bool {
        matches!(
            self,
            Self::NeverAskAgain | Self::SettleWithSnapshotsOnly | Self::ResumeAnywhere | Self::CollectWithoutMark
        )
    }
}

const REPLICAS: usize = 2;
const SERVICES: usize = 3;
/// Faults happen until then, milliseconds.
const FAULTS_END: u64 = 12_000;
/// In some worlds one cluster is away from then on.
const AWAY_FROM: u64 = 14_000;
/// By then everybody knows it.
const AWAY_KNOWN: u64 = 20_000;
/// It comes back.
const AWAY_UNTIL: u64 = 21_000;
/// By then everybody must agree.
const END: u64 = 40_000;
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Leases run out after this, and sessions that end have so much time to be replaced.
const TTL: u64 = 1_500;
/// Withdrawals are kept so long here.
const AGE: Duration = Duration::from_secs(3);
/// Responses on their way to a client, at most.
const IN_FLIGHT: usize = 2;

enum Event {
    Connect(usize),
    Request(u64, SessionRequest),
    /// The next of the messages on their way to a client arrives.
    Response(u64),
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
    /// Replicas keep their leases, and others run out.
    Leases,
    /// A session of a replica ended a while ago.
    GiveUp {
        replica: usize,
        life: u64,
        cluster: usize,
        epoch: u64,
    },
    /// A replica, or a cluster, hears who is shut out.
    Denied(Ear, u64),
    Leave,
    AwayIsKnown,
}

/// Who listens to trust-bundle.
#[derive(Clone, Copy)]
enum Ear {
    Replica(usize),
    Cluster(usize),
}

struct Connection {
    cluster: usize,
    replica: usize,
    protocol: Option<Protocol>,
    epoch: Option<Epoch>,
    incarnation: String,
    publishing: bool,
    waiting: VecDeque<SessionRequest>,
    /// What is on its way to the client, in order.
    in_flight: VecDeque<Response>,
    /// When the last message in each direction arrives: a connection keeps its order.
    up: u64,
    down: u64,
    /// The client reads nothing until then.
    deaf_until: u64,
    revision: Revision,
    positions: HashMap<(String, String), (u64, u64)>,
    generation: usize,
    /// The last change of sessions that it was told.
    told_liveness: u64,
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
    /// The last word really said on each key.
    last: HashMap<(usize, String), Bytes>,
    old_words: Vec<Signed>,
    /// The operator's list, of its newest epoch.
    denied: DenyList,
    /// Who is away for a while, and what the others held of it.
    away: Option<(usize, Vec<Held>)>,
    mutation: Mutation,
    quota: Quota,
    traced: bool,
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
        let mut world = Self {
            now: 0,
            start: Instant::now(),
            random,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            next: 0,
            store: Store::default(),
            backups: Vec::new(),
            replicas: (0..REPLICAS).map(|_| Replica::new()).collect(),
            clusters,
            connections: BTreeMap::new(),
            highest: HashMap::new(),
            last: HashMap::new(),
            old_words: Vec::new(),
            denied: nobody(),
            away: None,
            mutation,
            quota: Quota { records: 12, exports: 9, ..Quota::default() },
            traced: std::env::var_os("TRACE").is_some(),
            steps: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for number in 0..CLUSTERS {
            self.soon(100, Event::Connect(number));
            self.soon(300, Event::Change(number));
        }
        for number in 0..REPLICAS {
            self.soon(50, Event::Watch(number));
            self.soon(1_000, Event::Collect(number));
        }
        self.soon(1_000, Event::Fault);
        self.soon(1_000, Event::Attack);
        self.at(0, Event::Leases);
        if self.random.random_bool(0.5) {
            self.at(AWAY_FROM, Event::Leave);
            self.at(AWAY_KNOWN, Event::AwayIsKnown);
        }
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

    fn moment(&self, number: usize) -> Moment {
        self.clusters[number].moment(self.start, self.now)
    }

    fn faulty(&self) -> bool {
        self.now < FAULTS_END
    }

    /// For who replays one world.
    fn trace(&self, line: impl FnOnce() -> String) {
        if self.traced {
            let line = format!("{:>6} {}\n", self.now, line());
            std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
        }
    }

    fn step(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Connect(cluster) => self.connect(cluster),
            Event::Welcome(id, welcome) => self.welcome(id, &welcome)?,
            Event::Request(id, request) => self.request(id, request),
            Event::Response(id) => self.response(id)?,
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
            Event::Leases => self.keep_leases(),
            Event::GiveUp { replica, life, cluster, epoch } => self.give_up(replica, life, cluster, epoch),
            Event::Denied(ear, epoch) => self.hear_of_denied(ear, epoch),
            Event::Leave => self.leave(),
            Event::AwayIsKnown => self.away_is_known()?,
        }
        Ok(())
    }
}
