//! One request to an application: from the mesh's form to the application's own, and its answer back.
//!
//! A sidecar does this for its own application, and stands in for a missing one in front of another's
//! ([`crate::session::stand_in`]).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use mesh_runtime::DrainWatcher;

use crate::headers;
use crate::inbound::application::{Application, ApplicationBody, ApplicationError};
use crate::outbound::replay::BodyError;
use crate::outbound::upgrade;
use crate::tasks::Tasks;

/// Where a request goes, and how.
pub(crate) struct Exchange<'a> {
    pub(crate) application: &'a Application,
    pub(crate) port: u16,
    /// In HTTP/2, or else in HTTP/1.1.
    pub(crate) http2: bool,
    pub(crate) tasks: &'a Tasks,
    pub(crate) drain: &'a DrainWatcher,
}

impl Exchange<'_> {
    /// Sends a request that was cleaned by [`Self::prepared`], and takes the answer.
    pub(crate) async fn ask(
        &self,
        request: Request<Incoming>,
        upgrade: Option<Upgrade>,
    ) -> Result<Response<Limited>, Own> {
        if let Some(upgrade) = upgrade {
            return self.upgrade(upgrade, request).await;
        }
        let result = if self.http2 {
            self.application.http2(self.port, request).await
        } else {
            self.application.http1(self.port, request).await
        };
        finish(result.map_err(Own::from)?)
    }

    /// A request as the application is to read it; its `x-forwarded-client-cert` names nobody yet.
    pub(crate) fn prepared(&self, request: Request<Incoming>, authority: Authority) -> Request<Incoming> {
        let (mut parts, body) = request.into_parts();
        headers::clean_inbound_request(&mut parts.headers);
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut uri = http::uri::Parts::default();
        if self.http2 {
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

    /// Asks the application for another protocol; see [`crate::outbound::upgrade`].
    async fn upgrade(&self, upgrade: Upgrade, mut request: Request<Incoming>) -> Result<Response<Limited>, Own> {
        let refused = |detail: &str| Own::new(StatusCode::NOT_IMPLEMENTED, "upgrade", detail.to_owned());
        if self.http2 {
            return Err(refused("the application speaks HTTP/2, which has no upgrades"));
        }
        upgrade::switching(request.headers_mut(), upgrade.protocol);
        let mut response = self.application.upgrade(self.port, request).await.map_err(Own::from)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let application = hyper::upgrade::on(&mut response);
            upgrade::join(upgrade.ours, application, self.tasks, self.drain, drop);
            *response.status_mut() = StatusCode::OK;
        } else if response.status().is_success() {
            // To the peer, success is a stream of bytes.
            return Err(refused("the application answered the request and did not change the protocol"));
        }
        finish(response.map(ApplicationBody::once))
    }
}

fn finish(mut response: Response<ApplicationBody>) -> Result<Response<Limited>, Own> {
    headers::clean_response(response.headers_mut());
    if headers::too_large(response.headers(), &[]) {
        // The session is shared: its peer would end it for all.
        let detail = format!("the application's response has more than {} bytes of header fields", headers::LIST_LIMIT);
        return Err(Own::new(StatusCode::BAD_GATEWAY, "response-headers-too-large", detail));
    }
    *response.version_mut() = Version::HTTP_2;
    Ok(response.map(Limited))
}

/// An upgrade that a peer's application asks for.
pub(crate) struct Upgrade {
    protocol: HeaderValue,
    ours: OnUpgrade,
}

impl Upgrade {
    /// Turns an extended CONNECT (RFC 8441) back into the request that it was. A plain CONNECT is refused.
    pub(crate) fn take(request: &mut Request<Incoming>) -> Result<Option<Self>, Own> {
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
pub(crate) struct Own {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    detail: String,
    unprocessed: bool,
}

impl Own {
    pub(crate) const fn new(status: StatusCode, code: &'static str, detail: String) -> Self {
        Self { status, code, detail, unprocessed: false }
    }

    /// The application has all the requests that it can serve in a usual time; the peer may go elsewhere.
    pub(crate) fn overloaded() -> Self {
        let detail = "the application has as many requests as it can serve in time".to_owned();
        Self { unprocessed: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, detail) }
    }

    pub(crate) fn response(self) -> Response<Bytes> {
        let body =
            if self.detail.is_empty() { Bytes::new() } else { Bytes::from(format!("isthmus: {}\n", self.detail)) };
        let mut response = Response::new(body);
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

/// An application's body. Trailers are held to the limit of header fields: they end the session of all likewise.
pub(crate) struct Limited(ApplicationBody);

impl Body for Limited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context)).map(|frame| match frame {
            Ok(frame) if frame.trailers_ref().is_some_and(|trailers| headers::too_large(trailers, &[])) => {
                Err(TrailersTooLarge.into())
            }
            frame => frame.map_err(Into::into),
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
