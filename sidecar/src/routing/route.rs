//! One port of one service: the ways to it, and the choice among them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use balance::{
    Balancer, Counters, EndpointId, Explanation, GroupName, Outcome, PickContext, Reason, RetryBudget,
    RetryBudgetSettings, Settings, Target,
};
use federation::MeshHost;
use federation::export::ApplicationProtocol;
use federation::order::Proximity;
use http::uri::Authority;
use tokio::sync::Notify;

use crate::metrics::{Answered, Because, Metrics};
use crate::routing::plan::Planned;
use crate::service::{Failover, Retrying};
use crate::session::path::{Path, PathId};

/// One port of one service.
pub(crate) struct Route {
    /// The service's host.
    pub(crate) host: MeshHost,
    /// For logs and metrics: see [`MeshHost::label`].
    pub(crate) label: Arc<str>,
    /// The service's port.
    pub(crate) port: u16,
    /// Its host and port.
    authority: Authority,
    /// What its bytes are.
    pub(crate) protocol: ApplicationProtocol,
    /// Nobody has declared it.
    undeclared: bool,
    /// Requests with one hash go to one member, for services whose clients are sticky.
    affinity: Option<u64>,
    /// What a policy says of retries.
    retrying: ArcSwap<Retrying>,
    balancing: Mutex<Balancing>,
    /// Told when something was ejected, so that probes begin.
    ejected: Arc<Notify>,
    metrics: Metrics,
}

/// Behind one short lock, never held across an await.
struct Balancing {
    balancer: Balancer<Path>,
    budget: RetryBudget,
    /// The policy that both follow.
    failover: Failover,
    /// Those of the plan, so that equal ones are kept with their sessions.
    paths: HashMap<PathId, Path>,
    /// Why each group has its priority.
    why: Vec<(GroupName, Proximity)>,
}

/// What a route is made of.
pub(crate) struct RouteParts {
    pub(crate) host: MeshHost,
    pub(crate) port: u16,
    pub(crate) protocol: ApplicationProtocol,
    pub(crate) undeclared: bool,
    pub(crate) affinity: Option<u64>,
    pub(crate) ejected: Arc<Notify>,
    pub(crate) metrics: Metrics,
}

/// Where one attempt goes. Dropped without an outcome, it says nothing about health.
pub(crate) struct Attempt {
    route: Arc<Route>,
    path: Path,
    started: Instant,
    finished: bool,
}

impl Route {
    /// A route without ways. `None` if the host makes no authority, which a parsed one always does.
    pub(crate) fn new(parts: RouteParts) -> Option<Arc<Self>> {
        let seed = rand::random();
        Some(Arc::new(Self {
            authority: format!("{}:{}", parts.host, parts.port).parse().ok()?,
            label: parts.host.label().into(),
            host: parts.host,
            port: parts.port,
            protocol: parts.protocol,
            undeclared: parts.undeclared,
            affinity: parts.affinity,
            retrying: ArcSwap::default(),
            balancing: Mutex::new(Balancing {
                failover: Failover::default(),
                balancer: Balancer::new(Settings::default(), seed),
                budget: RetryBudget::new(RetryBudgetSettings::default()),
                paths: HashMap::new(),
                why: Vec::new(),
            }),
            ejected: parts.ejected,
            metrics: parts.metrics,
        }))
    }

    /// The service's host and port.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whether the same route would be made of these parts: what clients see of it.
    pub(crate) fn matches(&self, protocol: ApplicationProtocol, undeclared: bool, affinity: Option<u64>) -> bool {
        self.protocol == protocol && self.undeclared == undeclared && self.affinity == affinity
    }

    /// Whether nobody has declared what the port speaks: opaque, unless a client is seen to speak HTTP.
    pub(crate) fn is_undeclared(&self) -> bool {
        self.undeclared
    }

    /// What a policy says of retries.
    pub(crate) fn retrying(&self) -> Retrying {
        **self.retrying.load()
    }

    /// The policy that applies.
    pub(crate) fn failover(&self) -> Failover {
        self.lock().failover.clone()
    }

    /// Follows a policy from now on; statistics stay.
    pub(crate) fn follow(&self, failover: &Failover) {
        let mut balancing = self.lock();
        if balancing.failover == *failover {
            return;
        }
        balancing.balancer.configure(failover.settings.clone());
        if balancing.failover.budget != failover.budget {
            balancing.budget = RetryBudget::new(failover.budget);
        }
        self.retrying.store(Arc::new(failover.retrying));
        balancing.failover = failover.clone();
    }

    /// Replaces the ways to the service. `plan` is given the paths there are and returns those to use.
    pub(crate) fn update(&self, plan: impl FnOnce(&HashMap<PathId, Path>) -> Planned) {
        let mut balancing = self.lock();
        let Planned { plan, why } = plan(&balancing.paths);
        balancing.why = why;
        balancing.paths = plan
            .groups
            .iter()
            .flat_map(|group| &group.members)
            .map(|member| (member.id.id().clone(), member.id.clone()))
            .collect();
        balancing.balancer.update(plan, Instant::now());
    }

    /// Whether the budget allows one more retry; if so, it is counted.
    pub(crate) fn try_retry(&self) -> bool {
        self.lock().budget.try_retry(Instant::now())
    }

    /// The next attempt of a request, or its first one; `None` when it has tried everything.
    pub(crate) fn pick(self: &Arc<Self>, tried: &[Path], avoid_gateways: bool, first: bool) -> Option<Attempt> {
        let now = Instant::now();
        let context = PickContext { exclude: tried, avoid_gateways, affinity: self.affinity };
        let pick = {
            let mut balancing = self.lock();
            if first {
                balancing.budget.request(now);
            }
            let pick = balancing.balancer.pick(now, &mut rand::rng(), &context)?;
            balancing.balancer.started(&pick.member);
            pick
        };
        if pick.reason == Reason::Panic {
            self.metrics.panic_picks.get_or_create(&self.because("no_healthy_group")).inc();
        }
        Some(Attempt { route: Arc::clone(self), path: pick.member, started: now, finished: false })
    }

    /// Counts a retry.
    pub(crate) fn count_retry(&self, reason: &'static str) {
        self.metrics.retries.get_or_create(&self.because(reason)).inc();
    }

    /// Counts a request that got no answer.
    pub(crate) fn count_unanswered(&self, result: &'static str) {
        let labels = Answered { service: self.label.to_string(), cluster: "none".to_owned(), result };
        self.metrics.outbound_requests.get_or_create(&labels).inc();
    }

    /// Paths to probe now.
    pub(crate) fn probes_due(&self, now: Instant) -> Vec<Path> {
        self.lock().balancer.probes_due(now)
    }

    /// When to ask for probes again.
    pub(crate) fn next_probe(&self) -> Option<Instant> {
        self.lock().balancer.next_probe()
    }

    /// A probe has ended.
    pub(crate) fn probed(&self, path: &Path, ok: bool) {
        self.lock().balancer.probed(path, ok, Instant::now());
    }

    /// What would decide a pick now.
    pub(crate) fn explain(&self) -> Explanation<Path> {
        self.lock().balancer.explain(Instant::now())
    }

    /// What would decide it if everything that `fails` names had failed.
    pub(crate) fn explain_supposing(&self, fails: impl FnMut(Target<'_, Path>) -> bool) -> Explanation<Path> {
        let now = Instant::now();
        // The copy is made under the lock and explained outside of it.
        let mut supposing = self.lock().balancer.supposing(now, fails);
        supposing.explain(now)
    }

    /// Why a group has its priority, in a few words.
    pub(crate) fn why(&self, group: &GroupName) -> Option<&'static str> {
        self.lock().why.iter().find(|(name, _)| name == group).map(|(_, why)| why.as_str())
    }

    /// Whether the service's clients stay with one endpoint.
    pub(crate) fn is_sticky(&self) -> bool {
        self.affinity.is_some()
    }

    /// The paths of the plan.
    pub(crate) fn paths(&self) -> Vec<Path> {
        self.lock().paths.values().cloned().collect()
    }

    /// Paths that could as well lead to endpoints that have none. Clients that stay with one endpoint keep their paths.
    pub(crate) fn redundant(&self) -> Vec<Path> {
        if self.affinity.is_some() {
            return Vec::new();
        }
        let balancing = self.lock();
        balancing.paths.values().filter(|path| balancing.balancer.is_redundant(path)).cloned().collect()
    }

    fn finished(&self, path: &Path, outcome: Outcome, endpoint: Option<&EndpointId>, started: Instant) {
        let now = Instant::now();
        let latency = now.saturating_duration_since(started);
        let (before, after) = {
            let balancer = &mut self.lock().balancer;
            let before = balancer.counters();
            balancer.finished(path, outcome, endpoint, latency, now);
            (before, balancer.counters())
        };
        if before != after {
            self.count_ejections(before, after);
            self.ejected.notify_one();
        }
    }

    fn count_ejections(&self, before: Counters, after: Counters) {
        let scopes = [
            ("path", before.member_ejections, after.member_ejections),
            ("gateway", before.gateway_ejections, after.gateway_ejections),
            ("endpoint", before.endpoint_ejections, after.endpoint_ejections),
            ("cluster", before.group_ejections, after.group_ejections),
        ];
        for (scope, before, after) in scopes {
            if after > before {
                self.metrics.ejections.get_or_create(&self.because(scope)).inc_by(after - before);
            }
        }
    }

    fn because(&self, reason: &'static str) -> Because {
        Because { service: self.label.to_string(), reason }
    }

    fn lock(&self) -> MutexGuard<'_, Balancing> {
        self.balancing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the balancer how it went; `endpoint` is who answered, if anybody named itself.
    pub(crate) fn finish(mut self, outcome: Outcome, endpoint: Option<&EndpointId>) {
        self.finished = true;
        self.route.finished(&self.path, outcome, endpoint, self.started);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.finished {
            self.route.finished(&self.path, Outcome::Abandoned, None, self.started);
        }
    }
}
