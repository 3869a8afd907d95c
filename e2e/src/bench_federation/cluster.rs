//! A synthetic control-plane: what it says, and its session with the real client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use federation::export::{IpFamily, Port, Protocol};
use federation::{Export, Locality, Namespace, RecordKey, ServiceId, ServiceType, ZoneCapacity};
use federation_api::client::federation::{Session, SessionCursor, SessionEvent, SessionOptions};
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::records::{Head, HeadScope};
use federation_api::signing::{SequenceClock, Speaker};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::plane::Joined;
use super::tracker::Tracker;

/// Namespaces of the federation.
pub(super) const NAMESPACES: usize = 100;
/// Namespaces that a cluster has: it exports from all of them, and hears of all of them. So a tenth of the clusters has any
/// one of them.
pub(super) const OWN_NAMESPACES: usize = 10;
/// Endpoints of an export.
const ENDPOINTS: u32 = 10;

/// The namespaces of a cluster. Both strides are coprime to the number of namespaces, so that none is had more often.
pub(super) fn namespaces(cluster: usize) -> anyhow::Result<BTreeSet<Namespace>> {
    (0..OWN_NAMESPACES).map(|n| Ok(format!("team-{:02}", (cluster * 7 + n * 13) % NAMESPACES).parse()?)).collect()
}

/// What a cluster says.
pub(super) struct Publisher {
    speaker: Arc<Speaker>,
    clock: SequenceClock,
    sequences: BTreeMap<RecordKey, u64>,
}

impl Publisher {
    pub(super) fn new(cluster: usize, exports: usize, speaker: Arc<Speaker>) -> anyhow::Result<Self> {
        let namespaces: Vec<_> = namespaces(cluster)?.into_iter().collect();
        let mut sequences = BTreeMap::new();
        for number in 0..exports {
            let namespace = &namespaces[number % namespaces.len()];
            sequences.insert(
                RecordKey::Export(ServiceId::parse_parts(namespace.as_str(), &format!("service-{number}"))?),
                0,
            );
        }
        Ok(Self { speaker, clock: SequenceClock::after(0), sequences })
    }

    /// The key of an export, and its namespace.
    pub(super) fn key(&self, number: usize) -> Option<(RecordKey, Namespace)> {
        let key = self.sequences.keys().nth(number % self.sequences.len().max(1))?;
        Some((key.clone(), key.namespace()?.clone()))
    }

    /// Its first words: every export, and the heads.
    pub(super) fn everything(&mut self) -> anyhow::Result<Vec<Signed>> {
        let keys: Vec<_> = self.sequences.keys().cloned().collect();
        let mut records = Vec::with_capacity(keys.len() + 1);
        for key in keys {
            records.push(self.say(&key, ENDPOINTS)?.1);
        }
        records.push(self.heads()?);
        Ok(records)
    }

    /// What a change of one export makes a control-plane say, and the change's sequence.
    pub(super) fn change(&mut self, key: &RecordKey, ready: u32) -> anyhow::Result<(u64, [Signed; 2])> {
        let (sequence, export) = self.say(key, ready % ENDPOINTS)?;
        Ok((sequence, [export, self.heads()?]))
    }

    fn say(&mut self, key: &RecordKey, ready: u32) -> anyhow::Result<(u64, Signed)> {
        let RecordKey::Export(service) = key else { anyhow::bail!("{key} is no export") };
        let now = SystemTime::now();
        let sequence = self.clock.next(now);
        let payload = Payload::Export(Box::new(export(service.clone(), now, ready)));
        self.sequences.insert(key.clone(), sequence);
        Ok((sequence, self.speaker.sign(sequence, now, key, &payload)?))
    }

    fn heads(&mut self) -> anyhow::Result<Signed> {
        let mut scopes: BTreeMap<HeadScope, Vec<_>> = BTreeMap::new();
        for (key, sequence) in &self.sequences {
            if let Some(scope) = HeadScope::of(key) {
                scopes.entry(scope).or_default().push((key, *sequence));
            }
        }
        let heads = Payload::Heads(scopes.into_iter().map(|(scope, lines)| Head::of(scope, lines)).collect());
        let now = SystemTime::now();
        Ok(self.speaker.sign(self.clock.next(now), now, &RecordKey::Heads, &heads)?)
    }
}

fn export(service: ServiceId, created: SystemTime, ready: u32) -> Export {
    let locality = Locality { region: "eu-1".to_owned(), zone: "eu-1a".to_owned() };
    let port = Port { name: "http".to_owned(), port: 80, protocol: Protocol::Tcp, app_protocol: "http".to_owned() };
    Export {
        service,
        service_type: ServiceType::ClusterSetIP,
        ports: vec![port],
        client_ip_affinity: None,
        ip_families: vec![IpFamily::IPv4],
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created,
        service_accounts: vec!["default".to_owned()],
        zones: vec![ZoneCapacity { locality, total: ENDPOINTS, ready }],
    }
}

/// How far a session is.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// How often it was connected.
    pub(super) connected: usize,
    /// The last time was without a snapshot.
    pub(super) resumed: bool,
    /// Where.
    pub(super) replica: String,
    /// It has everything since then.
    pub(super) complete: bool,
}

/// One cluster's session, until dropped.
pub(super) struct Cluster {
    pub(super) session: Session,
    pub(super) state: watch::Receiver<State>,
    /// Records that it was told.
    pub(super) records: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cluster {
    /// Opens the session of cluster `number` from the beginning, at replica `first` if it answers.
    pub(super) fn open(
        number: usize,
        namespaces: BTreeSet<Namespace>,
        (addresses, first): (&[SocketAddr], usize),
        joined: &Arc<Vec<Joined>>,
        tracker: &Arc<Tracker>,
    ) -> Self {
        let channel = joined[number].channel(addresses, first);
        let cursor = SessionCursor::default();
        let options = SessionOptions { namespaces, publisher: true, cursor, ..SessionOptions::default() };
        let (session, mut events) = Session::open(channel, options);
        let (sender, state) = watch::channel(State::default());
        let records = Arc::new(AtomicUsize::new(0));
        let (count, applied) = (Arc::clone(&records), session.clone());
        let (joined, tracker) = (Arc::clone(joined), Arc::clone(tracker));
        let task = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    SessionEvent::Connected(welcome) => sender.send_modify(|state| {
                        state.connected += 1;
                        (state.resumed, state.replica, state.complete) = (welcome.resumed, welcome.replica, false);
                    }),
                    SessionEvent::Changes { records, cursor, .. } => {
                        count.fetch_add(records.len(), Ordering::Relaxed);
                        tracker.arrived(number, &records, &joined);
                        applied.applied(cursor);
                    }
                    SessionEvent::SnapshotComplete { cursor, .. } => {
                        applied.applied(cursor);
                        sender.send_modify(|state| state.complete = true);
                    }
                    _ => {}
                }
            }
        });
        Self { session, state, records, task }
    }

    /// How far it is now.
    pub(super) fn now(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until it is as far as that.
    pub(super) async fn until(&self, reached: impl Fn(&State) -> bool) {
        // The sender lives as long as this.
        let _ = self.state.clone().wait_for(|state| reached(state)).await;
    }
}
