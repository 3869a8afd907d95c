//! What is known of the other clusters: memberships, bundles, the deny-list, and their verified records.
//!
//! Nothing here is believed before it was verified under the membership root that was pinned at the join. What was
//! believed stays, across disconnections and restarts, until its owner's signed word or the operator's takes it away. What
//! to make of words that are late, missing or older is [`Received`]'s.

mod alarms;
mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use federation::{ClusterName, Export, FederationDomain, Gateway, HeadlessEndpoint, Namespace, RecordKey, ServiceId};
use federation_api::federation::v1::ClusterLiveness;
use federation_api::payload::Payload;
use federation_api::record::v1::{Signed, Statement};
use federation_api::records::{Applied, Patience, Received};
use federation_api::verify::{RecordError, VerifiedStatement};
use prost::Message as _;
use tracing::warn;

pub use alarms::{Alarm, AlarmKind};
pub use federation_api::records::Liveness;
pub use trust::{PeerTrust, TrustRefusal};

/// Records of clusters whose membership has not arrived yet, at most.
const MAX_WAITING: usize = 10_000;
/// How long a difference from an owner's heads lasts before a snapshot is asked for. Clusters ask at times of their own, a
/// half of this apart at most: an owner that says wrong heads is heard by all of them.
const PATIENCE: Patience =
    Patience { first: Duration::from_secs(15), longest: Duration::from_secs(3600), withdrawals: 1_000 };

/// What a change concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerChange {
    /// Services to compute again.
    pub services: BTreeSet<ServiceId>,
    /// Clusters all of whose services are to be computed again.
    pub clusters: BTreeSet<ClusterName>,
}

impl PeerChange {
    fn of(changed: Vec<(ClusterName, RecordKey)>) -> Self {
        let mut change = Self::default();
        for (cluster, key) in changed {
            match key {
                RecordKey::Export(service) | RecordKey::Slice(service, _) => {
                    change.services.insert(service);
                }
                RecordKey::Gateways => {
                    change.clusters.insert(cluster);
                }
                RecordKey::Bundle | RecordKey::Heads | RecordKey::Membership => {}
            }
        }
        change
    }

    /// Whether nothing is to be computed again.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.clusters.is_empty()
    }

    /// Adds another change.
    pub fn add(&mut self, other: Self) {
        self.services.extend(other.services);
        self.clusters.extend(other.clusters);
    }
}

/// The other clusters.
#[derive(Debug)]
pub struct Peers {
    own: ClusterName,
    trust: PeerTrust,
    received: Received,
    waiting: Vec<Signed>,
    alarms: alarms::Alarms,
    /// When a record of the cluster was last applied.
    applied: BTreeMap<ClusterName, SystemTime>,
}

impl Peers {
    /// Nobody is known. `spread`, below 1, sets this cluster's own times apart from others'.
    #[must_use]
    pub fn new(own: ClusterName, federation: FederationDomain, spread: f64) -> Self {
        let patience = Patience { first: PATIENCE.first + (PATIENCE.first / 2).mul_f64(spread), ..PATIENCE };
        Self {
            own,
            trust: PeerTrust::new(federation),
            received: Received::new(patience),
            waiting: Vec::new(),
            alarms: alarms::Alarms::default(),
            applied: BTreeMap::new(),
        }
    }

    /// Members, bundles, deny-list.
    #[must_use]
    pub fn trust(&self) -> &PeerTrust {
        &self.trust
    }

    /// Changes the trust state, and judges the records again that depend on it.
    pub fn change_trust<T>(&mut self, now: SystemTime, change: impl FnOnce(&mut PeerTrust) -> T) -> (T, PeerChange) {
        let outcome = change(&mut self.trust);
        for (cluster, through) in self.trust.deny_list().evictions.clone() {
            self.received.evict(&cluster, through);
        }
        let departures: Vec<_> = self.trust.departures().map(|(cluster, through)| (cluster.clone(), through)).collect();
        for (cluster, through) in departures {
            self.received.evict(&cluster, through);
        }
        let waiting = std::mem::take(&mut self.waiting);
        let mut change = self.apply(waiting, now);
        change.clusters.extend(self.received.records().clusters().cloned());
        (outcome, change)
    }

    /// Takes records as they come from the federator or the disk: verified, newest first in effect.
    pub fn apply(&mut self, records: Vec<Signed>, now: SystemTime) -> PeerChange {
        let mut changed = Vec::new();
        for signed in records {
            let Some(statement) = self.verify(signed) else { continue };
            let (cluster, key, sequence) = (statement.cluster.clone(), statement.key.clone(), statement.sequence);
            match self.received.apply(statement) {
                Applied::New => {
                    self.applied.insert(cluster.clone(), now);
                    changed.push((cluster, key));
                }
                Applied::Same => {
                    self.applied.insert(cluster, now);
                }
                Applied::Stale => {}
                Applied::Equivocation => {
                    self.alarms.raise(&cluster, AlarmKind::Equivocation, format!("{key} at sequence {sequence}"), now);
                }
            }
        }
        changed.extend(self.received.settle());
        PeerChange::of(changed)
    }

    /// What was applied so far came from the disk.
    pub fn restored(&mut self) {
        self.received.restored();
    }

    /// A session begins; unless it resumed, a snapshot follows.
    pub fn session_begins(&mut self, resumed: bool) {
        self.received.session_begins(resumed);
    }

    /// The session covers these namespaces.
    pub fn covers(&mut self, namespaces: &BTreeSet<Namespace>) {
        self.received.covers(namespaces);
    }

    /// A snapshot of namespaces is complete: lets go of what it lacked, where the owner's heads agree.
    pub fn snapshot_complete(&mut self, namespaces: &[Namespace], now: SystemTime) -> PeerChange {
        let mut change = PeerChange::of(self.received.complete(namespaces));
        change.add(self.check_heads(now));
        change
    }

    /// Notices what is withheld, and lets go of what memberships that were replaced have said.
    pub fn check_heads(&mut self, now: SystemTime) -> PeerChange {
        let change = PeerChange::of(self.received.check());
        let clusters: Vec<_> = self.received.records().clusters().cloned().collect();
        for cluster in clusters {
            let mut differing: Vec<_> = self.received.differing(&cluster).iter().map(ToString::to_string).collect();
            if self.received.was_set_back(&cluster) {
                differing.push(RecordKey::Heads.to_string());
            }
            let records = self.received.records();
            // Its own word on what there is, and nothing is missing: what is held is what it says now.
            if differing.is_empty()
                && !records.scopes(&cluster).is_empty()
                && records.record(&cluster, &RecordKey::Heads).is_some()
            {
                self.applied.insert(cluster.clone(), now);
            }
            self.alarms.withheld(&cluster, &differing, now);
        }
        change
    }

    /// Whether something has differed from its owner's heads for so long that the session must begin again, with a snapshot.
    pub fn needs_a_snapshot(&mut self, now: Instant) -> bool {
        self.received.needs_a_snapshot(now)
    }

    /// Takes the federator's word on the clusters' sessions.
    pub fn set_liveness(&mut self, clusters: &[ClusterLiveness]) -> PeerChange {
        PeerChange { clusters: self.received.set_liveness(clusters), ..PeerChange::default() }
    }

    /// Whether what a cluster says counts: it is a member, and not shut out.
    #[must_use]
    pub fn believes(&self, cluster: &ClusterName) -> bool {
        *cluster != self.own && self.trust.believes(cluster)
    }

    /// Who else exports a service, and how.
    pub fn exports<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = (&'a ClusterName, &'a Export)> {
        self.received.records().exports(service).filter(|(cluster, _)| self.believes(cluster))
    }

    /// The endpoints of a headless service in one cluster.
    #[must_use]
    pub fn headless(&self, cluster: &ClusterName, service: &ServiceId) -> Vec<HeadlessEndpoint> {
        let slices = self.received.records().of_cluster(cluster).filter_map(|statement| match &statement.payload {
            Payload::Slice(slice) if slice.service == *service => Some(slice),
            _ => None,
        });
        slices.flat_map(|slice| slice.endpoints.iter().cloned()).collect()
    }

    /// Every service that some other cluster exports.
    pub fn services(&self) -> impl Iterator<Item = &ServiceId> {
        self.received.records().iter().filter(|it| self.believes(&it.cluster)).filter_map(exported_service)
    }

    /// The services that one cluster exports.
    pub fn services_of<'a>(&'a self, cluster: &ClusterName) -> impl Iterator<Item = &'a ServiceId> {
        self.received.records().of_cluster(cluster).filter_map(exported_service)
    }

    /// A cluster's gateways.
    #[must_use]
    pub fn gateways(&self, cluster: &ClusterName) -> &[Gateway] {
        if self.believes(cluster) { self.received.records().gateways(cluster) } else { &[] }
    }

    /// A cluster's session, as far as the federation has said.
    #[must_use]
    pub fn liveness(&self, cluster: &ClusterName) -> Option<Liveness> {
        self.received.liveness(cluster)
    }

    /// The federation has lost touch with it. What is not known is not suspected.
    #[must_use]
    pub fn suspect(&self, cluster: &ClusterName) -> bool {
        self.received.suspects(cluster)
    }

    /// When a record of the cluster was last applied or confirmed.
    #[must_use]
    pub fn last_applied(&self, cluster: &ClusterName) -> Option<SystemTime> {
        self.applied.get(cluster).copied()
    }

    /// What should worry an operator about a cluster's records.
    pub fn alarms(&self, cluster: &ClusterName) -> impl Iterator<Item = &Alarm> {
        self.alarms.of(cluster)
    }

    /// Members other than this cluster, shut out or not.
    pub fn others(&self) -> impl Iterator<Item = &ClusterName> {
        self.trust.members().filter(|cluster| **cluster != self.own)
    }

    /// All records as they came, to be written down.
    #[must_use]
    pub fn envelopes(&self) -> Vec<Signed> {
        self.received
            .records()
            .iter()
            .map(|statement| statement.signed.clone())
            .chain(self.waiting.iter().cloned())
            .collect()
    }

    fn verify(&mut self, signed: Signed) -> Option<VerifiedStatement> {
        // Only the name of the cluster is read before the signature is checked, to know whose key to check it with.
        let cluster = speaker(&signed)?;
        // What it says itself is taken back by its publications, if it was forgotten.
        if cluster == self.own {
            return None;
        }
        let Some(member) = self.trust.member(&cluster) else {
            if self.waiting.len() < MAX_WAITING {
                self.waiting.push(signed);
            }
            return None;
        };
        match member.verify(&signed) {
            Ok(statement) => Some(statement),
            // By a publish key, or of a membership, that has not arrived yet: the two streams do not wait for each other.
            Err(RecordError::Signature | RecordError::Generation { .. })
                if self.waiting.len() < MAX_WAITING && generation(&signed) >= Some(member.generation()) =>
            {
                self.waiting.push(signed);
                None
            }
            Err(error) => {
                warn!(%cluster, %error, "a record is refused");
                None
            }
        }
    }
}

/// Whose record it says it is; nothing of it is believed yet.
pub(crate) fn speaker(signed: &Signed) -> Option<ClusterName> {
    Statement::decode(signed.message.as_ref()).ok()?.cluster.parse().ok()
}

/// Of which membership it says it is; nothing of it is believed yet.
fn generation(signed: &Signed) -> Option<u64> {
    Some(Statement::decode(signed.message.as_ref()).ok()?.generation)
}

fn exported_service(statement: &VerifiedStatement) -> Option<&ServiceId> {
    match (&statement.key, &statement.payload) {
        (RecordKey::Export(service), Payload::Export(_)) => Some(service),
        _ => None,
    }
}
