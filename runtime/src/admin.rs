//! The admin and health endpoints.
//!
//! | path | answers |
//! | --- | --- |
//! | `/metrics` | OpenMetrics text |
//! | `/debug/…` | what the program added |
//! | `/readyz` | 200, or 503 and what is waited for |
//! | `/livez` | 200 as long as the runtime turns |

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::process::Process;

/// The media type of OpenMetrics 1.0 text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many connections one listener serves at a time.
const MAX_CONNECTIONS: usize = 128;

/// How long a client may take to send a request's head, and how long a connection may idle between two.
const REQUEST_HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// How long to wait before accepting again when the process has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The routes of the admin listener.
pub(crate) fn admin_routes(process: &Process) -> Router {
    Router::new().route("/metrics", get(metrics)).fallback(debug_routes).with_state(process.clone())
}

/// The routes of the health listener.
pub(crate) fn health_routes(process: &Process) -> Router {
    Router::new().route("/readyz", get(ready)).route("/livez", get(live)).with_state(process.clone())
}

/// Serves HTTP/1.1 until aborted; its connections end with it.
///
/// Anyone may connect, so the newest connection always gets in, and the oldest makes room: a probe is over in
/// milliseconds, and clients that only hold connections open cannot keep it out.
pub(crate) async fn serve(listener: TcpListener, routes: Router) {
    let mut connections = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                open.retain(|connection| !connection.is_finished());
                if open.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(connections.spawn(serve_connection(stream, routes.clone())));
            }
            Err(error) => {
                warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, routes: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        debug!(%error, "an admin connection ended early");
    }
}

async fn metrics(State(process): State<Process>) -> Response {
    match process.metrics_text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n").into_response(),
    }
}

async fn debug_routes(State(process): State<Process>, request: Request) -> Response {
    match process.debug_routes().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

async fn ready(State(process): State<Process>) -> Response {
    let mut reasons: Vec<String> =
        process.readiness().waiting_for().into_iter().map(|name| format!("waiting for {name}\n")).collect();
    if process.drain().draining() {
        reasons.push("draining\n".to_owned());
    }
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.concat()).into_response()
}

async fn live() -> &'static str {
    "alive\n"
}
