//! The proxies that are connected: what each has applied, and where the gateways are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use federation::Gateway;
use tokio::sync::watch;

/// A gateway that went away without a word stays published for this long, and longer while no other one is connected:
/// the gateway may well be alive and only this connection lost.
pub const GATEWAY_GRACE: Duration = Duration::from_secs(30);

/// What a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Beside a workload.
    Sidecar,
    /// Between clusters.
    Gateway,
}

/// How far trust has come: the epoch of the federation's, and the sequence of the cluster's own bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrustPosition {
    /// Of the trust state.
    pub epoch: u64,
    /// Of the own bundle.
    pub bundle: u64,
}

/// A connected proxy, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Its own name for itself.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its SPIFFE ID.
    pub identity: String,
    /// Since when it is connected.
    pub since: SystemTime,
    /// The trust state that it has applied.
    pub trust: TrustPosition,
    /// What it did not understand last.
    pub error: Option<String>,
}

/// The proxies of the cluster. Clones share one registry.
#[derive(Clone, Debug)]
pub struct Proxies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Held for a few map operations, never over an await.
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    connected: BTreeMap<u64, ProxyStatus>,
    gateways: BTreeMap<String, KnownGateway>,
}

#[derive(Debug)]
struct KnownGateway {
    gateway: Gateway,
    /// Where sidecars of the own cluster reach it, if they can.
    egress: Option<Gateway>,
    /// The connection that said so; `None` since then.
    connection: Result<u64, Instant>,
}

/// One connection of a proxy; dropping it says that the proxy is gone.
#[derive(Debug)]
pub struct Connection {
    proxies: Proxies,
    id: u64,
}

impl Proxies {
    /// Nobody is connected; `gateways` were when the program ended last.
    #[must_use]
    pub fn new(gateways: Vec<Gateway>, now: Instant) -> Self {
        let known =
            |gateway: Gateway| (gateway.name.clone(), KnownGateway { gateway, egress: None, connection: Err(now) });
        let state = State { gateways: gateways.into_iter().map(known).collect(), ..State::default() };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(0) }))
    }

    /// A proxy connects.
    #[must_use]
    pub fn connect(&self, kind: Kind, name: &str, identity: &str) -> Connection {
        let id = self.change(|state| {
            state.next += 1;
            let status = ProxyStatus {
                name: name.to_owned(),
                kind,
                identity: identity.to_owned(),
                since: SystemTime::now(),
                trust: TrustPosition::default(),
                error: None,
            };
            state.connected.insert(state.next, status);
            state.next
        });
        Connection { proxies: self.clone(), id }
    }

    /// Counts changes.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Who is connected.
    #[must_use]
    pub fn connected(&self) -> Vec<ProxyStatus> {
        self.state().connected.values().cloned().collect()
    }

    /// The proxies that have not applied a trust epoch, and how many are connected.
    #[must_use]
    pub fn pending(&self, epoch: u64) -> (Vec<String>, usize) {
        let state = self.state();
        let behind = state.connected.values().filter(|proxy| proxy.trust.epoch < epoch);
        (behind.map(|proxy| proxy.name.clone()).collect(), state.connected.len())
    }

    /// The gateways to publish, by name, and when that changes if nothing happens.
    #[must_use]
    pub fn gateways(&self, now: Instant) -> (Vec<Gateway>, Option<Instant>) {
        let mut state = self.state();
        let usable = |known: &KnownGateway| known.connection.is_ok() && !known.gateway.draining;
        let another = state.gateways.values().any(usable);
        let mut due: Option<Instant> = None;
        state.gateways.retain(|_, known| {
            let Err(since) = known.connection else { return true };
            let gone = since + GATEWAY_GRACE;
            if !another {
                return true;
            }
            // One that said it was draining has gone for good.
            if known.gateway.draining || now >= gone {
                return false;
            }
            due = Some(due.map_or(gone, |due| due.min(gone)));
            true
        });
        (state.gateways.values().map(|known| known.gateway.clone()).collect(), due)
    }

    /// Where the gateways that are published are reached from inside, those that are.
    #[must_use]
    pub fn egress_gateways(&self) -> Vec<Gateway> {
        self.state().gateways.values().filter_map(|known| known.egress.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.state());
        self.0.changed.send_modify(|count| *count += 1);
        outcome
    }
}

impl Connection {
    /// The gateway says where peers reach it, and where sidecars of its own cluster do.
    pub fn advertise(&self, gateway: Gateway, egress: Option<Gateway>) {
        self.proxies.change(|state| {
            let name = gateway.name.clone();
            state.gateways.insert(name, KnownGateway { gateway, egress, connection: Ok(self.id) });
        });
    }

    /// The proxy has applied a trust state, or kept the last good state for a reason.
    pub fn applied(&self, trust: Option<TrustPosition>, error: Option<String>) {
        let status = |state: &State| state.connected.get(&self.id).map(|it| (it.trust, it.error.clone()));
        let before = status(&self.proxies.state());
        let trust = trust.or(before.as_ref().map(|before| before.0)).unwrap_or_default();
        if before == Some((trust, error.clone())) {
            return;
        }
        self.proxies.change(|state| {
            if let Some(proxy) = state.connected.get_mut(&self.id) {
                proxy.trust = trust;
                proxy.error = error;
            }
        });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = Instant::now();
        self.proxies.change(|state| {
            state.connected.remove(&self.id);
            for known in state.gateways.values_mut().filter(|known| known.connection == Ok(self.id)) {
                known.connection = Err(now);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use federation::{GatewayAddress, Locality};

    use super::*;

    fn gateway(name: &str, draining: bool) -> Gateway {
        Gateway {
            name: name.to_owned(),
            address: GatewayAddress::Ip("127.1.0.9".parse().unwrap()),
            port: 15443,
            locality: Locality::default(),
            draining,
        }
    }

    fn names(proxies: &Proxies, now: Instant) -> Vec<String> {
        proxies.gateways(now).0.into_iter().map(|gateway| gateway.name).collect()
    }

    #[test]
    fn a_gateway_outlives_its_connection_unless_another_one_is_there() {
        let proxies = Proxies::new(vec![gateway("old", false)], Instant::now());
        let later = || Instant::now() + GATEWAY_GRACE * 2;
        assert_eq!(names(&proxies, later()), ["old"]);
        let connection = proxies.connect(Kind::Gateway, "new", "id");
        connection.advertise(gateway("new", false), None);
        assert_eq!(names(&proxies, Instant::now()), ["new", "old"]);
        assert!(proxies.gateways(Instant::now()).1.is_some());
        assert_eq!(names(&proxies, later()), ["new"]);
        drop(connection);
        assert_eq!(names(&proxies, later()), ["new"]);
    }

    #[test]
    fn a_drained_gateway_goes_at_once_when_another_one_stays() {
        let proxies = Proxies::new(Vec::new(), Instant::now());
        let (one, two) = (proxies.connect(Kind::Gateway, "1", "id"), proxies.connect(Kind::Gateway, "2", "id"));
        one.advertise(gateway("1", false), None);
        two.advertise(gateway("2", true), None);
        assert_eq!(names(&proxies, Instant::now()), ["1", "2"]);
        drop(two);
        assert_eq!(names(&proxies, Instant::now()), ["1"]);
    }

    #[test]
    fn a_reconnected_gateway_is_not_taken_away_by_its_old_connection() {
        let proxies = Proxies::new(Vec::new(), Instant::now());
        let old = proxies.connect(Kind::Gateway, "1", "id");
        old.advertise(gateway("1", false), None);
        let new = proxies.connect(Kind::Gateway, "1", "id");
        new.advertise(gateway("1", false), None);
        let other = proxies.connect(Kind::Gateway, "2", "id");
        other.advertise(gateway("2", false), None);
        drop(old);
        assert_eq!(names(&proxies, Instant::now() + GATEWAY_GRACE * 2), ["1", "2"]);
    }

    #[test]
    fn proxies_behind_an_epoch_are_named() {
        let proxies = Proxies::new(Vec::new(), Instant::now());
        let (one, _two) = (proxies.connect(Kind::Sidecar, "1", "id"), proxies.connect(Kind::Sidecar, "2", "id"));
        one.applied(Some(TrustPosition { epoch: 7, bundle: 1 }), None);
        assert_eq!(proxies.pending(7), (vec!["2".to_owned()], 2));
    }

    #[test]
    fn the_way_out_is_there_as_long_as_its_gateway() {
        let proxies = Proxies::new(vec![gateway("old", false)], Instant::now());
        let (one, two) = (proxies.connect(Kind::Gateway, "1", "id"), proxies.connect(Kind::Gateway, "2", "id"));
        let inside = Gateway { port: 15444, ..gateway("1", false) };
        one.advertise(gateway("1", false), Some(inside.clone()));
        two.advertise(gateway("2", false), None);
        assert_eq!(proxies.egress_gateways(), [inside]);
        one.advertise(gateway("1", true), Some(Gateway { port: 15444, ..gateway("1", true) }));
        drop(one);
        assert_eq!(names(&proxies, Instant::now()), ["2", "old"]);
        assert_eq!(proxies.egress_gateways(), []);
    }
}
