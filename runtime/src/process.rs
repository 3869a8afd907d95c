//! The handles that a program's main gets for its own process.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::config::RuntimeConfig;
use crate::drain::{DrainTrigger, DrainWatcher};
use crate::process_metrics::ProcessMetrics;
use crate::readiness::Readiness;

/// Readiness, drain, metrics and the admin endpoint of this process. Clones share them.
#[derive(Clone, Debug)]
pub struct Process {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    program: &'static str,
    readiness: Readiness,
    drain: DrainTrigger,
    drain_deadline: Duration,
    registry: Mutex<Registry>,
    debug_routes: Mutex<Router>,
    admin: Option<SocketAddr>,
    health: Option<SocketAddr>,
}

impl Process {
    pub(crate) fn new(
        program: &'static str,
        drain_deadline: Duration,
        admin: Option<SocketAddr>,
        health: Option<SocketAddr>,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::new(SystemTime::now())));
        let build = Info::new([("program", program), ("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("isthmus_build", "Which program this is", build);
        let shared = Shared {
            program,
            readiness: Readiness::default(),
            drain: DrainTrigger::new(),
            drain_deadline,
            registry: Mutex::new(registry),
            debug_routes: Mutex::new(Router::new()),
            admin,
            health,
        };
        Self { shared: Arc::new(shared) }
    }

    /// A process with nothing bound and the default drain deadline, for tests of what takes a `Process`.
    pub fn for_tests() -> Self {
        Self::new("test", RuntimeConfig::default().drain_deadline, None, None)
    }

    /// What this process waits for before it takes traffic.
    pub fn readiness(&self) -> &Readiness {
        &self.shared.readiness
    }

    /// A new watcher of the drain.
    pub fn drain(&self) -> DrainWatcher {
        self.shared.drain.watcher()
    }

    /// How long a drain may last, from the signal to the end of the process.
    pub fn drain_deadline(&self) -> Duration {
        self.shared.drain_deadline
    }

    /// Starts the drain, as SIGTERM would.
    pub fn trigger_drain(&self) {
        self.shared.drain.trigger();
    }

    /// Adds metrics under `isthmus_<program>_`: registering `connections` in `sidecar` gives
    /// `isthmus_sidecar_connections`. To be called once per module; one name must not be registered twice.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        let prefix = format!("isthmus_{}", self.shared.program.replace('-', "_"));
        let mut registry = self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
        register(registry.sub_registry_with_prefix(prefix));
    }

    /// All metrics of this process as OpenMetrics text.
    pub fn metrics_text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let registry = self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }

    /// Adds routes below the admin listener, by convention under `/debug/`. May be called at any time; where two
    /// routers know one path, the later answers.
    pub fn add_debug_routes(&self, router: Router) {
        let mut routes = self.shared.debug_routes.lock().unwrap_or_else(PoisonError::into_inner);
        // As a fallback and not a merge: axum's merge panics where paths overlap.
        *routes = router.fallback_service(std::mem::take(&mut *routes));
    }

    /// Where `/metrics` is served; `None` in tests.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.shared.admin
    }

    /// Where `/readyz` and `/livez` are served; `None` in tests.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.shared.health
    }

    pub(crate) fn drain_trigger(&self) -> &DrainTrigger {
        &self.shared.drain
    }

    pub(crate) fn debug_routes(&self) -> Router {
        self.shared.debug_routes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    #[test]
    fn a_process_for_tests_binds_nothing_and_encodes_its_metrics() {
        let process = Process::for_tests();
        assert_eq!((process.admin_address(), process.health_address()), (None, None));
        process.register(|registry| registry.register("exports", "Exports known", Gauge::<i64>::default()));
        process.clone().register(|registry| registry.register("imports", "Imports known", Gauge::<i64>::default()));
        let text = process.metrics_text().unwrap_or_default();
        assert!(text.contains("\nisthmus_test_exports 0\n"), "{text}");
        assert!(text.contains("\nisthmus_test_imports 0\n"), "{text}");
        assert!(!process.drain().draining());
        process.trigger_drain();
        assert!(process.drain().draining());
    }
}
