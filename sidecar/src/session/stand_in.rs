//! The part of a sidecar that an endpoint of the own cluster does not have, played on this side.
//!
//! ```text
//!  request ─► HTTP/2, in memory ─► stand-in ─► HTTP/1.1 or h2c, plaintext ─► application
//! ```
//!
//! So requests to such an endpoint are multiplexed, tried elsewhere and upgraded by the very code that serves sessions.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_runtime::DrainWatcher;
use tokio::io::DuplexStream;
use tracing::debug;

use crate::headers;
use crate::inbound::application::Application;
use crate::inbound::exchange::{Exchange, Limited, Own, Upgrade};
use crate::session::dial::MAX_FRAME;
use crate::tasks::Tasks;

/// Requests of one session at a time.
const MAX_STREAMS: u32 = 1000;

/// What is on its way in memory, each way.
pub(crate) const BUFFER: usize = 256 * 1024;

/// Stands in for the sidecar of one port of one endpoint.
pub(crate) struct StandIn {
    pub(crate) application: Application,
    pub(crate) port: u16,
    /// The service declares HTTP/2.
    pub(crate) http2: bool,
    pub(crate) tasks: Tasks,
    pub(crate) drain: DrainWatcher,
}

impl StandIn {
    /// Serves a session until its other end is dropped.
    pub(crate) async fn serve(self, stream: DuplexStream) {
        let stand_in = Arc::new(self);
        let service = service_fn(move |request| {
            let stand_in = Arc::clone(&stand_in);
            async move { Ok::<_, Infallible>(stand_in.request(request).await) }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(headers::MAX_LIST)
            .enable_connect_protocol()
            .max_frame_size(MAX_FRAME);
        if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
            debug!(%error, "session without a sidecar ended");
        }
    }

    async fn request(&self, request: Request<Incoming>) -> Response<Either<Full<Bytes>, Limited>> {
        match Box::pin(self.answer(request)).await {
            Ok(response) => response.map(Either::Right),
            Err(own) => own.response().map(|body| Either::Left(Full::new(body))),
        }
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Result<Response<Limited>, Own> {
        let nowhere = || Own::new(StatusCode::BAD_REQUEST, "no-authority", "the request names no host".to_owned());
        let authority = request.uri().authority().cloned().ok_or_else(nowhere)?;
        let upgrade = Upgrade::take(&mut request)?;
        let exchange = Exchange {
            application: &self.application,
            port: self.port,
            http2: self.http2 || request.headers().contains_key(headers::HTTP2),
            tasks: &self.tasks,
            drain: &self.drain,
        };
        let request = exchange.prepared(request, authority);
        exchange.ask(request, upgrade).await
    }
}
