//! Spans reach a collector: with the right parents, without the exporter's own, and the last ones too.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use mesh_runtime::{Configuration, RuntimeConfig, trace};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tracing::{debug_span, info_span};

#[derive(Debug, Deserialize)]
struct Traced {
    runtime: RuntimeConfig,
}

impl Configuration for Traced {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }
}

#[derive(Clone, Default)]
struct Collector {
    received: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.received.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves on a runtime of its own, so that it outlives the program.
    fn start(&self) -> (SocketAddr, tokio::runtime::Runtime) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone());
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        (address, runtime)
    }

    fn spans(&self) -> BTreeMap<String, Span> {
        let received = self.received.lock().unwrap();
        let spans =
            received.iter().flat_map(|request| &request.resource_spans).flat_map(|resource| &resource.scope_spans);
        spans.flat_map(|scope| &scope.spans).map(|span| (span.name.clone(), span.clone())).collect()
    }

    fn resource(&self, key: &str) -> Option<String> {
        let received = self.received.lock().unwrap();
        let attributes = &received.first()?.resource_spans.first()?.resource.as_ref()?.attributes;
        match attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()? {
            any_value::Value::StringValue(text) => Some(text.clone()),
            _ => None,
        }
    }
}

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED_CALLER: &str = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00";

fn called_by(traceparent: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::header::HeaderName::from_static("traceparent"), traceparent.parse().unwrap())])
}

/// What the program does: a request from a traced caller, passed on; one from a caller that does not record; noise.
fn make_spans() -> HeaderMap {
    let mut outgoing = HeaderMap::new();
    let request = info_span!("request", cluster = "east");
    trace::continue_from(&request, &called_by(CALLER));
    request.in_scope(|| {
        let inner = info_span!("inner");
        inner.in_scope(|| trace::inject(&trace::context_of(&inner), &mut outgoing));
        debug_span!("too detailed").in_scope(|| {});
        info_span!(target: "h2::proto::streams", "of the exporter").in_scope(|| {});
    });
    let unsampled = info_span!("not recorded by its caller");
    trace::continue_from(&unsampled, &called_by(UNSAMPLED_CALLER));
    unsampled.in_scope(|| {});
    info_span!("of its own").in_scope(|| {});
    outgoing
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn spans_reach_the_collector_with_their_parents_before_the_process_ends() {
    let collector = Collector::default();
    let (address, _serving) = collector.start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("traced.yaml");
    let runtime = format!("admin: 127.0.0.1:0, health: 127.0.0.1:0, otlp: {{ endpoint: 'http://{address}' }}");
    // Nothing is logged: that must not change what is exported.
    std::fs::write(&file, format!("runtime: {{ {runtime}, log: {{ filter: 'off' }} }}")).unwrap();
    let outgoing = Arc::new(Mutex::new(HeaderMap::new()));
    let kept = Arc::clone(&outgoing);
    let process = Arc::new(Mutex::new(None));
    let handle = Arc::clone(&process);
    // Nothing is awaited: every span is still in the queue when main returns.
    let code = mesh_runtime::run("traced", &file, |_: Traced, process| async move {
        *kept.lock().unwrap() = make_spans();
        *handle.lock().unwrap() = Some(process);
        Ok(())
    });
    assert_eq!(code, ExitCode::SUCCESS);

    let spans = collector.spans();
    let names: Vec<&str> = spans.keys().map(String::as_str).collect();
    assert_eq!(names, ["inner", "of its own", "request"]);
    let (request, inner) = (&spans["request"], &spans["inner"]);
    assert_eq!(hex(&request.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert_eq!(inner.trace_id, request.trace_id);
    assert_eq!(inner.parent_span_id, request.span_id);
    assert!(request.attributes.iter().any(|attribute| attribute.key == "cluster"));
    assert!(spans["of its own"].parent_span_id.is_empty());
    assert_ne!(spans["of its own"].trace_id, request.trace_id);
    let passed_on = format!("00-{}-{}-01", hex(&inner.trace_id), hex(&inner.span_id));
    assert_eq!(outgoing.lock().unwrap()["traceparent"], passed_on);
    assert_eq!(collector.resource("service.name").as_deref(), Some("traced"));
    assert_eq!(collector.resource("service.version").as_deref(), Some("0.1.0"));
    let metrics = process.lock().unwrap().take().unwrap().metrics_text().unwrap();
    assert!(metrics.contains("isthmus_traced_trace_spans_exported_total 3\n"), "{metrics}");
    assert!(metrics.contains("isthmus_traced_trace_spans_failed_total 0\n"), "{metrics}");
}
