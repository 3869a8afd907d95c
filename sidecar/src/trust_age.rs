//! How old the trust state is, and what follows when it is too old.
//!
//! The control-plane says when it last knew the trust state to be the newest; the newest that was said counts, from disk
//! after a restart. Older than `maxTrustAge`, peers of other trust domains are refused both ways and their connections
//! closed, until a newer confirmation arrives. A control-plane that confirms nothing, being older, counts as one cut off:
//! with `maxTrustAge` set this fails closed from the start.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_tls::TrustStore;
use spiffe_identity::TrustDomain;
use tracing::{error, info, warn};

use crate::metrics::Metrics;

/// How often the age is looked at.
const STEP: Duration = Duration::from_secs(1);

/// How far another clock may be ahead of this one, as for certificates. A confirmation from further ahead is not taken:
/// it would count as new for as long as the clocks differ.
const MAX_SKEW: Duration = Duration::from_secs(300);

/// The newest confirmation.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Unix milliseconds, as it was said.
    said: u64,
    /// By this machine's clock, when it was heard.
    age: Duration,
    at: Instant,
}

impl Heard {
    /// By the wall clock, and never younger than time has passed since it was heard: a clock that is set back does not
    /// make it young again.
    fn age(&self, now: SystemTime) -> Duration {
        (self.age + self.at.elapsed()).max(since(self.said, now))
    }
}

/// Judges the age of the trust state.
pub(crate) struct TrustAge {
    limit: Option<Duration>,
    own: TrustDomain,
    trust: TrustStore,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    heard: Option<Heard>,
    too_old: bool,
}

impl TrustAge {
    /// Nothing is confirmed yet: with a limit, others are not believed from now on.
    pub(crate) fn new(limit: Option<Duration>, own: TrustDomain, trust: TrustStore, metrics: Metrics) -> Arc<Self> {
        let it = Self { limit, own, trust, metrics, state: Mutex::default() };
        it.judge();
        Arc::new(it)
    }

    /// The control-plane's word, Unix milliseconds; 0 says nothing.
    pub(crate) fn confirmed(&self, said: i64) {
        let Some(said) = u64::try_from(said).ok().filter(|said| *said > 0) else { return };
        let now = SystemTime::now();
        if UNIX_EPOCH + Duration::from_millis(said.min(1 << 50)) > now + MAX_SKEW {
            warn!(said, "a confirmation of the trust state is from the future: the clocks differ, and it is not taken");
            return;
        }
        let new = Heard { said, age: since(said, now), at: Instant::now() };
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.heard.is_some_and(|known| known.said == said || known.age(now) <= new.age) {
                return;
            }
            state.heard = Some(new);
        }
        self.metrics.trust_confirmed.set(i64::try_from(said / 1000).unwrap_or(i64::MAX));
        self.judge();
    }

    /// Looks at the age again and again; nothing to do without a limit.
    pub(crate) async fn keep(self: Arc<Self>) {
        while self.limit.is_some() {
            tokio::time::sleep(STEP).await;
            self.judge();
        }
    }

    fn judge(&self) {
        let Some(limit) = self.limit else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let age = state.heard.map(|heard| heard.age(SystemTime::now()));
        let too_old = age.is_none_or(|age| age > limit);
        if too_old == state.too_old {
            return;
        }
        state.too_old = too_old;
        self.metrics.trust_too_old.set(i64::from(too_old));
        self.trust.believe_only(too_old.then(|| self.own.clone()));
        match age {
            Some(age) if too_old => {
                error!(?age, ?limit, "the trust state is older than maxTrustAge: other trust domains are shut out");
            }
            None => info!(?limit, "maxTrustAge: other trust domains are shut out until the trust state is confirmed"),
            Some(age) => info!(?age, ?limit, "the trust state is confirmed: other trust domains are let in again"),
        }
    }
}

fn since(said: u64, now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH + Duration::from_millis(said.min(1 << 50))).unwrap_or_default()
}
