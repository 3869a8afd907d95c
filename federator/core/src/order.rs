//! Failover order: which group of endpoints a client tries first.
//!
//! ```text
//! 0  same cluster, same zone          2  other clusters in the client's zone or region
//! 1  same cluster, same region        3  everything else, nearer round-trip times first
//! ```
//!
//! Priorities are dense (0, 1, 2 …): an order without local endpoints begins at 0 with the best there is. A suspect
//! cluster keeps its place here, marked: suspicion alone moves no traffic, so only the balancer, which sees requests
//! fail, may put it last.
//!
//! A [`Preference`], from a failover policy, changes this: other agreements first, only some clusters and in an order of
//! their own, or fixed shares in place of an order.

use std::time::Duration;

use crate::export::ZoneCapacity;
use crate::locality::Locality;
use crate::name::ClusterName;

/// An agreement between a client and an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// The same zone.
    Zone,
    /// The same region.
    Region,
    /// The same cluster.
    Cluster,
}

/// Which other clusters may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// None.
    None,
    /// The named ones, in their order.
    Only,
    /// Every one.
    #[default]
    Any,
    /// Every one but the named.
    AnyExcept,
}

/// Which other clusters the clients of some clusters may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The clients' clusters; empty: every one.
    pub from: Vec<ClusterName>,
    /// Which others.
    pub mode: Mode,
    /// The named ones.
    pub to: Vec<ClusterName>,
}

/// What a failover policy says about where requests go. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preference {
    /// Which agreement comes first: groups are told apart by these alone, then by round-trip time. Empty: the defaults.
    pub prefer: Vec<Dimension>,
    /// The first that is for the client's cluster applies.
    pub targets: Vec<Target>,
    /// Fixed shares of clusters in place of an order; one that is not named, or with weight 0, is not used.
    pub distribute: Vec<(ClusterName, u32)>,
    /// Only the client's own cluster.
    pub local_only: bool,
}

/// A cluster that exports the service, as the client's cluster knows it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The cluster.
    pub cluster: &'a ClusterName,
    /// It is the client's own.
    pub local: bool,
    /// Its capacity.
    pub zones: &'a [ZoneCapacity],
    /// The federation has lost touch with it.
    pub suspect: bool,
    /// Measured to its gateways.
    pub round_trip: Option<Duration>,
}

/// Endpoints that are equally good for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// 0 is tried first; groups of one priority share by ready capacity.
    pub priority: u32,
    /// Where the endpoints are.
    pub cluster: ClusterName,
    /// For the client's own cluster: the localities whose endpoints belong to the group. `None`: a remote cluster, whose
    /// gateways choose.
    pub localities: Option<Vec<Locality>>,
    /// All endpoints.
    pub total: u32,
    /// The ready ones.
    pub ready: u32,
    /// Its fixed weight among the groups of its priority, in place of its capacity.
    pub share: Option<u32>,
    /// The federation has lost touch with the cluster.
    pub suspect: bool,
    /// The rule that gave the priority, for a person.
    pub why: Proximity,
}

/// How near a group is, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proximity {
    /// The client's cluster and zone.
    SameZone,
    /// The client's cluster, another zone of its region, or its zone where regions are unknown.
    SameCluster,
    /// Another cluster with endpoints in the client's zone or region.
    SameRegion,
    /// Another cluster elsewhere.
    Remote,
}

impl Proximity {
    /// A few words for a person.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SameZone => "same cluster, same zone",
            Self::SameCluster => "same cluster",
            Self::SameRegion => "other cluster, same region",
            Self::Remote => "other region",
        }
    }
}

/// Steps in which round-trip times are told apart: clusters within one step share a priority.
const ROUND_TRIP_STEP: Duration = Duration::from_millis(10);

/// Parts that a fixed share is told in, so that zones of one cluster can split it.
const SHARE_PARTS: u64 = 1000;

/// Orders the candidates for a client, with no policy: the defaults of the field, nearest first.
#[must_use]
pub fn order(client: &Locality, candidates: &[Candidate<'_>]) -> Vec<Group> {
    order_by(None, client, candidates, &Preference::default())
}

/// Orders the candidates for a client of a cluster as a policy prefers.
#[must_use]
pub fn order_by(
    cluster: Option<&ClusterName>,
    client: &Locality,
    candidates: &[Candidate<'_>],
    preference: &Preference,
) -> Vec<Group> {
    let target = preference.targets.iter().find(|target| target.is_for(cluster));
    let mut ranked: Vec<(Rank, Group)> = candidates
        .iter()
        .filter_map(|candidate| Some((preference.place(candidate, target)?, candidate)))
        .flat_map(|(named, candidate)| groups_of(client, candidate, named, preference))
        .collect();
    if !preference.distribute.is_empty() {
        distribute(&mut ranked, &preference.distribute);
    }
    ranked.sort_by(|left, right| left.0.cmp(&right.0).then_with(|| left.1.cluster.cmp(&right.1.cluster)));
    let mut priority = 0;
    let mut last: Option<Rank> = None;
    ranked
        .into_iter()
        .map(|(rank, mut group)| {
            if last.as_ref().is_some_and(|last| *last != rank) {
                priority += 1;
            }
            last = Some(rank);
            group.priority = priority;
            group
        })
        .collect()
}

impl Target {
    fn is_for(&self, cluster: Option<&ClusterName>) -> bool {
        self.from.is_empty() || cluster.is_some_and(|cluster| self.from.contains(cluster))
    }
}

impl Preference {
    /// A candidate's place by name, 0 where names say nothing; `None` if it may not be used.
    fn place(&self, candidate: &Candidate<'_>, target: Option<&Target>) -> Option<usize> {
        if !self.distribute.is_empty() {
            let named = self.distribute.iter().any(|(cluster, weight)| cluster == candidate.cluster && *weight > 0);
            return named.then_some(0);
        }
        if candidate.local {
            return Some(0);
        }
        if self.local_only {
            return None;
        }
        let Some(target) = target else { return Some(0) };
        let named = target.to.iter().position(|cluster| cluster == candidate.cluster);
        match target.mode {
            Mode::None => None,
            Mode::Only => named.map(|place| place + 1),
            Mode::Any => Some(0),
            Mode::AnyExcept => named.is_none().then_some(0),
        }
    }
}

/// What orders groups: their place by name, the agreements that they lack, and the round-trip time in steps (unknown last).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    named: usize,
    lacking: u8,
    distance: u128,
}

/// Zones of one kind: the same agreements with the client.
struct Kind {
    why: Proximity,
    zone: bool,
    region: bool,
}

fn groups_of(
    client: &Locality,
    candidate: &Candidate<'_>,
    named: usize,
    preference: &Preference,
) -> Vec<(Rank, Group)> {
    if !candidate.local {
        return vec![remote_group(client, candidate, named, preference)];
    }
    let by_region = !preference.prefer.is_empty();
    let kinds = [
        Kind { why: Proximity::SameZone, zone: true, region: true },
        Kind { why: Proximity::SameCluster, zone: false, region: true },
        Kind { why: Proximity::SameCluster, zone: false, region: false },
    ];
    let kind_of = |zone: &ZoneCapacity| match () {
        () if zone.locality.same_zone(client) => 0,
        () if !by_region || zone.locality.same_region(client) => 1,
        () => 2,
    };
    kinds
        .into_iter()
        .enumerate()
        .filter_map(|(number, kind)| {
            let zones: Vec<&ZoneCapacity> = candidate.zones.iter().filter(|zone| kind_of(zone) == number).collect();
            let localities: Vec<Locality> = zones.iter().map(|zone| zone.locality.clone()).collect();
            let lacking = preference.lacking(&kind, true);
            let rank = Rank { named, lacking, distance: 0 };
            (!zones.is_empty()).then(|| (rank, group(candidate, kind.why, Some(localities), zones.into_iter())))
        })
        .collect()
}

fn remote_group(client: &Locality, candidate: &Candidate<'_>, named: usize, preference: &Preference) -> (Rank, Group) {
    let ready = || candidate.zones.iter().filter(|zone| zone.ready > 0);
    let zone = ready().any(|zone| zone.locality.same_zone(client));
    let region = zone || ready().any(|zone| zone.locality.same_region(client));
    let why = if region { Proximity::SameRegion } else { Proximity::Remote };
    let distance = match (region, candidate.round_trip) {
        (false, Some(time)) => time.as_nanos() / ROUND_TRIP_STEP.as_nanos(),
        (false, None) => u128::MAX,
        (true, _) => 0,
    };
    let rank = Rank { named, lacking: preference.lacking(&Kind { why, zone, region }, false), distance };
    (rank, group(candidate, why, None, candidate.zones.iter()))
}

impl Preference {
    /// The agreements that are missing, the most preferred one in the highest place; without a preference the proximity.
    fn lacking(&self, kind: &Kind, cluster: bool) -> u8 {
        if self.prefer.is_empty() {
            return kind.why as u8;
        }
        self.prefer.iter().fold(0, |lacking, dimension| {
            let agrees = match dimension {
                Dimension::Zone => kind.zone,
                Dimension::Region => kind.region,
                Dimension::Cluster => cluster,
            };
            lacking << 1 | u8::from(!agrees)
        })
    }
}

/// Puts every group at one priority, with its cluster's share; the zones of the client's own cluster split theirs.
fn distribute(ranked: &mut [(Rank, Group)], shares: &[(ClusterName, u32)]) {
    let ready_of = |ranked: &[(Rank, Group)], cluster: &ClusterName| -> (u64, u64) {
        let groups = ranked.iter().filter(|(_, group)| group.cluster == *cluster);
        groups.fold((0, 0), |(count, ready), (_, group)| (count + 1, ready + u64::from(group.ready)))
    };
    let totals: Vec<(u64, u64)> = ranked.iter().map(|(_, group)| ready_of(ranked, &group.cluster)).collect();
    for ((rank, group), (count, ready)) in ranked.iter_mut().zip(totals) {
        let weight = shares.iter().find(|(cluster, _)| *cluster == group.cluster).map_or(0, |(_, weight)| *weight);
        let parts = u64::from(weight) * SHARE_PARTS;
        let part = (parts * u64::from(group.ready)).checked_div(ready).unwrap_or(parts / count.max(1));
        group.share = Some(u32::try_from(part).unwrap_or(u32::MAX));
        *rank = Rank::default();
    }
}

fn group<'z>(
    candidate: &Candidate<'_>,
    why: Proximity,
    localities: Option<Vec<Locality>>,
    zones: impl Iterator<Item = &'z ZoneCapacity>,
) -> Group {
    let (total, ready) = zones.fold((0u32, 0u32), |(total, ready), zone| {
        (total.saturating_add(zone.total), ready.saturating_add(zone.ready))
    });
    Group {
        priority: 0,
        cluster: candidate.cluster.clone(),
        localities,
        total,
        ready,
        share: None,
        suspect: candidate.suspect,
        why,
    }
}
