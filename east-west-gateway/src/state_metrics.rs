//! What is read at each scrape: the age and size of the state, the end of the SVID.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::UNIX_EPOCH,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::{discovery::Freshness, own_identity::OwnIdentity, remotes::Remotes, routes::Routes};

pub(crate) struct StateMetrics {
    routes: Arc<Routes>,
    remotes: Arc<Remotes>,
    freshness: Arc<Freshness>,
    own: Arc<OwnIdentity>,
}

impl StateMetrics {
    pub(crate) fn new(
        routes: Arc<Routes>,
        remotes: Arc<Remotes>,
        freshness: Arc<Freshness>,
        own: Arc<OwnIdentity>,
    ) -> Self {
        Self { routes, remotes, freshness, own }
    }
}

impl fmt::Debug for StateMetrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StateMetrics").finish_non_exhaustive()
    }
}

impl Collector for StateMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(encoder)
        };
        let routes = self.routes.all();
        let endpoints = routes.iter().flat_map(|route| &route.endpoints);
        let (ready, total) =
            endpoints.fold((0_u32, 0_u32), |(ready, total), endpoint| (ready + u32::from(endpoint.ready), total + 1));
        let synced = self.freshness.synced.load(Relaxed);
        gauge("routes", "Exported services", None, u32::try_from(routes.len()).unwrap_or(u32::MAX).into())?;
        let remotes = self.remotes.all();
        let reachable = remotes.iter().filter(|remote| !remote.gateways.is_empty()).count();
        let reachable = u32::try_from(reachable).unwrap_or(u32::MAX);
        gauge("remote_clusters", "Other clusters with a gateway whose address is known", None, reachable.into())?;
        gauge("endpoints", "Endpoints of exported services", None, total.into())?;
        gauge("endpoints_ready", "Those that are ready", None, ready.into())?;
        let pipes = u32::try_from(relay::pipes()).unwrap_or(u32::MAX);
        gauge("pipes", "Pipes of 1 MiB through which bulk goes, at most limits.maxPipes", None, pipes.into())?;
        gauge(
            "synced",
            "1 while the control-plane's whole state is applied and followed",
            None,
            f64::from(u8::from(synced)),
        )?;
        if let Some(age) = self.freshness.age() {
            let help = "For how long the state may have been out of date; 0 while it is followed";
            gauge("state_age", help, Some(&Unit::Seconds), age.as_secs_f64())?;
        }
        if let Some(end) = self.own.identity().not_after() {
            let end = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            gauge("svid_expiry_timestamp", "End of the own SVID since the Unix epoch", Some(&Unit::Seconds), end)?;
        }
        let counters = [
            (
                "resources_rejected",
                "Resources of the control-plane that were refused",
                self.freshness.rejected.load(Relaxed),
            ),
            ("svid_request_failures", "Requests for an own SVID that failed", self.own.failures()),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
