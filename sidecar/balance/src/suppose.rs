//! "What if": the same decisions, with something taken as failed.

use std::{hash::Hash, time::Instant};

use crate::{
    balancer::Balancer,
    ejection::{Detector, EjectionCause},
    outcome::Verdict,
    plan::{EndpointId, GatewayName, GroupName, Reach},
};

/// Something that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a, K> {
    /// A whole group: the endpoints of a zone, or everything of a remote cluster.
    Group(&'a GroupName),
    /// One gateway, with all paths through it.
    Gateway(&'a GatewayName),
    /// One real endpoint behind gateways, as it named itself.
    Endpoint(&'a EndpointId),
    /// One member of the plan.
    Member(&'a K),
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// A copy in which everything that `fails` names is ejected; it is asked about each thing there is, once. The original
    /// goes on as it was; explain the copy at the same `now`, since supposed ejections run out as others do.
    #[must_use]
    pub fn supposing(&self, now: Instant, mut fails: impl FnMut(Target<'_, K>) -> bool) -> Self {
        let mut copy = self.clone();
        let settings = &copy.settings;
        let suppose = |detector: &mut Detector, fails: bool| {
            if fails && !detector.is_out() {
                detector.eject(EjectionCause::Supposed, Verdict::None, now, settings, 0.0);
            }
        };
        for group in &mut copy.groups {
            let fails_as_one = fails(Target::Group(&group.name));
            if group.reach == Reach::Gateways {
                suppose(&mut group.whole.detector, fails_as_one);
            }
            for (name, gateway) in &mut group.gateways {
                suppose(&mut gateway.detector, fails(Target::Gateway(name)));
            }
            for (id, endpoint) in &mut group.endpoints {
                suppose(&mut endpoint.detector, fails(Target::Endpoint(id)));
            }
            for member in &mut copy.members[group.members.clone()] {
                let with_group = fails_as_one && group.reach == Reach::Endpoints;
                let fails = fails(Target::Member(&member.id));
                suppose(&mut member.detector, with_group || fails);
            }
        }
        copy.stale = true;
        copy
    }
}
