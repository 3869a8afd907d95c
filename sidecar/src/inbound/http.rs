//! HTTP from a peer's sidecar to the application.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use federation::export::ApplicationProtocol;
use http::header::{CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_runtime::{DrainHold, trace};
use tracing::{Instrument, Span, debug, field};

use crate::headers;
use crate::inbound::admission::Admitted;
use crate::inbound::application::{ApplicationBody, ApplicationError};
use crate::inbound::{Caller, Inbound, Stream};
use crate::outbound::replay::BodyError;
use crate::outbound::{port_of, upgrade};
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
    let service: Arc<str> = binding.host.service().to_string().into();
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
            return own.response();
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
                own.response()
            }
        };
        span.record("http.response.status_code", response.status().as_u16());
        response
    }

    async fn answer(&self, mut request: Request<Incoming>, span: &Span) -> Result<Response<ApplicationBody>, Own> {
        let started = Instant::now();
        let authority = self.authority(&request)?;
        if request.headers().contains_key(headers::PROBE) {
            return Err(self.probe().await);
        }
        let upgrade = Upgrade::take(&mut request)?;
        self.permitted(&request)?;
        let http2 = self.binding.port.application_protocol() == ApplicationProtocol::Http2
            || !self.binding.port.declares_protocol() && request.headers().contains_key(headers::HTTP2);
        let request = self.for_application(request, authority, http2, span);
        let port = self.binding.target_port;
        let result = if let Some(upgrade) = upgrade {
            return self.upgrade(upgrade, http2, request, started).await;
        } else if http2 {
            self.inbound.application.http2(port, request).await
        } else {
            self.inbound.application.http1(port, request).await
        };
        self.finish(result.map_err(Own::from)?, started)
    }

    /// What the policies say at this moment: a session outlives them.
    fn permitted(&self, request: &Request<Incoming>) -> Result<(), Own> {
        let serving = self.inbound.serving.load();
        let asked = Some((request.method().as_str(), request.uri().path()));
        self.inbound
            .permits(&serving, &self.caller, &self.binding, asked)
            .map_err(|policy| Own::new(StatusCode::FORBIDDEN, "denied", format!("denied by {policy}")))
    }

    /// Asks the application for another protocol; see [`crate::outbound::upgrade`].
    async fn upgrade(
        &self,
        upgrade: Upgrade,
        http2: bool,
        mut request: Request<Incoming>,
        started: Instant,
    ) -> Result<Response<ApplicationBody>, Own> {
        let refused = |detail: &str| Own::new(StatusCode::NOT_IMPLEMENTED, "upgrade", detail.to_owned());
        if http2 {
            return Err(refused("the application speaks HTTP/2, which has no upgrades"));
        }
        upgrade::switching(request.headers_mut(), upgrade.protocol);
        let mut response =
            self.inbound.application.upgrade(self.binding.target_port, request).await.map_err(Own::from)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let application = hyper::upgrade::on(&mut response);
            upgrade::join(upgrade.ours, application, &self.inbound.tasks, &self.inbound.drain, drop);
            *response.status_mut() = StatusCode::OK;
        } else if response.status().is_success() {
            // To the peer, success is a stream of bytes.
            return Err(refused("the application answered the request and did not change the protocol"));
        }
        self.finish(response.map(ApplicationBody::once), started)
    }

    fn finish(
        &self,
        mut response: Response<ApplicationBody>,
        started: Instant,
    ) -> Result<Response<ApplicationBody>, Own> {
        headers::clean_response(response.headers_mut());
        if headers::too_large(response.headers(), &[]) {
            // The session is shared: its peer would end it for all.
            let detail =
                format!("the application's response has more than {} bytes of header fields", headers::LIST_LIMIT);
            return Err(Own::new(StatusCode::BAD_GATEWAY, "response-headers-too-large", detail));
        }
        *response.version_mut() = Version::HTTP_2;
        self.metrics.answered(response.status(), started);
        Ok(response)
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
        let bound = host.eq_ignore_ascii_case(&self.binding.host_text)
            && !authority.as_str().contains('@')
            && port_of(&authority).is_ok_and(|port| port.is_none_or(|port| port == self.binding.port.port));
        if bound { Ok(authority) } else { Err(misdirected(authority.as_str())) }
    }

    /// Whether the application accepts connections, for a peer that thinks of coming back.
    async fn probe(&self) -> Own {
        match self.inbound.application.connect(self.binding.target_port).await {
            Ok(_) => Own::new(StatusCode::OK, "probe", String::new()),
            Err(error) => Own::from(error),
        }
    }

    fn for_application(
        &self,
        request: Request<Incoming>,
        authority: Authority,
        http2: bool,
        span: &Span,
    ) -> Request<Incoming> {
        let (mut parts, body) = request.into_parts();
        headers::clean_inbound_request(&mut parts.headers);
        if let Some(certificate) = &self.certificate {
            parts.headers.insert(headers::FORWARDED_CLIENT_CERT, certificate.clone());
        }
        trace::inject(&trace::context_of(span), &mut parts.headers);
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut uri = http::uri::Parts::default();
        if http2 {
            parts.headers.remove(HOST);
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(authority);
            parts.version = Version::HTTP_2;
        } else {
            if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                parts.headers.insert(HOST, host);
            }
            join_cookies(&mut parts.headers);
            parts.version = Version::HTTP_11;
        }
        uri.path_and_query = Some(path);
        parts.uri = Uri::from_parts(uri).unwrap_or_default();
        parts.extensions = http::Extensions::new();
        Request::from_parts(parts, body)
    }
}

/// An upgrade that a peer's application asks for.
struct Upgrade {
    protocol: HeaderValue,
    ours: OnUpgrade,
}

impl Upgrade {
    /// Turns an extended CONNECT (RFC 8441) back into the request that it was. A plain CONNECT is refused.
    fn take(request: &mut Request<Incoming>) -> Result<Option<Self>, Own> {
        if request.method() != Method::CONNECT {
            return Ok(None);
        }
        let protocol = request.extensions().get::<Protocol>().and_then(|it| HeaderValue::from_str(it.as_str()).ok());
        let Some(protocol) = protocol else {
            return Err(Own::new(StatusCode::METHOD_NOT_ALLOWED, "connect", "a mesh session is no proxy".to_owned()));
        };
        let ours = hyper::upgrade::on(&mut *request);
        *request.method_mut() = Method::GET;
        Ok(Some(Self { protocol, ours }))
    }
}

/// HTTP/2 may split cookies into several fields; HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    if fields.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        fields.insert(COOKIE, joined);
    }
}

/// [`Own::code`] of a request that there is no room for.
const OVERLOADED: &str = "overloaded";

/// A response that this sidecar makes itself.
struct Own {
    status: StatusCode,
    code: &'static str,
    detail: String,
    unprocessed: bool,
}

impl Own {
    const fn new(status: StatusCode, code: &'static str, detail: String) -> Self {
        Self { status, code, detail, unprocessed: false }
    }

    /// The application has all the requests that it can serve in a usual time; the peer may go elsewhere.
    fn overloaded() -> Self {
        let detail = "the application has as many requests as it can serve in time".to_owned();
        Self { unprocessed: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, detail) }
    }

    fn response(self) -> Response<InboundBody> {
        let body =
            if self.detail.is_empty() { Bytes::new() } else { Bytes::from(format!("isthmus: {}\n", self.detail)) };
        let mut response = Response::new(InboundBody::Own(Some(body)));
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        if self.status != StatusCode::OK {
            fields.insert(headers::ERROR, HeaderValue::from_static(self.code));
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        if self.code == OVERLOADED {
            fields.insert(RETRY_AFTER, HeaderValue::from_static(headers::RETRY_AFTER_SECONDS));
        }
        if self.unprocessed {
            fields.insert(headers::UNPROCESSED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl From<ApplicationError> for Own {
    fn from(error: ApplicationError) -> Self {
        let status = if error.unprocessed() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_GATEWAY };
        Self { unprocessed: error.unprocessed(), ..Self::new(status, error.code(), error.to_string()) }
    }
}

/// The application's response ends with more fields than the mesh carries.
#[derive(Debug, thiserror::Error)]
#[error("the application's trailers are too large")]
struct TrailersTooLarge;

/// What lives as long as a response's body.
struct InFlight {
    access: Box<Access>,
    _hold: DrainHold,
    _admitted: Admitted,
}

/// A response's body.
enum InboundBody {
    Own(Option<Bytes>),
    Application(ApplicationBody, InFlight),
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
                let frame = ready!(Pin::new(body).poll_frame(context)).map(within_limit);
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

/// Trailers are held to the limit of header fields: they end the session of all likewise.
fn within_limit(frame: Result<Frame<Bytes>, hyper::Error>) -> Result<Frame<Bytes>, BodyError> {
    match frame {
        Ok(frame) if frame.trailers_ref().is_some_and(|trailers| headers::too_large(trailers, &[])) => {
            Err(TrailersTooLarge.into())
        }
        frame => frame.map_err(Into::into),
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
