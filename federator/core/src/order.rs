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

use std::time::Duration;

use crate::export::ZoneCapacity;
use crate::locality::Locality;
use crate::name::ClusterName;

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

/// Orders the candidates for a client, with no policy: the defaults of the field, nearest first.
#[must_use]
pub fn order(client: &Locality, candidates: &[Candidate<'_>]) -> Vec<Group> {
    let mut ranked: Vec<(Rank, Group)> = candidates.iter().flat_map(|candidate| groups_of(client, candidate)).collect();
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

/// Proximity first, then the round-trip time in steps (unknown last).
type Rank = (Proximity, u128);

fn groups_of(client: &Locality, candidate: &Candidate<'_>) -> Vec<(Rank, Group)> {
    if !candidate.local {
        return vec![remote_group(client, candidate)];
    }
    let (near, far): (Vec<_>, Vec<_>) = candidate.zones.iter().partition(|zone| zone.locality.same_zone(client));
    [(Proximity::SameZone, near), (Proximity::SameCluster, far)]
        .into_iter()
        .filter(|(_, zones)| !zones.is_empty())
        .map(|(why, zones)| {
            let localities = zones.iter().map(|zone| zone.locality.clone()).collect();
            ((why, 0), group(candidate, why, Some(localities), zones.into_iter()))
        })
        .collect()
}

fn remote_group(client: &Locality, candidate: &Candidate<'_>) -> (Rank, Group) {
    let near = candidate
        .zones
        .iter()
        .any(|zone| zone.ready > 0 && (zone.locality.same_zone(client) || zone.locality.same_region(client)));
    let why = if near { Proximity::SameRegion } else { Proximity::Remote };
    let distance = match (why, candidate.round_trip) {
        (Proximity::Remote, Some(time)) => time.as_nanos() / ROUND_TRIP_STEP.as_nanos(),
        (Proximity::Remote, None) => u128::MAX,
        _ => 0,
    };
    ((why, distance), group(candidate, why, None, candidate.zones.iter()))
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
    Group { priority: 0, cluster: candidate.cluster.clone(), localities, total, ready, suspect: candidate.suspect, why }
}
