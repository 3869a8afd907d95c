//! Tells whether spans arrive: the SDK itself drops export errors silently.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prometheus_client::metrics::counter::Counter;
use tracing::{info, warn};

use crate::process::Process;

/// An exporter that counts what arrived and what did not, and logs where an outage begins and ends.
pub(super) struct Counted<E> {
    inner: E,
    failing: AtomicBool,
    exported: Counter,
    failed: Counter,
}

impl<E> Counted<E> {
    pub(super) fn new(inner: E, process: &Process) -> Self {
        let (exported, failed) = (Counter::default(), Counter::default());
        process.register(|registry| {
            registry.register("trace_spans_exported", "Spans that the collector took", exported.clone());
            registry.register("trace_spans_failed", "Spans lost because their export failed", failed.clone());
        });
        Self { inner, failing: AtomicBool::new(false), exported, failed }
    }
}

impl<E> fmt::Debug for Counted<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        let failing = result.is_err();
        if failing { &self.failed } else { &self.exported }.inc_by(spans);
        match (self.failing.swap(failing, Ordering::Relaxed), &result) {
            (false, Err(error)) => warn!(%error, "spans cannot be exported"),
            (true, Ok(())) => info!("spans are exported again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
