//! One HTTP request to one route: attempts, retries, the answer.

use std::sync::Arc;
use std::time::Duration;

use balance::Outcome;
use federation::export::ApplicationProtocol;
use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use mesh_runtime::trace;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument, Span, field};

use crate::failure::{self, Failure};
use crate::headers;
use crate::outbound::Outbound;
use crate::outbound::open::Trying;
use crate::outbound::refusal::Refusal;
use crate::outbound::replay::Replay;
use crate::outbound::response::{InFlight, Received, ResponseBody};
use crate::outbound::upgrade;
use crate::routing::route::{Attempt, Route};
use crate::session::path::Path;
use crate::session::pool::Lease;
use crate::telemetry::Access;

/// Retries after an answer, or after a break that may have come after the request was acted upon.
const MAX_BUDGETED_RETRIES: u32 = 3;

/// Retries on a path whose pooled session turned out to be closed.
const MAX_STALE_SESSIONS: u32 = 2;

/// Sends a request of the local application to a route, and answers whatever happens.
pub(crate) async fn forward(
    outbound: &Outbound,
    route: &Arc<Route>,
    authority: Authority,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let span = tracing::info_span!(
        "outbound",
        otel.kind = "client",
        service = &*route.label,
        cluster = field::Empty,
        endpoint = field::Empty,
        gateway = field::Empty,
        peer.id = field::Empty,
        http.request.method = %request.method(),
        http.response.status_code = field::Empty,
    );
    trace::continue_from(&span, request.headers());
    let forwarding = Forwarding::new(outbound, route, authority, request, &span);
    forwarding.run().instrument(span).await
}

/// A request on its way.
struct Forwarding<'a> {
    outbound: &'a Outbound,
    route: &'a Arc<Route>,
    parts: Parts,
    body: Replay<Incoming>,
    /// Repeating it does no harm, or the policy says that it may be repeated.
    idempotent: bool,
    per_try_timeout: Option<Duration>,
    /// The caller asked for the path taken.
    traced: bool,
    /// The caller asked for another protocol.
    upgrade: Option<upgrade::Asked>,
    trying: Trying,
    budgeted_retries: u32,
    stale_sessions: u32,
    /// Until it goes with the response's body.
    access: Option<Box<Access>>,
    /// One of the requests that this sidecar takes at a time, until it goes with the response's body; `None`: there was no room.
    room: Option<OwnedSemaphorePermit>,
}

/// What one attempt came to.
enum Tried {
    Answer(Response<ResponseBody>),
    /// Another attempt may do better; if there is none, this is the answer.
    Again(Last),
}

/// How the last attempt ended.
enum Last {
    Response(Response<Received>, Lease, Path),
    Failure(Refusal),
}

impl<'a> Forwarding<'a> {
    fn new(
        outbound: &'a Outbound,
        route: &'a Arc<Route>,
        authority: Authority,
        mut request: Request<Incoming>,
        span: &Span,
    ) -> Self {
        let (upgrade, retrying) = (upgrade::Asked::of(&mut request), route.retrying());
        let (mut parts, body) = request.into_parts();
        let traced = parts.headers.get(headers::TRACE).is_some_and(|value| value == "1");
        headers::clean_outbound_request(&mut parts.headers);
        if route.is_undeclared() && parts.version == http::Version::HTTP_2 {
            parts.headers.insert(headers::HTTP2, HeaderValue::from_static("1"));
        }
        trace::inject(&trace::context_of(span), &mut parts.headers);
        parts.headers.remove(HOST);
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(authority);
        uri.path_and_query = Some(path);
        parts.uri = Uri::from_parts(uri).unwrap_or_default();
        parts.version = http::Version::HTTP_2;
        parts.extensions = http::Extensions::new();
        if let Some(upgrade) = &upgrade {
            upgrade.carry(&mut parts.method, &mut parts.extensions);
        }
        Self {
            outbound,
            route,
            idempotent: retrying.any_method || is_idempotent(&parts.method),
            per_try_timeout: retrying.per_try_timeout,
            parts,
            body: Replay::new(body),
            traced,
            upgrade,
            trying: Trying::new(Arc::clone(route)),
            budgeted_retries: 0,
            stale_sessions: 0,
            access: Some(Box::new(Access::new("outbound", "http", Arc::clone(&route.label)))),
            room: Arc::clone(&outbound.requests).try_acquire_owned().ok(),
        }
    }

    /// Why the request cannot be sent at all.
    fn unfit(&self) -> Option<Refusal> {
        if self.room.is_none() {
            return Some(Refusal::Overloaded);
        }
        if self.route.protocol == ApplicationProtocol::Tcp && !self.route.is_undeclared() {
            // The other side would refuse the session, and that would look like a failing endpoint.
            return Some(Refusal::NotHttp { service: self.route.host.to_string(), port: self.route.port });
        }
        let uri = &self.parts.uri;
        let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
        let authority = uri.authority().map_or("", Authority::as_str);
        let too_large = headers::too_large(&self.parts.headers, &[self.parts.method.as_str(), path, authority]);
        too_large.then_some(Refusal::HeadersTooLarge { limit: headers::LIST_LIMIT })
    }

    async fn run(mut self) -> Response<ResponseBody> {
        if let Some(refusal) = self.unfit() {
            return self.refuse(&refusal);
        }
        let mut last = None;
        loop {
            let (attempt, lease) = match self.trying.session(&self.outbound.dialer).await {
                Ok(opened) => opened,
                Err(refusal) => return self.give_up(last, refusal),
            };
            match self.attempt(attempt, lease).await {
                Tried::Answer(response) => return response,
                Tried::Again(ended) => last = Some(ended),
            }
        }
    }

    async fn attempt(&mut self, attempt: Attempt, lease: Lease) -> Tried {
        let request = Request::from_parts(self.parts.clone(), self.body.attempt());
        let mut sender = lease.session().sender.clone();
        let sending = sender.try_send_request(request);
        let Some(sent) = within(self.per_try_timeout, sending).await else { return self.too_slow(attempt, &lease) };
        match sent {
            Ok(response) if self.upgrade.is_some() && response.status().is_success() => {
                let path = attempt.path().clone();
                attempt.finish(Outcome::Success, lease.peer().endpoint.as_ref());
                Tried::Answer(self.switch(response, lease, &path))
            }
            Ok(response) => {
                let (parts, body) = response.into_parts();
                match Received::read(body, self.idempotent && self.body.replayable()).await {
                    Ok(body) => self.answered(attempt, lease, Response::from_parts(parts, body)),
                    Err(error) => self.failed(attempt, &lease, Failure::Broken, &error),
                }
            }
            Err(mut error) => {
                let returned = error.take_message().is_some();
                let failure = match self.body.failure() {
                    Some(_) => Failure::Caller,
                    None => failure::classify(error.error(), returned),
                };
                self.failed(attempt, &lease, failure, error.error())
            }
        }
    }

    fn answered(&mut self, attempt: Attempt, lease: Lease, response: Response<Received>) -> Tried {
        let unprocessed = response.headers().contains_key(headers::UNPROCESSED);
        let mut outcome = outcome_of(&response);
        let caller_failed = if outcome == Outcome::GatewayError { self.body.failure() } else { None };
        if caller_failed.is_some() {
            outcome = Outcome::Abandoned;
        }
        let path = attempt.path().clone();
        attempt.finish(outcome, lease.peer().endpoint.as_ref());
        if let Some(failure) = caller_failed {
            return Tried::Answer(self.refuse(&Refusal::Body(failure)));
        }
        let again = self.body.replayable()
            && (unprocessed || outcome == Outcome::GatewayError && self.idempotent && self.may_retry("gateway_error"));
        if again {
            if unprocessed {
                self.route.count_retry("unprocessed");
            }
            return Tried::Again(Last::Response(response, lease, path));
        }
        Tried::Answer(self.answer(response, lease, &path))
    }

    fn failed(&mut self, attempt: Attempt, lease: &Lease, failure: Failure, error: &hyper::Error) -> Tried {
        let (path, text) = (attempt.path().clone(), failure::describe(error));
        if error.is_timeout() {
            // Nobody answered a PING: other sessions to that cluster may be as dead, and this request has waited once.
            self.trying.leave(&path.id().cluster);
        }
        let outcome = match failure {
            Failure::GoneAway => Outcome::Abandoned,
            Failure::NeverSent if lease.reused => Outcome::Abandoned,
            Failure::NeverSent | Failure::Broken => Outcome::ResetBeforeResponse,
            Failure::Caller => Outcome::Abandoned,
        };
        attempt.finish(outcome, lease.peer().endpoint.as_ref());
        let again = match failure {
            Failure::GoneAway | Failure::NeverSent => {
                if lease.reused && self.stale_sessions < MAX_STALE_SESSIONS {
                    // The session was old news; the endpoint may be well.
                    self.stale_sessions += 1;
                    self.trying.forgive(&path);
                }
                self.route.count_retry("unprocessed");
                true
            }
            Failure::Broken => self.idempotent && self.may_retry("reset"),
            Failure::Caller => false,
        };
        let service = self.route.host.to_string();
        let refusal = match self.body.failure() {
            Some(failure) => Refusal::Body(failure),
            None => Refusal::Interrupted { service, last: text },
        };
        if again && self.body.replayable() {
            return Tried::Again(Last::Failure(refusal));
        }
        Tried::Answer(self.refuse(&refusal))
    }

    /// The policy's limit for one try has passed. The request may have been acted upon.
    fn too_slow(&mut self, attempt: Attempt, lease: &Lease) -> Tried {
        attempt.finish(Outcome::GatewayError, lease.peer().endpoint.as_ref());
        let refusal =
            Refusal::TooSlow { service: self.route.host.to_string(), limit: self.per_try_timeout.unwrap_or_default() };
        if self.idempotent && self.body.replayable() && self.may_retry("per_try_timeout") {
            return Tried::Again(Last::Failure(refusal));
        }
        Tried::Answer(self.refuse(&refusal))
    }

    fn may_retry(&mut self, reason: &'static str) -> bool {
        let allowed = self.budgeted_retries < MAX_BUDGETED_RETRIES && self.route.try_retry();
        if allowed {
            self.budgeted_retries += 1;
            self.route.count_retry(reason);
        }
        allowed
    }

    /// No attempt is left: the last answer, if there was one, is the truth.
    fn give_up(mut self, last: Option<Last>, refusal: Refusal) -> Response<ResponseBody> {
        match last {
            Some(Last::Response(response, lease, path)) => self.answer(response, lease, &path),
            Some(Last::Failure(failure)) => self.refuse(&failure),
            None => self.refuse(&refusal),
        }
    }

    fn answer(&mut self, response: Response<Received>, lease: Lease, path: &Path) -> Response<ResponseBody> {
        let (mut parts, body) = response.into_parts();
        let own_error = parts.headers.get(headers::ERROR).cloned();
        headers::clean_response(&mut parts.headers);
        if let Some(error) = own_error {
            parts.headers.insert(headers::ERROR, error);
        }
        if self.traced
            && let Some(taken) = self.path_taken(&lease, path)
        {
            parts.headers.insert(headers::PATH, taken);
        }
        let mut access = self.access.take().unwrap_or_else(|| self.new_access());
        path.metrics().answered(parts.status, access.started());
        access.cluster = Arc::clone(path.cluster_text());
        access.endpoint = Arc::clone(lease.peer().endpoint_text());
        access.gateway = path.id().gateway().cloned();
        access.peer = Arc::clone(&lease.peer().identity);
        access.status = Some(parts.status);
        access.attempts = self.trying.attempts();
        record(&Span::current(), &access);
        Response::from_parts(parts, ResponseBody::Stream(body, InFlight::new(lease, access, self.room.take())))
    }

    /// The other side has agreed to another protocol.
    fn switch(&mut self, mut response: Response<Incoming>, lease: Lease, path: &Path) -> Response<ResponseBody> {
        headers::clean_response(response.headers_mut());
        let mut access = self.access.take().unwrap_or_else(|| self.new_access());
        path.metrics().answered(StatusCode::SWITCHING_PROTOCOLS, access.started());
        access.cluster = Arc::clone(path.cluster_text());
        access.endpoint = Arc::clone(lease.peer().endpoint_text());
        access.gateway = path.id().gateway().cloned();
        access.peer = Arc::clone(&lease.peer().identity);
        access.status = Some(StatusCode::SWITCHING_PROTOCOLS);
        access.attempts = self.trying.attempts();
        record(&Span::current(), &access);
        if let Some(upgrade) = self.upgrade.take() {
            let room = self.room.take();
            upgrade.agreed(&mut response, &self.outbound.tasks, &self.outbound.drain, move |relayed| {
                access.bytes = (relayed.a_to_b, relayed.b_to_a);
                access.end = relayed.end.label();
                drop((lease, room));
            });
        }
        response.map(|_| ResponseBody::Own(None))
    }

    fn refuse(&mut self, refusal: &Refusal) -> Response<ResponseBody> {
        let mut access = self.access.take().unwrap_or_else(|| self.new_access());
        access.end = refusal.code();
        access.status = Some(refusal.status());
        access.attempts = self.trying.attempts();
        self.route.count_unanswered(refusal.code());
        refusal.response(&self.parts.headers).map(|body| ResponseBody::Own(Some(body)))
    }

    fn new_access(&self) -> Box<Access> {
        Box::new(Access::new("outbound", "http", Arc::clone(&self.route.label)))
    }

    fn path_taken(&self, lease: &Lease, path: &Path) -> Option<HeaderValue> {
        let client = self.outbound.identity.spiffe_id().map(|id| id.to_string()).unwrap_or_default();
        let text = format!(
            "client={client}; server={}; cluster={}; gateway={}; endpoint={}; attempts={}",
            lease.peer().identity,
            path.id().cluster,
            path.id().gateway().map_or("-", |gateway| &**gateway),
            lease.peer().endpoint_text(),
            self.trying.attempts(),
        );
        HeaderValue::try_from(text).ok()
    }
}

/// `None` when the limit has passed.
async fn within<T>(limit: Option<Duration>, doing: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, doing).await.ok(),
        None => Some(doing.await),
    }
}

/// Methods that may be repeated (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// What a response says about its endpoint.
fn outcome_of(response: &Response<Received>) -> Outcome {
    match response.status() {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Outcome::GatewayError
        }
        _ if is_grpc_unavailable(response.headers()) => Outcome::GatewayError,
        status if status.is_client_error() || status.is_server_error() => Outcome::OtherResponse,
        _ => Outcome::Success,
    }
}

/// gRPC's way to say 503, known before the body when the call failed at once.
fn is_grpc_unavailable(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|status| status == "14")
}

fn record(span: &Span, access: &Access) {
    span.record("cluster", &*access.cluster);
    span.record("endpoint", &*access.endpoint);
    span.record("gateway", access.gateway.as_deref().unwrap_or("-"));
    span.record("peer.id", &*access.peer);
    span.record("http.response.status_code", access.status.map_or(0, |status| status.as_u16()));
}
