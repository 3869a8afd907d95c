//! HTTP from a peer's sidecar to the application.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use federation::MeshHost;
use federation::export::ApplicationProtocol;
use http::header::{HOST, HeaderValue};
use http::uri::Authority;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_runtime::{DrainHold, trace};
use tracing::{Instrument, Span, debug, field};

use crate::headers;
use crate::inbound::admission::Admitted;
use crate::inbound::exchange::{Exchange, Limited, Own, Upgrade};
use crate::inbound::{Caller, Inbound, Stream};
use crate::outbound::port_of;
use crate::outbound::replay::BodyError;
use crate::service::Binding;
use crate::session::dial::MAX_FRAME;
use crate::telemetry::{Access, WayMetrics};
use crate::xfcc;

/// Requests of one session at a time.
const MAX_STREAMS: u32 = 1000;

/// A silent peer is asked for a sign of life after this, and given up after as long again.
const PING_AFTER: Duration = Duration::from_secs(15);

/// HTTP/2 flow control windows: one stream may have this much on its way, and a session four times as much.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// One session of a peer.
struct Session {
    inbound: Arc<Inbound>,
    caller: Caller,
    binding: Arc<Binding>,
    service: Arc<str>,
    /// The caller's identity, the same for all requests.
    certificate: Option<HeaderValue>,
    metrics: WayMetrics,
}

/// Serves a session whose verdict was good.
pub(crate) async fn serve(inbound: &Arc<Inbound>, stream: Stream, caller: Caller, binding: Arc<Binding>) {
    let service: Arc<str> = binding.host.label().into();
    let certificate = inbound.identity.spiffe_id().and_then(|by| {
        let leaf = caller.peer.chain().first()?;
        xfcc::forwarded_client_cert(&by, leaf, caller.peer.id())
    });
    let session = Arc::new(Session {
        metrics: WayMetrics::inbound(&inbound.metrics, &service, &caller.domain),
        inbound: Arc::clone(inbound),
        caller,
        binding,
        service,
        certificate,
    });
    let handler = service_fn(|request| {
        let session = Arc::clone(&session);
        async move { Ok::<_, Infallible>(session.request(request).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(headers::MAX_LIST)
        .enable_connect_protocol()
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(4 * STREAM_WINDOW)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_AFTER);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), handler));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = inbound.drain.signaled() => {
            // Until the peer has read that it should go elsewhere.
            let _hold = inbound.drain.hold();
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(src.addr = %session.caller.address, peer.id = %session.caller.identity, %error, "session ended");
    }
}

impl Session {
    async fn request(&self, request: Request<Incoming>) -> Response<InboundBody> {
        let hold = self.inbound.drain.hold();
        let mut access = Box::new(Access::new("inbound", "http", Arc::clone(&self.service)));
        access.cluster = Arc::clone(&self.caller.domain);
        access.peer = Arc::clone(&self.caller.identity);
        let span = tracing::info_span!(
            "inbound",
            otel.kind = "server",
            service = &*self.service,
            peer.id = &*self.caller.identity,
            http.request.method = %request.method(),
            http.response.status_code = field::Empty,
        );
        trace::continue_from(&span, request.headers());
        let Some(admitted) = self.inbound.admission.admit() else {
            let own = Own::overloaded();
            (access.status, access.end) = (Some(own.status), own.code);
            return own.response().map(|body| InboundBody::Own(Some(body)));
        };
        let result = Box::pin(self.answer(request, &span)).instrument(span.clone()).await;
        let response = match result {
            Ok(response) => {
                access.status = Some(response.status());
                admitted.answered(access.started().elapsed());
                let in_flight = InFlight { access, _hold: hold, _admitted: admitted };
                response.map(|body| InboundBody::Application(body, in_flight))
            }
            Err(own) => {
                access.status = Some(own.status);
                access.end = own.code;
                own.response().map(|body| InboundBody::Own(Some(body)))
            }
        };
        span.record("http.response.status_code", response.status().as_u16());
        response
    }

    async fn answer(&self, mut request: Request<Incoming>, span: &Span) -> Result<Response<Limited>, Own> {
        let started = Instant::now();
        let authority = self.authority(&request)?;
        if request.headers().contains_key(headers::PROBE) {
            return Err(self.probe().await);
        }
        let upgrade = Upgrade::take(&mut request)?;
        self.permitted(&request)?;
        let http2 = self.binding.port.application_protocol() == ApplicationProtocol::Http2
            || !self.binding.port.declares_protocol() && request.headers().contains_key(headers::HTTP2);
        let exchange = Exchange {
            application: &self.inbound.application,
            port: self.binding.target_port,
            http2,
            tasks: &self.inbound.tasks,
            drain: &self.inbound.drain,
        };
        let mut request = exchange.prepared(request, authority);
        if let Some(certificate) = &self.certificate {
            request.headers_mut().insert(headers::FORWARDED_CLIENT_CERT, certificate.clone());
        }
        trace::inject(&trace::context_of(span), request.headers_mut());
        let response = exchange.ask(request, upgrade).await?;
        self.metrics.answered(response.status(), started);
        Ok(response)
    }

    /// What the policies say at this moment: a session outlives them.
    fn permitted(&self, request: &Request<Incoming>) -> Result<(), Own> {
        let serving = self.inbound.serving.load();
        let asked = Some((request.method().as_str(), request.uri().path()));
        self.inbound
            .permits(&serving, &self.caller, &self.binding, asked)
            .map_err(|policy| Own::new(StatusCode::FORBIDDEN, "denied", format!("denied by {policy}")))
    }

    /// The request's authority must be the service that the session is bound to, with its port or without.
    fn authority(&self, request: &Request<Incoming>) -> Result<Authority, Own> {
        let misdirected = |asked: &str| {
            let asked: String = asked.chars().take(253).collect();
            Own::new(
                StatusCode::MISDIRECTED_REQUEST,
                "misdirected",
                format!("this session is for {}:{}, not for {asked:?}", self.binding.host_text, self.binding.port.port),
            )
        };
        let field = request.headers().get(HOST).map(|host| host.to_str().unwrap_or("?"));
        let authority = match (request.uri().authority(), field) {
            (Some(authority), Some(field)) if authority.as_str() != field => return Err(misdirected(field)),
            (Some(authority), _) => authority.clone(),
            (None, Some(field)) => field.parse().map_err(|_| misdirected(field))?,
            (None, None) => return Err(misdirected("")),
        };
        let host = authority.host().strip_suffix('.').unwrap_or(authority.host());
        let named = || host.parse().is_ok_and(|host| self.binding.host.answers_to(&host));
        let bound = (host.eq_ignore_ascii_case(&self.binding.host_text) || named())
            && port_of(&authority).is_ok_and(|port| port.is_none_or(|port| port == self.binding.port.port));
        // In its own cluster a service has more names than this one (`cart`, its address, an ingress's), and applications know
        // them; none of them is another service's.
        let alias = || self.binding.host.is_local() && host.parse::<MeshHost>().is_err();
        if !authority.as_str().contains('@') && (bound || alias()) {
            Ok(authority)
        } else {
            Err(misdirected(authority.as_str()))
        }
    }

    /// Whether the application accepts connections, for a peer that thinks of coming back.
    async fn probe(&self) -> Own {
        match self.inbound.application.connect(self.binding.target_port).await {
            Ok(_) => Own::new(StatusCode::OK, "probe", String::new()),
            Err(error) => Own::from(error),
        }
    }
}

/// What lives as long as a response's body.
struct InFlight {
    access: Box<Access>,
    _hold: DrainHold,
    _admitted: Admitted,
}

/// A response's body.
enum InboundBody {
    Own(Option<Bytes>),
    Application(Limited, InFlight),
}

impl Body for InboundBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Own(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Application(body, in_flight) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                in_flight.access.end = match &frame {
                    None => "complete",
                    Some(Err(_)) => "broken",
                    Some(Ok(_)) => in_flight.access.end,
                };
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Application(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Application(body, _) => body.size_hint(),
        }
    }
}

impl Drop for InboundBody {
    fn drop(&mut self) {
        // A body that says that it has ended is not always polled to its end.
        if let Self::Application(body, in_flight) = self
            && in_flight.access.end == "unfinished"
            && body.is_end_stream()
        {
            in_flight.access.end = "complete";
        }
    }
}
