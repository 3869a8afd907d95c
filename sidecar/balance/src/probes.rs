//! What should be tried out of band, and what became of it.

use std::{
    hash::Hash,
    time::{Duration, Instant},
};

use crate::{
    balancer::Balancer,
    outcome::Verdict,
    plan::EndpointId,
    settings::Settings,
    state::{GroupState, MemberState},
};

/// Time between two probes of a member that failed but is not ejected.
const DOUBT_INTERVAL: Duration = Duration::from_millis(500);

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// When [`Balancer::probes_due`] will next name a member, if there is anything to find out.
    pub fn next_probe(&self) -> Option<Instant> {
        self.groups.iter().filter_map(|group| next_of(group, &self.members[group.members.clone()])).min()
    }

    /// The members to probe now: open a fresh session to each, away from users' requests, and say in
    /// [`Balancer::probed`] whether it came up within about a second. What stays out is due again one probe interval
    /// later.
    ///
    /// Of an ejected gateway, endpoint or group, and of a suspect group, one member is named, in turn: a dead cluster
    /// costs one probe at a time. Members that just failed are named too, so that users' requests are not what finds
    /// out.
    pub fn probes_due(&mut self, now: Instant) -> Vec<K> {
        self.refresh(now);
        let mut due: Vec<usize> = Vec::new();
        let settings = &self.settings;
        for group in &mut self.groups {
            let first = group.members.start;
            let members = &mut self.members[group.members.clone()];
            if !group.whole.detector.is_out() {
                for (position, member) in members.iter_mut().enumerate() {
                    if !behind_ejected(group, member) && take(member, now, settings) {
                        due.push(first + position);
                    }
                }
            }
            for scope in scopes_due(group, members, now, settings) {
                let inside: Vec<usize> =
                    (0..members.len()).filter(|&position| scope.covers(&members[position])).collect();
                let named = inside.iter().any(|position| due.contains(&(first + position)));
                if !named && !inside.is_empty() {
                    due.push(first + inside[group.probe_turn % inside.len()]);
                    group.probe_turn = group.probe_turn.wrapping_add(1);
                }
            }
        }
        self.stale |= !due.is_empty();
        due.into_iter().map(|member| self.members[member].id.clone()).collect()
    }

    /// A probe of a member ended. Success lets the member, its gateway, the endpoint behind it and its group back in;
    /// failure keeps out what is out, and counts as a failed connection of what is not.
    pub fn probed(&mut self, member: &K, ok: bool, now: Instant) {
        let Some(&index) = self.index.get(member) else { return };
        let settings = &self.settings;
        let member = &mut self.members[index];
        let group = &mut self.groups[member.group];
        let was_out = member.detector.is_out();
        member.detector.probed(ok, now, settings);
        if let Some(gateway) = member.gateway {
            group.gateways[gateway].1.detector.probed(ok, now, settings);
        }
        if let Some(endpoint) = member.behind.as_ref().and_then(|endpoint| group.endpoints.get_mut(endpoint)) {
            endpoint.detector.probed(ok, now, settings);
        }
        group.whole.detector.probed(ok, now, settings);
        self.stale = true;
        if ok {
            // That a session comes up says nothing of responses: only doubts about the transport are over.
            member.doubt = member.doubt.filter(|doubt| doubt.next_probe.is_none());
            if group.demoted {
                group.whole.succeeded(now);
            }
        } else if !was_out {
            self.record(index, Verdict::TransportFailure, None, now);
        }
    }
}

/// What lies between a member and the plan, and can be ejected.
enum Scope {
    Gateway(usize),
    Endpoint(EndpointId),
    Group,
}

impl Scope {
    fn covers<K>(&self, member: &MemberState<K>) -> bool {
        match self {
            Self::Gateway(gateway) => member.gateway == Some(*gateway),
            Self::Endpoint(endpoint) => member.behind.as_ref() == Some(endpoint),
            Self::Group => true,
        }
    }
}

/// When something about a group is due: the earliest of what [`Balancer::probes_due`] looks at.
fn next_of<K>(group: &GroupState, members: &[MemberState<K>]) -> Option<Instant> {
    if members.is_empty() {
        return None;
    }
    if let Some(ejection) = group.whole.detector.next_probe() {
        return Some(ejection);
    }
    let alone = members
        .iter()
        .filter(|member| !behind_ejected(group, member))
        .filter_map(|member| member.detector.next_probe().or_else(|| member.doubt.and_then(|doubt| doubt.next_probe)));
    let gateways = group.gateways.iter().filter_map(|(_, gateway)| gateway.detector.next_probe());
    let endpoints = group.endpoints.iter().filter_map(|(id, endpoint)| {
        endpoint.detector.next_probe().filter(|_| members.iter().any(|member| member.behind.as_ref() == Some(id)))
    });
    alone.chain(gateways).chain(endpoints).chain(group.suspect_probe).min()
}

/// The scopes of a group that a probe through any of their members would tell about, now.
fn scopes_due<K>(group: &mut GroupState, members: &[MemberState<K>], now: Instant, settings: &Settings) -> Vec<Scope> {
    let mut scopes = Vec::new();
    if members.is_empty() {
        return scopes;
    }
    if group.whole.detector.is_out() {
        scopes.extend(group.whole.detector.take_probe(now, settings).then_some(Scope::Group));
        return scopes;
    }
    for (index, (_, gateway)) in group.gateways.iter_mut().enumerate() {
        if gateway.detector.take_probe(now, settings) {
            scopes.push(Scope::Gateway(index));
        }
    }
    for (id, endpoint) in &mut group.endpoints {
        let reachable = members.iter().any(|member| member.behind.as_ref() == Some(id));
        if reachable && endpoint.detector.take_probe(now, settings) {
            scopes.push(Scope::Endpoint(id.clone()));
        }
    }
    if group.suspect_probe.is_some_and(|at| now >= at) {
        group.suspect_probe = Some(now + settings.probe_interval);
        scopes.push(Scope::Group);
    }
    scopes
}

/// Whether the gateway or the endpoint of a member is ejected: then these are probed, not every member.
fn behind_ejected<K>(group: &GroupState, member: &MemberState<K>) -> bool {
    member.gateway.is_some_and(|gateway| group.gateways[gateway].1.detector.is_out())
        || member.behind.as_ref().is_some_and(|endpoint| group.endpoint_out(endpoint))
}

/// Whether a member is ejected, or just failed, and should be probed now.
fn take<K>(member: &mut MemberState<K>, now: Instant, settings: &Settings) -> bool {
    if member.detector.is_out() {
        return member.detector.take_probe(now, settings);
    }
    match &mut member.doubt {
        Some(doubt) if doubt.next_probe.is_some_and(|at| now >= at) => {
            doubt.next_probe = Some(now + DOUBT_INTERVAL);
            true
        }
        _ => false,
    }
}
