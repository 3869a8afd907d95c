//! What goes on beside requests: probes of what is ejected, and letting go of what nobody uses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use federation::export::ApplicationProtocol;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::{Notify, Semaphore};
use tracing::debug;

use crate::headers;
use crate::routing::route::Route;
use crate::routing::{Entry, Router};
use crate::session::dial::{Dialer, Kind};
use crate::session::path::Path;
use crate::session::stream::Stream;

/// Longest rest between two looks at what is to be probed.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// Shortest rest, so that a crowd of ejections is probed in rounds.
const SHORTEST_REST: Duration = Duration::from_millis(50);

/// Probes at a time.
const MAX_PROBES: usize = 32;

/// How long the application behind a session may take to be found well.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// How often it is looked whether paths share endpoints.
const SPREAD: Duration = Duration::from_secs(1);

/// A session that nobody used for this long, twice as long at most, is closed.
const IDLE: Duration = Duration::from_secs(60);

/// A host that does not exist is forgotten after this, and asked for again when it is used again.
const FORGET_ABSENT: Duration = Duration::from_secs(300);

/// Probes whatever is ejected, for as long as it is, away from users' requests.
pub(crate) async fn probe(router: Router, dialer: Dialer, ejected: Arc<Notify>) {
    let places = Arc::new(Semaphore::new(MAX_PROBES));
    loop {
        let now = Instant::now();
        let table = router.table();
        for route in table.routes() {
            if route.next_probe().is_none_or(|at| at > now) {
                continue;
            }
            for path in route.probes_due(now) {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let (route, probing) = (Arc::clone(route), dialer.clone());
                dialer.tasks().spawn(Box::pin(async move {
                    let ok = is_well(&probing, &route, &path).await;
                    debug!(service = &*route.label, path = %path.id().server_name, ok, "probed");
                    route.probed(&path, ok);
                    drop(place);
                }));
            }
        }
        let next = table.routes().filter_map(|route| route.next_probe()).min();
        drop(table);
        let rest = next.map_or(LONGEST_REST, |at| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = tokio::time::sleep(rest.clamp(SHORTEST_REST, LONGEST_REST)) => {}
            () = ejected.notified() => tokio::time::sleep(SHORTEST_REST).await,
        }
    }
}

/// A fresh session comes up, and the application behind it accepts connections.
async fn is_well(dialer: &Dialer, route: &Route, path: &Path) -> bool {
    if route.protocol == ApplicationProtocol::Tcp || path.tls().is_none() {
        // The other side asks the application before its verdict, or is the application.
        return dialer.dial(path, Kind::Tcp).await.is_ok();
    }
    match dialer.dial(path, Kind::Http).await {
        Ok((stream, _)) => {
            matches!(tokio::time::timeout(ANSWER_DEADLINE, ask(stream, route)).await, Ok(Some(StatusCode::OK)))
        }
        Err(error) => {
            debug!(service = &*route.label, %error, "probe");
            false
        }
    }
}

/// Asks the other sidecar about its application.
async fn ask(stream: Stream, route: &Route) -> Option<StatusCode> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
    let request = Request::builder()
        .method(Method::HEAD)
        .uri(format!("http://{}/", route.authority()))
        .header(headers::PROBE, HeaderValue::from_static("1"))
        .body(Empty::<Bytes>::new())
        .ok()?;
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        response = sender.send_request(request) => response.ok().map(|response| response.status()),
        _ = connection.as_mut() => None,
    }
}

/// Leads paths that share an endpoint to others, until every endpoint behind gateways has its part of the load.
pub(crate) async fn spread(router: Router) {
    loop {
        tokio::time::sleep(SPREAD).await;
        for route in router.table().routes() {
            for path in route.redundant() {
                path.turn(Instant::now());
            }
        }
    }
}

/// Lets sessions and subscriptions go that nobody uses.
pub(crate) async fn tidy(router: Router) {
    loop {
        tokio::time::sleep(IDLE).await;
        let table = router.table();
        for route in table.routes() {
            for path in route.paths() {
                path.sessions().close_idle();
            }
        }
        if let Some(discovery) = router.discovery() {
            let stale = table.services.iter().filter_map(|(host, entry)| match entry {
                Entry::Absent(since) if since.elapsed() > FORGET_ABSENT => host.parse().ok(),
                _ => None,
            });
            discovery.unsubscribe(stale);
        }
    }
}
