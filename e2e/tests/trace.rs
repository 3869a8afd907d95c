//! One trace across both sidecars, as a collector sees it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "scenarios/stage.rs"]
#[expect(dead_code, reason = "shared with the scenarios, which use the rest")]
mod stage;

use std::sync::{Arc, Mutex};

use anyhow::ensure;
use e2e::lab::shop_federation::shop_federation;
use e2e::lab::{NAMESPACE, READY, wait};
use e2e::shop::proxy::Others;
use e2e::shop::v1::GetCartRequest;
use e2e::shop::v1::cart_client::CartClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use stage::Stage;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER_SPAN: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread")]
async fn a_call_across_clusters_is_one_trace() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = TraceServiceServer::new(collector.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let mut clusters = shop_federation();
    clusters.iter_mut().for_each(|cluster| cluster.collector = Some(address));
    let mut stage = Stage::set_with(clusters).await;
    let proxy = stage.lab.cluster("east").unwrap().client_proxy();
    let others = Others { proxy: Some(proxy), namespace: NAMESPACE.to_owned() };
    let mut cart = CartClient::new(others.channel("cartservice", 7070).unwrap());
    let mut request = Request::new(GetCartRequest { user_id: "traced".to_owned() });
    let traceparent = format!("00-{TRACE}-{CALLER_SPAN}-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    cart.get_cart(request).await.unwrap();

    wait::until("both sidecars' spans", READY, || async {
        let spans = collector.spans.lock().unwrap().clone();
        let of_trace: Vec<_> = spans.iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
        let client = of_trace.iter().find(|span| hex(&span.parent_span_id) == CALLER_SPAN);
        let server = client.and_then(|client| of_trace.iter().find(|span| span.parent_span_id == client.span_id));
        ensure!(server.is_some(), "the trace has {} spans, no chain of two: {of_trace:?}", of_trace.len());
        Ok(())
    })
    .await
    .unwrap();
    stage.end().await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
