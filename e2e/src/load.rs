//! A steady load from one cluster's client, and what came of every request.
//!
//! Half of it is `GET` to the frontend, idempotent, a connection each; half is gRPC (`POST`) to the catalog, over one
//! tunnel through the sidecar. The load is open: requests start on time whether or not earlier ones have ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tonic::transport::Channel;

use crate::client;
use crate::shop::proxy::Others;
use crate::shop::v1::ListProductsRequest;
use crate::shop::v1::product_catalog_client::ProductCatalogClient;

/// Requests a second, of both kinds together.
pub const RATE: u32 = 200;

/// Which half of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTTP GET: a failed one is a failed one.
    Get,
    /// gRPC: a call that was already sent when its server died cannot be repeated.
    Grpc,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Which half.
    pub kind: Kind,
    /// When it began.
    pub started: Instant,
    /// When it ended.
    pub ended: Instant,
    /// `<cluster>/<pod>` of who answered, or what went wrong.
    pub outcome: Result<String, String>,
}

impl Sample {
    /// The cluster that answered.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.outcome.as_ref().ok()?.split('/').next()
    }
}

/// A running load; dropping it stops it.
#[derive(Debug)]
pub struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    driver: JoinHandle<()>,
}

impl Load {
    /// Starts the load through a client's sidecar.
    ///
    /// # Errors
    /// The services' names make no URI.
    pub fn start(proxy: SocketAddr, namespace: &str) -> anyhow::Result<Self> {
        let others = Others { proxy: Some(proxy), namespace: namespace.to_owned() };
        let catalog = ProductCatalogClient::new(others.channel("productcatalogservice", 3550)?);
        let url = format!("http://{}/healthz", others.authority("frontend", 80));
        let (samples, stop) = (Arc::<Mutex<Vec<Sample>>>::default(), Arc::new(AtomicBool::new(false)));
        let (log, stopped) = (samples.clone(), stop.clone());
        let driver = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut turn = false;
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                turn = !turn;
                let (log, catalog, url) = (log.clone(), catalog.clone(), url.clone());
                tokio::spawn(async move {
                    let kind = if turn { Kind::Get } else { Kind::Grpc };
                    let started = Instant::now();
                    let outcome = match kind {
                        Kind::Get => page(proxy, &url).await,
                        Kind::Grpc => call(catalog).await,
                    };
                    let sample = Sample { kind, started, ended: Instant::now(), outcome };
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                });
            }
        });
        Ok(Self { samples, stop, driver })
    }

    /// Requests that began at or after a moment and have ended.
    #[must_use]
    pub fn since(&self, moment: Instant) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| sample.started >= moment).cloned().collect()
    }

    /// Requests that ended at or after a moment: with those in flight at that moment.
    #[must_use]
    pub fn ended_since(&self, moment: Instant) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| sample.ended >= moment).cloned().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.driver.abort();
    }
}

async fn page(proxy: SocketAddr, url: &str) -> Result<String, String> {
    let answer = client::by_proxy(proxy, Method::GET, url, &HeaderMap::new()).await;
    let answer = answer.map_err(|error| format!("{error:#}"))?;
    if !answer.status.is_success() {
        return Err(format!("{}: {}", answer.status, answer.body.trim()));
    }
    Ok(answer.body.trim().to_owned())
}

async fn call(mut catalog: ProductCatalogClient<Channel>) -> Result<String, String> {
    let answer = catalog.list_products(ListProductsRequest {}).await;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    Ok(answer.into_inner().served.unwrap_or_default().instance)
}

/// What a fault did to the load.
#[derive(Debug, Clone, Default)]
pub struct Impact {
    /// Requests that ended since the fault.
    pub requests: usize,
    /// gRPC calls that failed and were under way when their server died: they cannot be repeated.
    pub interrupted: usize,
    /// Every other failure.
    pub failed: Vec<String>,
    /// Until every request was again answered promptly by somebody alive.
    pub time_to_move: Duration,
}

/// A request that takes longer is not answered promptly.
pub const PROMPT: Duration = Duration::from_millis(250);

impl Impact {
    /// Judges the requests since a fault: it began at `fault`, and at `gone` nothing that was to die ran any more. `alive`
    /// says whether an instance may answer after it.
    #[must_use]
    pub fn of(samples: &[Sample], fault: Instant, gone: Instant, alive: impl Fn(&str) -> bool) -> Self {
        let mut impact = Self { requests: samples.len(), ..Self::default() };
        let mut settled = fault;
        let mut first_alive: Option<Instant> = None;
        for sample in samples {
            match &sample.outcome {
                Err(_) if sample.kind == Kind::Grpc && sample.started < gone => impact.interrupted += 1,
                Err(error) => impact.failed.push(error.clone()),
                Ok(instance) if alive(instance) => {
                    first_alive = Some(first_alive.map_or(sample.ended, |first| first.min(sample.ended)));
                }
                Ok(_) => {}
            }
            if sample.outcome.is_err() || sample.ended - sample.started > PROMPT {
                settled = settled.max(sample.ended);
            }
        }
        impact.time_to_move = settled.max(first_alive.unwrap_or(settled)) - fault;
        impact
    }
}
