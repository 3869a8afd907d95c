//! A cluster: what it wants to export, what it has signed, and what it has heard of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use federation::export::IpFamily;
use federation::{ClusterName, Export, Namespace, RecordKey, ServiceId, ServiceType};
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::{Hello, PublishResult, Welcome};
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::records::{Applied, Comparison, Head, HeadScope, Reconciled, RecordSet};
use federation_api::signing::SequenceClock;
use federation_api::verify::VerifiedStatement;
use federation_store::Revision;

use super::checks::{Check, Violation};
use super::keys::{CLUSTERS, membership, name, verify};
use super::world::Mutation;

/// Where a receiver stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor {
    incarnation: String,
    pub(crate) revision: Revision,
    namespaces: BTreeSet<Namespace>,
}

/// A difference from an owner's heads that lasts so long is not the network's, milliseconds.
const DIFFERS_LONG: u64 = 5_000;

type Position = (u64, u64);

/// What a cluster writes down, and finds again after a crash.
#[derive(Clone)]
pub(crate) struct State {
    /// Its own records: payload, sequence, envelope.
    own: BTreeMap<RecordKey, (Payload, u64, Signed)>,
    last: u64,
    published_to: Option<String>,
    pub(crate) records: RecordSet,
    pub(crate) cursor: Cursor,
    /// The highest position that it has believed of each key.
    highest: BTreeMap<(ClusterName, RecordKey), Position>,
}

pub(crate) struct Cluster {
    pub(crate) number: usize,
    pub(crate) generation: usize,
    /// Its clock, against the world's.
    pub(crate) skew: i64,
    /// The services that it exports, and the version of each.
    pub(crate) wanted: BTreeMap<(usize, usize), u32>,
    pub(crate) interest: BTreeSet<Namespace>,
    pub(crate) state: State,
    pub(crate) saved: Vec<State>,
    outbox: BTreeMap<RecordKey, (u64, Signed)>,
    pub(crate) in_flight: bool,
    pub(crate) behind: BTreeSet<RecordKey>,
    covered: Option<BTreeSet<Namespace>>,
    present: BTreeMap<ClusterName, BTreeSet<RecordKey>>,
    pub(crate) connection: Option<u64>,
    pub(crate) told_interest: BTreeSet<Namespace>,
    differs_since: Option<u64>,
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

impl State {
    fn new() -> Self {
        Self {
            own: BTreeMap::new(),
            last: 0,
            published_to: None,
            records: RecordSet::new(),
            cursor: Cursor::default(),
            highest: BTreeMap::new(),
        }
    }
}

impl Cluster {
    pub(crate) fn new(number: usize, interest: BTreeSet<Namespace>) -> Self {
        Self {
            number,
            generation: 0,
            skew: 0,
            wanted: BTreeMap::new(),
            interest,
            state: State::new(),
            saved: Vec::new(),
            outbox: BTreeMap::new(),
            in_flight: false,
            behind: BTreeSet::new(),
            covered: None,
            present: BTreeMap::new(),
            connection: None,
            told_interest: BTreeSet::new(),
            differs_since: None,
        }
    }

    pub(crate) fn name(&self) -> ClusterName {
        name(self.number)
    }

    /// Signs what changed, as a control-plane does: withdrawals, news, and heads at the end.
    pub(crate) fn say(&mut self, now: u64) {
        let wanted: BTreeMap<_, _> = self
            .wanted
            .iter()
            .map(|((namespace, service), version)| {
                let key = export_key(*namespace, *service);
                (key.clone(), payload(&key, *version))
            })
            .collect();
        let live = self.state.own.iter().filter(|(key, own)| **key != RecordKey::Heads && own.0 != Payload::Withdrawal);
        let gone: Vec<_> = live.map(|(key, _)| key.clone()).filter(|key| !wanted.contains_key(key)).collect();
        for key in gone {
            self.sign(&key, Payload::Withdrawal, now);
        }
        for (key, payload) in wanted {
            if self.state.own.get(&key).is_none_or(|own| own.0 != payload) {
                self.sign(&key, payload, now);
            }
        }
        let heads = self.heads();
        if self.state.own.get(&RecordKey::Heads).is_none_or(|own| own.0 != heads) {
            self.sign(&RecordKey::Heads, heads, now);
        }
    }

    /// Signs anew what was refused for something newer of its own.
    pub(crate) fn say_again(&mut self, now: u64) {
        let mut behind = std::mem::take(&mut self.behind);
        if behind.is_empty() {
            return;
        }
        behind.remove(&RecordKey::Heads);
        for key in behind {
            if let Some((payload, ..)) = self.state.own.get(&key).cloned() {
                self.sign(&key, payload, now);
            }
        }
        let heads = self.heads();
        self.sign(&RecordKey::Heads, heads, now);
    }

    fn sign(&mut self, key: &RecordKey, payload: Payload, now: u64) {
        let now = self.clock(now);
        let mut clock = SequenceClock::after(self.state.last);
        let sequence = clock.next(now);
        self.state.last = sequence;
        let speaker = membership(self.number, self.generation).speaker(self.number);
        let signed = speaker.sign(sequence, now, key, &payload).unwrap();
        self.state.own.insert(key.clone(), (payload, sequence, signed.clone()));
        self.outbox.insert(key.clone(), (sequence, signed));
    }

    fn clock(&self, now: u64) -> SystemTime {
        let milliseconds = i64::try_from(now).unwrap() + self.skew + 100_000;
        super::keys::epoch() + Duration::from_millis(u64::try_from(milliseconds).unwrap())
    }

    fn heads(&self) -> Payload {
        let mut scopes: BTreeMap<HeadScope, Vec<(&RecordKey, u64)>> = BTreeMap::new();
        for (key, (payload, sequence, _)) in &self.state.own {
            if let Some(scope) = HeadScope::of(key).filter(|_| *payload != Payload::Withdrawal) {
                scopes.entry(scope).or_default().push((key, *sequence));
            }
        }
        Payload::Heads(scopes.into_iter().map(|(scope, lines)| Head::of(scope, lines)).collect())
    }

    /// The federation holds this of the cluster: news, when its own state came from a backup.
    fn stored(&mut self, statement: &VerifiedStatement) {
        self.state.last = self.state.last.max(statement.sequence);
        if self.state.own.get(&statement.key).is_none_or(|(_, sequence, _)| *sequence < statement.sequence) {
            let own = (statement.payload.clone(), statement.sequence, statement.signed.clone());
            self.state.own.insert(statement.key.clone(), own);
            self.outbox.remove(&statement.key);
        }
    }

    /// The next message of records, in the order of their sequences.
    pub(crate) fn batch(&mut self, most: usize) -> Vec<Signed> {
        let mut waiting: Vec<_> = self.outbox.values().collect();
        waiting.sort_by_key(|(sequence, _)| *sequence);
        waiting.into_iter().take(most).map(|(_, signed)| signed.clone()).collect()
    }

    /// Everything that it ever signed and still holds: an attacker's store of old words grows from it.
    pub(crate) fn envelopes(&self) -> impl Iterator<Item = &Signed> {
        self.state.own.values().map(|(.., signed)| signed)
    }

    pub(crate) fn published(&mut self, results: &[PublishResult]) -> bool {
        self.in_flight = false;
        let mut fenced = false;
        for result in results {
            let Ok(key) = result.key.parse::<RecordKey>() else { continue };
            if self.outbox.get(&key).is_some_and(|(sequence, _)| *sequence <= result.sequence) {
                self.outbox.remove(&key);
            }
            match result.refusal.as_ref().map(|refusal| refusal.reason()) {
                Some(Reason::Stale | Reason::Equivocation) => {
                    self.behind.insert(key);
                }
                Some(Reason::NotPublisher) => fenced = true,
                _ => {}
            }
        }
        if fenced {
            self.state.published_to = None;
        }
        fenced
    }

    pub(crate) fn hello(&mut self) -> Hello {
        let resuming = !self.state.cursor.incarnation.is_empty();
        let namespaces = if resuming { &self.state.cursor.namespaces & &self.interest } else { self.interest.clone() };
        self.told_interest.clone_from(&namespaces);
        Hello {
            versions: vec![1],
            incarnation: self.state.cursor.incarnation.clone(),
            revision: self.state.cursor.revision,
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            publisher: true,
            ..Hello::default()
        }
    }

    pub(crate) fn connected(&mut self, welcome: &Welcome) {
        self.in_flight = false;
        self.covered = welcome.resumed.then(|| self.told_interest.clone());
        if !welcome.resumed {
            self.present.clear();
        }
        if self.state.published_to.as_ref() != Some(&welcome.incarnation) {
            self.state.published_to = Some(welcome.incarnation.clone());
            self.outbox.extend(self.state.own.iter().map(|(key, own)| (key.clone(), (own.1, own.2.clone()))));
        }
        self.state.cursor.incarnation = self.covered.as_ref().map_or_else(String::new, |_| welcome.incarnation.clone());
    }

    /// Another interest is asked for.
    pub(crate) fn ask(&mut self) -> Vec<String> {
        self.told_interest.clone_from(&self.interest);
        if let Some(covered) = &mut self.covered {
            covered.retain(|namespace| self.interest.contains(namespace));
        }
        self.interest.iter().map(ToString::to_string).collect()
    }

    fn reached(&mut self, incarnation: &str, revision: Revision) {
        if let Some(namespaces) = self.covered.clone() {
            self.state.cursor = Cursor { incarnation: incarnation.to_owned(), revision, namespaces };
        }
    }

    /// A heartbeat: who has applied everything it was told comes along.
    pub(crate) fn come_along(&mut self, revision: Revision) {
        if self.covered.is_some() {
            self.state.cursor.revision = self.state.cursor.revision.max(revision);
        }
    }

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
                self.stored(&statement);
                continue;
            }
            let (cluster, key) = (statement.cluster.clone(), statement.key.clone());
            let position = (statement.generation, statement.sequence);
            self.present.entry(cluster.clone()).or_default().insert(key.clone());
            let mut applied = self.state.records.apply((*statement).clone());
            if mutation == Mutation::BelieveOldWords && applied == Applied::Stale {
                self.state.records.evict(&cluster, u64::MAX);
                applied = self.state.records.apply((*statement).clone());
            }
            if applied == Applied::New {
                let own = self.name();
                let highest = self.state.highest.entry((cluster.clone(), key.clone())).or_default();
                if position <= *highest {
                    let text = format!("{own} took {key} of {cluster} back to {position:?} from {highest:?}");
                    return Err(Violation { check: Check::NoResurrection, text });
                }
                *highest = position;
            }
        }
        self.check_heads();
        self.reached(incarnation, revision);
        Ok(())
    }

    /// Returns what was let go of, for the world to judge.
    pub(crate) fn complete(
        &mut self,
        incarnation: &str,
        revision: Revision,
        namespaces: &[String],
        mutation: Mutation,
    ) -> Vec<(ClusterName, RecordKey, Position)> {
        let namespaces: Vec<Namespace> = namespaces.iter().map(|name| name.parse().unwrap()).collect();
        let before = self.held();
        for scope in namespaces.iter().cloned().map(HeadScope::Namespace).chain([HeadScope::Cluster]) {
            for cluster in self.state.records.clusters().cloned().collect::<Vec<_>>() {
                if mutation == Mutation::DropWhatASnapshotLacks {
                    self.drop_blindly(&cluster, &scope);
                }
                let Some(present) = self.present.get(&cluster) else { continue };
                let present =
                    present.iter().filter(|key| HeadScope::of(key).as_ref() == Some(&scope)).cloned().collect();
                self.state.records.reconcile(&cluster, &scope, &present);
            }
        }
        self.check_heads();
        let wanted = namespaces.into_iter().filter(|namespace| self.told_interest.contains(namespace));
        self.covered.get_or_insert_default().extend(wanted);
        self.reached(incarnation, revision);
        let after = self.held();
        before.into_iter().filter(|held| !after.contains(held)).collect()
    }

    fn drop_blindly(&mut self, cluster: &ClusterName, scope: &HeadScope) {
        let present = self.present.get(cluster).cloned().unwrap_or_default();
        let kept: Vec<_> = self
            .state
            .records
            .evict(cluster, u64::MAX)
            .into_iter()
            .filter(|it| HeadScope::of(&it.key).as_ref() != Some(scope) || present.contains(&it.key))
            .collect();
        for statement in kept {
            self.state.records.apply(statement);
        }
    }

    fn held(&self) -> BTreeSet<(ClusterName, RecordKey, Position)> {
        let live = self.state.records.iter().filter(|it| it.is_live());
        live.map(|it| (it.cluster.clone(), it.key.clone(), (it.generation, it.sequence))).collect()
    }

    /// What owners' heads say of memberships that were replaced, and of keys that a snapshot lacked.
    fn check_heads(&mut self) {
        for cluster in self.state.records.clusters().cloned().collect::<Vec<_>>() {
            let scopes: BTreeSet<HeadScope> =
                self.state.records.of_cluster(&cluster).filter_map(|it| HeadScope::of(&it.key)).collect();
            for scope in scopes {
                let _: Reconciled = self.state.records.drop_replaced(&cluster, &scope);
                let Some(present) = self.present.get(&cluster).filter(|_| self.covers(&scope)) else { continue };
                let present = present.iter().filter(|key| HeadScope::of(key).as_ref() == Some(&scope));
                let present = present.cloned().collect();
                self.state.records.reconcile(&cluster, &scope, &present);
                self.state.records.forget_withdrawals(&cluster, &scope);
            }
        }
    }

    /// Whether what it holds has differed from what an owner's heads say for so long that only a snapshot can tell why.
    pub(crate) fn needs_a_snapshot(&mut self, now: u64) -> bool {
        let differs = |cluster: &ClusterName| {
            let scopes: BTreeSet<_> =
                self.state.records.of_cluster(cluster).filter_map(|it| HeadScope::of(&it.key)).collect();
            scopes
                .iter()
                .any(|scope| self.covers(scope) && self.state.records.compare(cluster, scope) == Comparison::Differs)
        };
        let differs = self.state.records.clusters().any(differs);
        let since = if differs { *self.differs_since.get_or_insert(now) } else { now };
        if !differs || now - since > DIFFERS_LONG {
            self.differs_since = None;
        }
        now - since > DIFFERS_LONG
    }

    /// The next session begins with a snapshot.
    pub(crate) fn begin_anew(&mut self) {
        self.state.cursor = Cursor::default();
    }

    fn covers(&self, scope: &HeadScope) -> bool {
        let HeadScope::Namespace(namespace) = scope else { return true };
        self.covered.as_ref().is_some_and(|covered| covered.contains(namespace))
    }

    /// What it signed last on a key, when that is a value.
    pub(crate) fn position(&self, key: &RecordKey) -> Option<Position> {
        let (payload, sequence, _) = self.state.own.get(key)?;
        let generation = membership(self.number, self.generation).member.generation();
        (*payload != Payload::Withdrawal).then_some((generation, *sequence))
    }

    /// What it exports, as others ought to hold it: each key's version.
    pub(crate) fn exported(&self) -> BTreeMap<RecordKey, String> {
        let of = |((namespace, service), version): (&(usize, usize), &u32)| {
            (export_key(*namespace, *service), version.to_string())
        };
        self.wanted.iter().map(of).collect()
    }

    /// What it holds of another cluster in the namespaces it has.
    pub(crate) fn believed(&self, cluster: &ClusterName) -> BTreeMap<RecordKey, String> {
        let exports =
            self.state.records.of_cluster(cluster).filter(|it| {
                it.is_live() && it.key.namespace().is_some_and(|namespace| self.interest.contains(namespace))
            });
        let version = |payload: &Payload| match payload {
            Payload::Export(export) => export.labels.get("version").cloned().unwrap_or_default(),
            _ => String::new(),
        };
        exports.map(|it| (it.key.clone(), version(&it.payload))).collect()
    }

    /// A crash, or a restore: what was written down some time ago is all that is known.
    pub(crate) fn restart(&mut self, saved: usize) {
        self.state = self.saved.get(saved).cloned().unwrap_or_else(State::new);
        self.forget_connection();
    }

    /// A new membership: nothing that was signed under the old one counts.
    pub(crate) fn join(&mut self, generation: usize) {
        self.generation = generation;
        self.state.own.clear();
        self.state.published_to = None;
        self.saved.clear();
        self.forget_connection();
    }

    fn forget_connection(&mut self) {
        self.outbox.clear();
        self.behind.clear();
        self.present.clear();
        self.covered = None;
        self.in_flight = false;
        self.state.published_to = None;
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }
}
