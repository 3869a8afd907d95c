//! Logs to stderr, and spans to a collector where one is configured.
//!
//! ```text
//!  tracing ─┬─► EnvFilter(runtime.log.filter) ─► JSON or text ─► stderr
//!           └─► INFO and above, without the exporter's own targets ─► batches ─► OTLP/gRPC
//! ```

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing::{Subscriber, warn};
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogConfig, LogFormat, OtlpConfig, RuntimeConfig};
use crate::process::Process;

mod export;

/// How long one batch may take to reach the collector.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long the last spans may take to reach the collector when the process ends.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// The crates that carry the exporter's own requests: spans of theirs would make every export cause another.
const EXPORTER_TARGETS: [&str; 5] = ["h2", "hyper", "tonic", "tower", "opentelemetry"];

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    #[error("runtime.log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("runtime.otlp: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Lives as long as the process; ends by [`Telemetry::flush`].
pub(crate) struct Telemetry {
    spans: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Installs the process-wide subscriber. To be called inside the asynchronous runtime, which carries the exporter.
    pub(crate) fn start(
        program: &'static str,
        config: &RuntimeConfig,
        process: &Process,
    ) -> Result<Self, TelemetryError> {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let spans = config.otlp.as_ref().map(|otlp| span_provider(program, otlp, process)).transpose()?;
        let span_layer = spans.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("isthmus"))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(exported_targets())
        });
        let subscriber = tracing_subscriber::registry().with(span_layer).with(log_layer(&config.log)?);
        if subscriber.try_init().is_err() {
            // Only where a test runs several processes in one: the first one's subscriber stays.
            warn!("a subscriber is installed already");
        }
        log_panics();
        Ok(Self { spans })
    }

    /// Sends what is left. Blocks, while the asynchronous runtime must still turn.
    pub(crate) fn flush(self) {
        let Some(spans) = self.spans else { return };
        if let Err(error) = spans.shutdown_with_timeout(FLUSH_DEADLINE) {
            warn!(%error, "the last spans may not have been exported");
        }
    }
}

fn log_layer<S>(config: &LogConfig) -> Result<Box<dyn Layer<S> + Send + Sync>, tracing_subscriber::filter::ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = EnvFilter::try_new(&config.filter)?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    Ok(match config.format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
    })
}

fn exported_targets() -> Targets {
    let everything = Targets::new().with_default(LevelFilter::INFO);
    EXPORTER_TARGETS.into_iter().fold(everything, |targets, own| targets.with_target(own, LevelFilter::OFF))
}

fn span_provider(
    program: &'static str,
    config: &OtlpConfig,
    process: &Process,
) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(config.endpoint.clone())
        .with_timeout(EXPORT_DEADLINE)
        .build()?;
    let resource = Resource::builder()
        .with_service_name(program)
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
        .with_batch_exporter(export::Counted::new(exporter, process))
        .build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    Ok(provider)
}

/// A panic becomes one log line like any other, instead of text between JSON lines.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current().name().map(str::to_owned);
        // Captured only where RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(location, thread, backtrace, "panicked: {message}");
    }));
}
