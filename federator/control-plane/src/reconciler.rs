//! The one owner of the cluster's state: inputs go in, effects come out.
//!
//! ```text
//!   Source ─┐                    ┌─► touched services ─► views ─► Snapshot ─► discovery, DNS, files, admin
//!   Gateways┤                    │
//!   Trust ──┼─► handle(input) ───┤
//!   Session ┤                    └─► own records that changed ─► signed ─► federator
//!   Joined ─┘                                  flush() ─► Effects
//! ```
//!
//! No input or output happens here, and time is an argument: whatever order inputs come in, the state is a function of
//! them. Before the first full reading of the source nothing is published, withdrawn, released or written.

mod effects;
mod foreign;
mod local;
mod saved;
mod session;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use federation::capacity::CapacityReporter;
use federation::delegation::Delegation;
use federation::{ClusterName, FederationDomain, Gateway, Namespace, RecordKey, ServiceHost, ServiceId, ZoneCapacity};
use federation_api::client::federation::SessionCursor;
use federation_api::federation::v1::{ClusterLiveness, PublishResult};
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::signing::Speaker;
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::VerifiedMember;
use federation_resources::{Change, Problem};
use rustls_pki_types::CertificateDer;
use spiffe_identity::Bundle;
use tracing::{error, warn};

use crate::local::{LocalIndex, LocalService, NamespaceWorkloads};
use crate::peers::{PeerChange, Peers};
use crate::publications::{HEADS_REFRESH, Publications, Successor};
use crate::snapshot::{ClusterStatus, ExportView, LinkStatus, ServiceView, SourceStatus};
use crate::vips::VipAllocator;

pub use effects::{Effects, TrustEffect};
use foreign::Foreign;
pub use saved::{Restored, SavedBundle, files};

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals.
    pub instant: Instant,
    /// For people and records.
    pub system: SystemTime,
}

impl Now {
    /// The moment of the call.
    #[must_use]
    pub fn read() -> Self {
        Self { instant: Instant::now(), system: SystemTime::now() }
    }
}

/// What happens in the world.
#[derive(Debug)]
pub enum Input {
    /// The source of the cluster's own objects.
    Source(SourceUpdate),
    /// The cluster's own gateways, as they say themselves.
    Gateways(Vec<Gateway>),
    /// Where the cluster's own sidecars have to go to reach other clusters; nowhere: they dial by themselves.
    EgressGateways(Vec<Gateway>),
    /// A step of the trust state.
    Trust(Box<WatchResponse>),
    /// The watch of the trust-bundle was opened, or lost for a reason.
    TrustLink(Result<(), String>),
    /// The watch of the trust-bundle is open, and everything that came over it is applied.
    TrustConfirmed,
    /// The session with the federator.
    Session(SessionInput),
    /// Round-trip times to other clusters.
    RoundTrips(BTreeMap<ClusterName, Duration>),
    /// The cluster became a member, or a member anew.
    Joined(Box<Joined>),
    /// The publish keys of the same membership, changed.
    PublishKeys(Box<Joined>),
    /// The membership is to end: everything is withdrawn.
    Leave,
    /// The membership has ended, by the cluster's own word.
    Left,
    /// The bundles of trust domains outside the federation, all of them.
    ForeignBundles(Vec<Bundle>),
    /// The cluster's own roots, the next or the last one among them while one is replaced.
    OwnRoots(Vec<CertificateDer<'static>>),
}

/// News from the source of the cluster's own objects: manifests, or the Kubernetes API.
#[derive(Debug, Default)]
pub struct SourceUpdate {
    /// Changed objects, in order.
    pub changes: Vec<Change>,
    /// With this update everything that there is has been read at least once.
    pub synced: bool,
    /// Everything that is wrong now.
    pub problems: Vec<Problem>,
    /// Objects of kinds that mean nothing here.
    pub passed_over: BTreeMap<String, u32>,
}

/// What happens in the session with the federator.
#[derive(Debug)]
pub enum SessionInput {
    /// It is open.
    Connected {
        /// The store's history.
        incarnation: String,
        /// Only what changed follows.
        resumed: bool,
    },
    /// Records.
    Changes(Vec<Signed>, SessionCursor),
    /// All records of namespaces have come.
    SnapshotComplete(Vec<Namespace>, SessionCursor),
    /// Answers.
    Published(Vec<PublishResult>),
    /// Other clusters' sessions.
    Liveness(Vec<ClusterLiveness>),
    /// The federator is at this revision.
    Heartbeat(u64),
    /// Lost, for this reason.
    Disconnected(String),
}

/// A membership, as far as it matters here.
#[derive(Debug)]
pub struct Joined {
    /// Who speaks.
    pub speaker: Speaker,
    /// Who speaks next.
    pub successor: Option<Successor>,
    /// The membership.
    pub member: VerifiedMember,
    /// The pinned root.
    pub root: federation_api::signing::PublicKey,
}

/// What stays the same while the program runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The cluster.
    pub cluster: ClusterName,
    /// The federation.
    pub federation: FederationDomain,
    /// The cluster's trust domain.
    pub trust_domain: String,
    /// The cluster's own roots, and their sequence as it goes on from what was on disk.
    pub bundle: Bundle,
    /// Below 1, by chance: sets this cluster's own times apart from others'.
    pub spread: f64,
}

/// The capacity of one export as it was last told, and who decides when to tell again.
#[derive(Debug, Default)]
struct Told {
    reporter: CapacityReporter,
    zones: Vec<ZoneCapacity>,
}

/// What has to be computed again.
#[derive(Debug, Default)]
struct Dirty {
    all: bool,
    services: BTreeSet<ServiceId>,
    clusters: BTreeSet<ClusterName>,
    records: bool,
    trust: bool,
    snapshot: bool,
}

/// The owner.
#[derive(Debug)]
pub struct Reconciler {
    facts: Facts,
    index: LocalIndex,
    source: Arc<SourceStatus>,
    source_synced: bool,
    services: BTreeMap<ServiceId, Arc<LocalService>>,
    workloads: BTreeMap<Namespace, Arc<NamespaceWorkloads>>,
    told: BTreeMap<ServiceId, Told>,
    first_seen: BTreeMap<ServiceId, SystemTime>,
    gateways: Vec<Gateway>,
    egress_gateways: Vec<Gateway>,
    peers: Peers,
    foreign: Foreign,
    round_trips: BTreeMap<ClusterName, Duration>,
    publications: Option<Publications>,
    /// What the cluster may claim: its own view of its exports is the one that others have.
    delegation: Option<Delegation>,
    /// The federation's last full trust state had no bundle of this cluster.
    bundle_missing: bool,
    published_before: Vec<Signed>,
    published_to: Option<String>,
    wanted: BTreeMap<RecordKey, Payload>,
    vips: VipAllocator,
    views: BTreeMap<ServiceId, Arc<ServiceView>>,
    exports: BTreeMap<ServiceId, Arc<ExportView>>,
    routes: BTreeMap<ServiceHost, Arc<federation_api::discovery::v1::Resource>>,
    clusters: BTreeMap<ClusterName, ClusterStatus>,
    by_vip: Arc<std::collections::HashMap<IpAddr, ServiceHost>>,
    local_services: BTreeMap<ServiceId, Arc<federation_api::discovery::v1::Resource>>,
    by_cluster_ip: Arc<std::collections::HashMap<IpAddr, ServiceId>>,
    local_addresses: Option<Arc<federation_api::discovery::v1::Resource>>,
    namespaces: Arc<BTreeSet<Namespace>>,
    peers_synced: bool,
    /// What is to be reported as applied, once it is written down.
    session_cursor: Option<SessionCursor>,
    /// What was last written down as applied.
    saved_cursor: SessionCursor,
    federator: LinkStatus,
    trust_bundle: LinkStatus,
    dirty: Dirty,
    publish_all: bool,
    begin_anew: bool,
    /// The session is to begin again: what the present one leads to is not to be gone on from.
    cursors_are_void: bool,
    /// Nothing is to be said any more.
    leaving: bool,
    /// The revision of the last snapshot.
    shown: u64,
    save: saved::Unsaved,
}

impl Reconciler {
    /// An owner with what was on disk. A cluster that is a member gives `joined`.
    #[must_use]
    pub fn new(facts: Facts, vips: VipAllocator, restored: Restored, joined: Option<Joined>, now: Now) -> Self {
        let mut peers = Peers::new(facts.cluster.clone(), facts.federation.clone(), facts.spread);
        if let Some(joined) = &joined {
            peers.change_trust(now.system, |trust| {
                trust.pin(joined.root);
                trust.apply(&restored.trust)
            });
        }
        peers.apply(restored.peers, now.system);
        peers.restored();
        let peers_synced = joined.is_none() || restored.peers_synced;
        let mut reconciler = Self {
            index: LocalIndex::new(facts.cluster.clone()),
            source: Arc::default(),
            source_synced: false,
            services: BTreeMap::new(),
            workloads: BTreeMap::new(),
            told: BTreeMap::new(),
            first_seen: restored.first_seen,
            gateways: restored.gateways,
            egress_gateways: restored.egress_gateways,
            peers,
            foreign: Foreign::default(),
            round_trips: BTreeMap::new(),
            publications: None,
            delegation: None,
            bundle_missing: false,
            published_before: restored.published,
            published_to: None,
            wanted: BTreeMap::new(),
            vips,
            views: BTreeMap::new(),
            exports: BTreeMap::new(),
            routes: BTreeMap::new(),
            clusters: BTreeMap::new(),
            by_vip: Arc::default(),
            local_services: BTreeMap::new(),
            by_cluster_ip: Arc::default(),
            local_addresses: None,
            namespaces: Arc::default(),
            peers_synced,
            session_cursor: None,
            saved_cursor: restored.session_cursor,
            federator: LinkStatus { last_applied: restored.applied_at, ..LinkStatus::default() },
            trust_bundle: LinkStatus::default(),
            dirty: Dirty { all: true, records: true, trust: true, snapshot: true, ..Dirty::default() },
            publish_all: true,
            begin_anew: false,
            cursors_are_void: false,
            leaving: false,
            shown: 0,
            save: saved::Unsaved { bundle: true, ..saved::Unsaved::default() },
            facts,
        };
        if let Some(joined) = joined {
            reconciler.speak_as(joined);
        }
        reconciler
    }

    /// Takes one input. Nothing is computed before [`flush`](Self::flush), so a burst costs once.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Source(update) => self.take_source(update),
            Input::Gateways(gateways) => {
                if gateways != self.gateways {
                    self.gateways = gateways;
                    self.dirty.records = true;
                    self.dirty.snapshot = true;
                    self.save.local = true;
                }
            }
            Input::EgressGateways(gateways) => {
                if gateways != self.egress_gateways {
                    self.egress_gateways = gateways;
                    self.dirty.snapshot = true;
                    self.save.local = true;
                }
            }
            Input::Trust(update) => self.take_trust(&update, now),
            Input::TrustLink(state) => {
                self.trust_bundle.connected = state.is_ok();
                self.trust_bundle.problem = state.err();
                self.dirty.snapshot = true;
            }
            Input::TrustConfirmed => {
                self.trust_bundle.last_applied = Some(now.system);
                self.dirty.snapshot = true;
            }
            Input::Session(input) => self.take_session(input, now),
            Input::RoundTrips(times) => self.take_round_trips(times),
            Input::ForeignBundles(bundles) => {
                self.foreign.replace(bundles);
                self.dirty.trust = true;
                self.dirty.snapshot = true;
            }
            Input::OwnRoots(roots) => self.take_own_roots(roots, now),
            Input::PublishKeys(joined) => {
                if let Some(publications) = &mut self.publications {
                    publications.rekey(joined.speaker, joined.successor, joined.member);
                }
                // What nobody could verify so far may be refused: said again, it is taken.
                self.publish_all = true;
                self.dirty.records = true;
            }
            Input::Leave => {
                self.leaving = true;
                self.publish_all = true;
                self.dirty.records = true;
            }
            Input::Left => self.take_departure(),
            Input::Joined(joined) => {
                self.peers.change_trust(now.system, |trust| trust.pin(joined.root));
                self.peers_synced = false;
                self.saved_cursor = SessionCursor::default();
                self.save.peers = true;
                self.speak_as(*joined);
                self.refresh_all_records();
                self.dirty.all = true;
                self.dirty.trust = true;
                self.dirty.records = true;
            }
        }
    }

    /// When [`flush`](Self::flush) has something to do though nothing happens.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let again = self.publications.as_ref().filter(|_| self.source_synced);
        let again = again.map(|publications| publications.sign_again_due(Instant::now()));
        self.told.values().filter_map(|told| told.reporter.next_due()).chain(again).min()
    }

    fn speak_as(&mut self, joined: Joined) {
        let before = match &self.publications {
            Some(publications) => publications.envelopes(),
            None => std::mem::take(&mut self.published_before),
        };
        self.delegation = Some(joined.member.delegation().clone());
        self.publications =
            Some(Publications::new(joined.speaker, joined.successor, joined.member, before, HEADS_REFRESH));
        self.publish_all = true;
        self.published_to = None;
    }

    fn take_source(&mut self, update: SourceUpdate) {
        for change in update.changes {
            self.index.apply(change);
        }
        self.source_synced |= update.synced;
        let status = SourceStatus { problems: update.problems, passed_over: update.passed_over };
        if status != *self.source {
            for problem in status.problems.iter().filter(|problem| !self.source.problems.contains(problem)) {
                warn!(%problem, "a manifest is not taken");
            }
            self.source = Arc::new(status);
        }
        self.dirty.snapshot = true;
    }

    fn take_trust(&mut self, update: &WatchResponse, now: Now) {
        let (refusals, change) = self.peers.change_trust(now.system, |trust| trust.apply(update));
        for refusal in refusals {
            error!(%refusal, "a part of the trust state is refused");
        }
        self.touch(change);
        let own = update.bundles.iter().any(|signed| self.is_own(signed));
        if update.full || own {
            self.bundle_missing = !own;
        }
        self.trust_bundle.connected = true;
        self.trust_bundle.last_applied = Some(now.system);
        self.trust_bundle.revision = update.epoch;
        self.trust_bundle.incarnation.clone_from(&update.incarnation);
        self.dirty.all = true;
        self.dirty.trust = true;
        self.dirty.snapshot = true;
        self.save.trust = true;
    }

    /// Nothing of the federation is believed any more; the cluster's own services go on.
    fn take_departure(&mut self) {
        self.peers = Peers::new(self.facts.cluster.clone(), self.facts.federation.clone(), self.facts.spread);
        self.leaving = false;
        self.publications = None;
        self.delegation = None;
        self.bundle_missing = false;
        self.published_to = None;
        self.session_cursor = None;
        self.saved_cursor = SessionCursor::default();
        self.peers_synced = true;
        (self.federator, self.trust_bundle) = (LinkStatus::default(), LinkStatus::default());
        self.refresh_all_records();
        self.dirty = Dirty { all: true, records: true, trust: true, snapshot: true, ..Dirty::default() };
        self.save = saved::Unsaved { trust: true, peers: true, ..saved::Unsaved::default() };
    }

    /// Other roots are another bundle, whose sequence is higher than any before.
    fn take_own_roots(&mut self, roots: Vec<CertificateDer<'static>>, now: Now) {
        let bundle = &mut self.facts.bundle;
        if bundle.x509_authorities != roots {
            bundle.x509_authorities = roots;
            bundle.sequence = saved::next_bundle_sequence(bundle.sequence, now.system);
            self.save.bundle = true;
            self.dirty.trust = true;
            self.dirty.snapshot = true;
        }
    }

    /// Round-trip times move views only when they moved by more than a quarter: every probe measures another value.
    fn take_round_trips(&mut self, times: BTreeMap<ClusterName, Duration>) {
        for (cluster, time) in times {
            let before = self.round_trips.get(&cluster).copied().unwrap_or_default();
            let moved = before.abs_diff(time);
            if before.is_zero() || moved > (before / 4).max(Duration::from_micros(500)) {
                self.round_trips.insert(cluster.clone(), time);
                self.dirty.clusters.insert(cluster);
                self.dirty.snapshot = true;
            }
        }
    }
}
