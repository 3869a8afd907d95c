//! Bundles of trust domains outside the federation, by configuration: a SPIRE installation, for example.
//!
//! ```text
//!  configuration ─► one poll per trust domain ─► fetch ─► BundleSet ─► disk, Input::ForeignBundles ─► trust/<td> at the proxies
//!                        ▲ refresh hint, 15 s–1 h          refuses what goes back
//! ```
//!
//! - A failed poll changes nothing: the last good bundle stays, also over a restart, and its age is a metric and a warning.
//! - The highest sequence is on the disk, so that neither a restart nor a replay brings an older bundle back.
//! - URL, profile and trust domain come from the configuration alone. None may be of the federation itself.
//! - These roots make peers known, not welcome: proxies let nobody outside the federation in without an `AccessPolicy`.

pub mod fetch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use federation::FederationDomain;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use spiffe_identity::federation::{Endpoint, EndpointUrl};
use spiffe_identity::{Accepted, Bundle, BundleSet, SpiffeId, TrustDomain};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use self::fetch::{PollError, WebRoots};
use crate::reconciler::Input;
use crate::state::{StateDirectory, StateError, json_bytes};

/// The state file.
const FILE: &str = "foreign-bundles.json";

/// While there is no bundle at all: the first wait after a failure, doubled up to the refresh hint.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// A bundle that is older than so many refresh hints is warned of at each failed poll.
const STALE_HINTS: u32 = 3;

/// The most trust domains that may be configured.
pub const MAX_FOREIGN: usize = 256;

/// A trust domain outside the federation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ForeignTrustDomain {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// Where it is served.
    pub url: EndpointUrl,
    /// How the server proves itself.
    pub profile: ForeignProfile,
}

/// How a bundle endpoint proves itself: `{https_web: {…}}` or `{https_spiffe: {…}}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ForeignProfile {
    /// By its host's name, as web servers do.
    #[serde(rename = "https_web", rename_all = "camelCase")]
    Web {
        /// PEM file with the only authorities to believe; without, the system's.
        #[serde(default)]
        roots_file: Option<PathBuf>,
    },
    /// By its SPIFFE ID.
    #[serde(rename = "https_spiffe", rename_all = "camelCase")]
    Spiffe {
        /// Who it is.
        endpoint_id: String,
        /// The bundle of the ID's trust domain, as a JWK Set, for the first contact.
        bootstrap_bundle_file: PathBuf,
    },
}

/// What is wrong with the list, field by field.
pub(crate) fn problems(foreign: &[ForeignTrustDomain], federation: &FederationDomain) -> Vec<String> {
    let mut problems = Vec::new();
    let suffix = format!(".{federation}");
    for (place, one) in foreign.iter().enumerate() {
        let name = one.trust_domain.as_str();
        if name == federation.as_str() || name.ends_with(&suffix) {
            problems.push(format!("foreignTrustDomains[{place}].trustDomain: {name} is of the federation itself"));
        }
        if foreign[..place].iter().any(|other| other.trust_domain == one.trust_domain) {
            problems.push(format!("foreignTrustDomains[{place}].trustDomain: {name} occurs twice"));
        }
        if let ForeignProfile::Spiffe { endpoint_id, .. } = &one.profile
            && let Err(error) = endpoint_id.parse::<SpiffeId>()
        {
            problems.push(format!("foreignTrustDomains[{place}].profile.https_spiffe.endpointId: {error}"));
        }
    }
    if foreign.len() > MAX_FOREIGN {
        problems.push(format!("foreignTrustDomains: at most {MAX_FOREIGN}"));
    }
    problems
}

impl ForeignTrustDomain {
    /// Reads what the profile needs.
    fn open(&self) -> anyhow::Result<(Endpoint, WebRoots)> {
        let (name, url) = (self.trust_domain.clone(), self.url.clone());
        match &self.profile {
            ForeignProfile::Web { roots_file } => {
                Ok((Endpoint::https_web(name, url), WebRoots::open(roots_file.as_deref())?))
            }
            ForeignProfile::Spiffe { endpoint_id, bootstrap_bundle_file } => {
                let id: SpiffeId = endpoint_id.parse()?;
                let shown = || bootstrap_bundle_file.display().to_string();
                let text = std::fs::read(bootstrap_bundle_file).with_context(shown)?;
                let bootstrap = Bundle::from_jwks(id.trust_domain().clone(), &text).with_context(shown)?;
                Ok((Endpoint::https_spiffe(name, url, id, bootstrap)?, WebRoots::none()))
            }
        }
    }
}

/// As it is written down.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Saved {
    bundles: BundleSet,
    /// When each was last fetched, in seconds since 1970.
    fetched: BTreeMap<TrustDomain, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDomain {
    trust_domain: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Polled {
    trust_domain: String,
    result: &'static str,
}

/// What is counted; trust domains are the operator's own list.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    polls: Family<Polled, Counter>,
    fetched: Family<OfDomain, Gauge>,
    hint: Family<OfDomain, Gauge>,
}

impl Metrics {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("foreign_bundle_polls", "Fetches of foreign bundles by how they went", self.polls.clone());
        registry.register_with_unit(
            "foreign_bundle_fetched_timestamp",
            "When a foreign bundle was last fetched, Unix time; 0: never",
            Unit::Seconds,
            self.fetched.clone(),
        );
        registry.register_with_unit(
            "foreign_bundle_refresh_hint",
            "How often a foreign bundle is fetched",
            Unit::Seconds,
            self.hint.clone(),
        );
    }
}

/// Follows the configured trust domains.
pub struct ForeignBundles {
    endpoints: Vec<(Arc<Endpoint>, WebRoots)>,
    saved: Saved,
    state: StateDirectory,
    metrics: Metrics,
}

/// What one poll brought.
struct Poll {
    trust_domain: TrustDomain,
    fetched: Result<Bundle, PollError>,
}

impl ForeignBundles {
    /// Reads the profiles' files and the last good bundles. Blocks on the disk.
    ///
    /// # Errors
    /// Names the file or the field.
    pub fn open(foreign: &[ForeignTrustDomain], state: StateDirectory, metrics: Metrics) -> anyhow::Result<Self> {
        let mut endpoints = Vec::with_capacity(foreign.len());
        for (place, one) in foreign.iter().enumerate() {
            let (endpoint, roots) = one.open().with_context(|| format!("foreignTrustDomains[{place}].profile"))?;
            endpoints.push((Arc::new(endpoint), roots));
        }
        let mut saved: Saved = state.read_json(FILE)?.unwrap_or_default();
        let kept: Vec<TrustDomain> = saved.bundles.bundles().map(|bundle| bundle.trust_domain.clone()).collect();
        for gone in kept.iter().filter(|name| !foreign.iter().any(|one| one.trust_domain == **name)) {
            saved.bundles.forget(gone);
            saved.fetched.remove(gone);
        }
        Ok(Self { endpoints, saved, state, metrics })
    }

    /// The bundles in force.
    #[must_use]
    pub fn bundles(&self) -> Vec<Bundle> {
        self.saved.bundles.bundles().cloned().collect()
    }

    /// Polls until nobody takes `inputs` any more. What is on disk is said at once.
    pub async fn run(mut self, inputs: mpsc::Sender<Input>) {
        for (endpoint, _) in &self.endpoints {
            let at = self.saved.fetched.get(endpoint.trust_domain()).copied().unwrap_or_default();
            self.fetched_gauge(endpoint.trust_domain()).set(i64::try_from(at).unwrap_or(i64::MAX));
            self.show_hint(endpoint.trust_domain());
        }
        let (held, _) = watch::channel(Arc::new(self.saved.bundles.clone()));
        let (polls, mut polled) = mpsc::channel(1);
        let mut polling = JoinSet::new();
        for (endpoint, roots) in self.endpoints.clone() {
            polling.spawn(poll(endpoint, roots, held.subscribe(), polls.clone()));
        }
        drop(polls);
        let mut news = true;
        loop {
            if std::mem::take(&mut news) && inputs.send(Input::ForeignBundles(self.bundles())).await.is_err() {
                return;
            }
            let Some(Poll { trust_domain, fetched }) = polled.recv().await else {
                // Nothing is configured; the part stays with the program.
                return inputs.closed().await;
            };
            news = self.take(&trust_domain, fetched);
            if let Err(error) = self.save().await {
                error!(%error, "foreign bundles cannot be written down");
            }
            held.send_replace(Arc::new(self.saved.bundles.clone()));
        }
    }

    /// Whether the bundles in force are others now.
    fn take(&mut self, trust_domain: &TrustDomain, fetched: Result<Bundle, PollError>) -> bool {
        let outcome = fetched.and_then(|bundle| self.saved.bundles.offer(bundle).map_err(PollError::Refused));
        let result = if outcome.is_ok() { "ok" } else { "failed" };
        self.metrics.polls.get_or_create(&Polled { trust_domain: trust_domain.to_string(), result }).inc();
        match outcome {
            Ok(accepted) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                self.saved.fetched.insert(trust_domain.clone(), now);
                self.fetched_gauge(trust_domain).set(i64::try_from(now).unwrap_or(i64::MAX));
                self.show_hint(trust_domain);
                if accepted != Accepted::Unchanged {
                    info!(%trust_domain, "foreign bundle");
                }
                accepted != Accepted::Unchanged
            }
            Err(error) => {
                let age = self.age(trust_domain);
                let stale = age.is_none_or(|age| age > STALE_HINTS * self.hint(trust_domain));
                warn!(%trust_domain, %error, ?age, stale, "no foreign bundle, keeping the last good one");
                false
            }
        }
    }

    fn hint(&self, trust_domain: &TrustDomain) -> Duration {
        let hint = self.saved.bundles.bundle(trust_domain).and_then(|bundle| bundle.refresh_hint);
        hint.unwrap_or(spiffe_identity::DEFAULT_REFRESH_HINT)
    }

    fn show_hint(&self, trust_domain: &TrustDomain) {
        let gauge = self.metrics.hint.get_or_create_owned(&OfDomain { trust_domain: trust_domain.to_string() });
        gauge.set(i64::try_from(self.hint(trust_domain).as_secs()).unwrap_or(i64::MAX));
    }

    fn age(&self, trust_domain: &TrustDomain) -> Option<Duration> {
        let at = UNIX_EPOCH + Duration::from_secs(*self.saved.fetched.get(trust_domain)?);
        Some(SystemTime::now().duration_since(at).unwrap_or_default())
    }

    fn fetched_gauge(&self, trust_domain: &TrustDomain) -> impl std::ops::Deref<Target = Gauge> + '_ {
        self.metrics.fetched.get_or_create(&OfDomain { trust_domain: trust_domain.to_string() })
    }

    async fn save(&self) -> Result<(), StateError> {
        let path = self.state.path(FILE);
        let wrong = |what: String| StateError::Content { path: path.clone(), what };
        let bytes = json_bytes(&self.saved).map_err(|error| wrong(error.to_string()))?;
        let state = self.state.clone();
        let written = tokio::task::spawn_blocking(move || state.write(FILE, &bytes)).await;
        written.map_err(|error| wrong(error.to_string()))?
    }
}

/// Fetches one bundle again and again; ends when nobody listens.
async fn poll(
    endpoint: Arc<Endpoint>,
    roots: WebRoots,
    held: watch::Receiver<Arc<BundleSet>>,
    polls: mpsc::Sender<Poll>,
) {
    let mut retry = FIRST_RETRY;
    loop {
        let set = held.borrow().clone();
        let fetched = Box::pin(fetch::fetch(&endpoint, &set, &roots)).await;
        let trust_domain = endpoint.trust_domain().clone();
        let failed = fetched.is_err();
        if polls.send(Poll { trust_domain, fetched }).await.is_err() {
            return;
        }
        let hint = endpoint.refresh(&held.borrow());
        let nothing_yet = held.borrow().bundle(endpoint.trust_domain()).is_none();
        let wait = if failed && nothing_yet { retry.min(hint) } else { hint };
        retry = if failed { retry.saturating_mul(2) } else { FIRST_RETRY };
        let jittered = wait.mul_f64(rand::rng().random_range(0.9..1.0));
        tokio::time::sleep(jittered).await;
    }
}
