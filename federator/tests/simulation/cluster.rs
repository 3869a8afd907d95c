//! A cluster: what it wants to export, what it has signed, and what it has heard of the others. The rules are the
//! control-plane's own, `Publications` and `Received`; here is what it writes down, and its side of a session.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use federation::export::IpFamily;
use federation::{ClusterName, Export, Namespace, RecordKey, ServiceId, ServiceType};
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::{Hello, PublishResult, Welcome};
use federation_api::payload::Payload;
use federation_api::publications::Publications;
use federation_api::record::v1::{Signed, Statement};
use federation_api::records::{Patience, Received};
use federation_api::verify::{DenyList, VerifiedStatement};
use federation_store::Revision;
use prost::Message as _;

use super::keys::{membership, name, nobody};
use super::receiver::Position;
use super::world::Mutation;

/// Differences are looked into soon here.
const PATIENCE: Patience = Patience { first: Duration::from_secs(2), longest: Duration::from_secs(6), withdrawals: 2 };
/// Heads are signed again so often here.
const HEADS_REFRESH: Duration = Duration::from_secs(5);

/// Where a receiver stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor {
    pub(super) incarnation: String,
    pub(crate) revision: Revision,
    pub(super) namespaces: BTreeSet<Namespace>,
}

/// What a cluster writes down, and finds again after a crash.
#[derive(Clone, Default)]
pub(crate) struct Saved {
    own: Vec<Signed>,
    others: Vec<VerifiedStatement>,
    cursor: Cursor,
    highest: BTreeMap<(ClusterName, RecordKey), Position>,
}

/// A moment, by the cluster's own clock.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    pub(crate) system: SystemTime,
}

pub(crate) struct Cluster {
    pub(crate) number: usize,
    pub(crate) generation: usize,
    /// Its clock, against the world's.
    pub(crate) skew: i64,
    /// The services that it exports, and the version of each.
    pub(crate) wanted: BTreeMap<(usize, usize), u32>,
    pub(crate) interest: BTreeSet<Namespace>,
    pub(super) publications: Publications,
    pub(super) received: Received,
    pub(crate) cursor: Cursor,
    published_to: Option<String>,
    /// The highest position that it has believed of each key, since its owner's heads set it back.
    pub(super) highest: BTreeMap<(ClusterName, RecordKey), Position>,
    pub(crate) saved: Vec<Saved>,
    outbox: BTreeMap<RecordKey, (u64, Signed)>,
    pub(crate) in_flight: bool,
    pub(super) covered: Option<BTreeSet<Namespace>>,
    pub(crate) connection: Option<u64>,
    pub(crate) told_interest: BTreeSet<Namespace>,
    /// Cursors of the present session are void: the next begins with a snapshot.
    pub(super) anew: bool,
    pub(crate) denied: DenyList,
    /// Nobody hears of it until then.
    pub(crate) away_until: u64,
    /// Its last membership was evicted.
    pub(crate) evicted: bool,
    /// What it signed since the world last looked.
    pub(crate) signed: Vec<Signed>,
}

pub(crate) fn namespace(number: usize) -> Namespace {
    ["a", "b", "c"][number].parse().unwrap()
}

fn payload(key: &RecordKey, version: u32) -> Payload {
    let RecordKey::Export(service) = key else { panic!("{key} is no export") };
    Payload::Export(Box::new(Export {
        service: service.clone(),
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        client_ip_affinity: None,
        ip_families: vec![IpFamily::IPv4],
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: [("version".to_owned(), version.to_string())].into(),
        annotations: BTreeMap::new(),
        created: super::keys::epoch(),
        service_accounts: Vec::new(),
        zones: Vec::new(),
    }))
}

fn export_key(namespace_number: usize, service: usize) -> RecordKey {
    RecordKey::Export(ServiceId::parse_parts(namespace(namespace_number).as_str(), &format!("s{service}")).unwrap())
}

fn publications(number: usize, generation: usize, saved: Vec<Signed>) -> Publications {
    let membership = membership(number, generation);
    Publications::new(membership.speaker(number), None, membership.member.clone(), saved, HEADS_REFRESH)
}

impl Cluster {
    pub(crate) fn new(number: usize, interest: BTreeSet<Namespace>) -> Self {
        Self {
            number,
            generation: 0,
            skew: 0,
            wanted: BTreeMap::new(),
            interest,
            publications: publications(number, 0, Vec::new()),
            received: Received::new(PATIENCE),
            cursor: Cursor::default(),
            published_to: None,
            highest: BTreeMap::new(),
            saved: Vec::new(),
            outbox: BTreeMap::new(),
            in_flight: false,
            covered: None,
            connection: None,
            told_interest: BTreeSet::new(),
            anew: false,
            denied: nobody(),
            away_until: 0,
            evicted: false,
            signed: Vec::new(),
        }
    }

    pub(crate) fn name(&self) -> ClusterName {
        name(self.number)
    }

    /// The cluster's own clock, when the world's shows so many milliseconds.
    pub(crate) fn moment(&self, start: Instant, now: u64) -> Moment {
        let milliseconds = i64::try_from(now).unwrap() + self.skew + 100_000;
        let system = super::keys::epoch() + Duration::from_millis(u64::try_from(milliseconds).unwrap());
        Moment { instant: start + Duration::from_millis(now), system }
    }

    /// Signs what changed, and what is to be signed again.
    pub(crate) fn say(&mut self, now: Moment) {
        let wanted = self.wanted.iter().map(|((namespace, service), version)| {
            let key = export_key(*namespace, *service);
            let payload = payload(&key, *version);
            (key, payload)
        });
        let mut news = self.publications.say(&wanted.collect(), now.system).unwrap();
        news.extend(self.publications.sign_again(now.instant, now.system).unwrap());
        self.signed.extend(news.iter().cloned());
        self.put(news);
    }

    fn put(&mut self, records: Vec<Signed>) {
        for signed in records {
            let statement = Statement::decode(signed.message.clone()).unwrap();
            self.outbox.insert(statement.key.parse().unwrap(), (statement.sequence, signed));
        }
    }

    /// Writes down what it holds.
    pub(crate) fn save(&mut self) {
        self.saved.push(Saved {
            own: self.publications.envelopes(),
            others: self.received.records().iter().cloned().collect(),
            cursor: self.cursor.clone(),
            highest: self.highest.clone(),
        });
    }

    /// The next message of records, in the order of their sequences.
    pub(crate) fn batch(&mut self, most: usize) -> Vec<Signed> {
        let mut waiting: Vec<_> = self.outbox.values().collect();
        waiting.sort_by_key(|(sequence, _)| *sequence);
        waiting.into_iter().take(most).map(|(_, signed)| signed.clone()).collect()
    }

    /// Everything that it ever signed and still holds: an attacker's store of old words grows from it.
    pub(crate) fn envelopes(&self) -> Vec<Signed> {
        self.publications.envelopes()
    }

    /// Takes answers; returns whether another session of the cluster publishes.
    pub(crate) fn published(&mut self, results: &[PublishResult]) -> bool {
        self.in_flight = false;
        self.publications.answer(results);
        for result in results {
            let Ok(key) = result.key.parse::<RecordKey>() else { continue };
            if self.outbox.get(&key).is_some_and(|(sequence, _)| *sequence <= result.sequence) {
                self.outbox.remove(&key);
            }
        }
        let reasons = results.iter().filter_map(|result| result.refusal.as_ref());
        let fenced = reasons.into_iter().any(|refusal| refusal.reason() == Reason::NotPublisher);
        if fenced {
            self.published_to = None;
        }
        fenced
    }

    pub(crate) fn hello(&mut self) -> Hello {
        let resuming = !self.cursor.incarnation.is_empty();
        let namespaces = if resuming { &self.cursor.namespaces & &self.interest } else { self.interest.clone() };
        self.told_interest.clone_from(&namespaces);
        Hello {
            versions: vec![1],
            incarnation: self.cursor.incarnation.clone(),
            revision: self.cursor.revision,
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            publisher: true,
            ..Hello::default()
        }
    }

    pub(crate) fn connected(&mut self, welcome: &Welcome, mutation: Mutation) {
        self.in_flight = false;
        self.anew = false;
        self.covered = welcome.resumed.then(|| self.told_interest.clone());
        self.received.session_begins(welcome.resumed);
        if mutation == Mutation::DropBeforeASnapshot && !welcome.resumed {
            for cluster in self.received.records().clusters().cloned().collect::<Vec<_>>() {
                self.received.evict(&cluster, u64::MAX);
            }
        }
        if self.published_to.as_ref() != Some(&welcome.incarnation) {
            self.published_to = Some(welcome.incarnation.clone());
            self.put(self.publications.envelopes());
        }
        self.cursor.incarnation = self.covered.as_ref().map_or_else(String::new, |_| welcome.incarnation.clone());
    }

    /// Another interest is asked for.
    pub(crate) fn ask(&mut self) -> Vec<String> {
        self.told_interest.clone_from(&self.interest);
        if let Some(covered) = &mut self.covered {
            covered.retain(|namespace| self.interest.contains(namespace));
        }
        self.interest.iter().map(ToString::to_string).collect()
    }

    /// What it signed last on a key, when that is a value.
    pub(crate) fn position(&self, key: &RecordKey) -> Option<Position> {
        let (sequence, payload) = self.publications.said(key)?;
        let generation = membership(self.number, self.generation).member.generation();
        (*payload != Payload::Withdrawal && !self.evicted).then_some((generation, sequence))
    }

    /// What it exports, as others ought to hold it: each key's version.
    pub(crate) fn exported(&self) -> BTreeMap<RecordKey, String> {
        let of = |((namespace, service), version): (&(usize, usize), &u32)| {
            (export_key(*namespace, *service), version.to_string())
        };
        self.wanted.iter().filter(|_| !self.evicted).map(of).collect()
    }

    /// A crash, or a restore: what was written down some time ago is all that is known.
    pub(crate) fn restart(&mut self, saved: usize) {
        self.saved.truncate(saved + 1);
        let saved = self.saved.last().cloned().unwrap_or_default();
        self.publications = publications(self.number, self.generation, saved.own);
        self.received = Received::new(PATIENCE);
        for statement in saved.others {
            self.received.apply(statement);
        }
        self.received.restored();
        (self.cursor, self.highest) = (saved.cursor, saved.highest);
        for (cluster, through) in self.denied.evictions.clone() {
            self.received.evict(&cluster, through);
        }
        self.forget_connection();
    }

    /// A new membership: nothing that was signed under the old one counts.
    pub(crate) fn join(&mut self, generation: usize) {
        self.generation = generation;
        self.publications = publications(self.number, generation, Vec::new());
        self.saved.clear();
        self.forget_connection();
    }

    fn forget_connection(&mut self) {
        self.outbox.clear();
        self.covered = None;
        self.in_flight = false;
        self.published_to = None;
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }
}
