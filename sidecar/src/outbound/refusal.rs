//! Why a request of the local application goes nowhere, said in each protocol it may have come by.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, HeaderName, Response, StatusCode};

use crate::headers;

/// Why a request goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// An explicit proxy is told the whole URI.
    #[error(
        "this is a proxy: send an absolute URI (http://<service>.<namespace>.svc.clusterset.local:<port>/) or CONNECT"
    )]
    NoAuthority,
    /// A destination that is no service of the clusterset.
    #[error(
        "{0:?} is no clusterset service: this proxy reaches <name>.<namespace>.svc.clusterset.local and their addresses only"
    )]
    NotInClusterset(String),
    /// A service of the own cluster that is not the mesh's affair.
    #[error(
        "{0} is no service of this cluster whose namespace has opted in (label isthmus.dev/local-services=enabled)"
    )]
    NotOptedIn(String),
    /// TLS belongs to the sidecars.
    #[error("https is not carried: ask for http, the sidecars encrypt and authenticate the way")]
    Https,
    /// Neither http nor https.
    #[error("scheme {0:?} is not carried: ask for http, or CONNECT to the port")]
    Scheme(String),
    /// Not a number from 0 to 65535.
    #[error("{0:?} is no port")]
    Port(String),
    /// A request to a port whose bytes are opaque.
    #[error(
        "port {port} of {service} is declared as TCP, not as HTTP: use CONNECT or SOCKS5, or export it with an HTTP appProtocol"
    )]
    NotHttp {
        /// Its host name.
        service: String,
        /// What was asked for.
        port: u16,
    },
    /// More fields than the mesh carries.
    #[error(
        "the request's header fields are too large: {limit} bytes at most, with its URI and 32 bytes for each field"
    )]
    HeadersTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The caller's own body broke off, or is malformed.
    #[error("the request's body could not be read to its end: {0}")]
    Body(String),
    /// The control-plane knows no such service.
    #[error("no cluster exports {0}")]
    UnknownService(String),
    /// The service has no such port.
    #[error("{service} has no TCP port {port}")]
    UnknownPort {
        /// Its host name, or address.
        service: String,
        /// What was asked for.
        port: u16,
    },
    /// The control-plane gave no answer in time.
    #[error("no answer from the control-plane about {service} within {deadline:?}")]
    LookupTimedOut {
        /// The host name or address.
        service: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The bound on services that one workload uses.
    #[error("this workload already uses {0} services, the most a sidecar keeps track of")]
    TooManyServices(usize),
    /// More requests at a time than this sidecar takes.
    #[error("this workload has as many requests under way as its sidecar takes")]
    Overloaded,
    /// Nothing to send it to.
    #[error("{service} has no endpoint")]
    NoEndpoint {
        /// Its host name.
        service: String,
    },
    /// Every way was tried.
    #[error("{service} is unreachable: {attempts} attempts, the last: {last}")]
    Unreachable {
        /// Its host name.
        service: String,
        /// How many.
        attempts: usize,
        /// How the last one failed.
        last: String,
    },
    /// No answer within the limit that the failover policy sets for one try.
    #[error("{service} did not answer within {limit:?}, the failover policy's limit for one try")]
    TooSlow {
        /// Its host name.
        service: String,
        /// As the policy says it.
        limit: Duration,
    },
    /// The connection broke when the request may have been acted upon already.
    #[error("{service} ended the connection before it answered: {last}")]
    Interrupted {
        /// Its host name.
        service: String,
        /// How.
        last: String,
    },
    /// Inside a tunnel to one service, a request for another.
    #[error("this tunnel leads to {tunnel}, not to {asked}")]
    Misdirected {
        /// Where the tunnel leads.
        tunnel: String,
        /// What was asked for.
        asked: String,
    },
}

impl Refusal {
    /// One word for the header, the log and the metric.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::NoAuthority => "no-authority",
            Self::NotInClusterset(_) => "not-in-clusterset",
            Self::NotOptedIn(_) => "not-opted-in",
            Self::Https => "https",
            Self::Scheme(_) => "scheme",
            Self::Port(_) => "port",
            Self::NotHttp { .. } => "not-http",
            Self::HeadersTooLarge { .. } => "headers-too-large",
            Self::Body(_) => "request-body",
            Self::UnknownService(_) => "unknown-service",
            Self::UnknownPort { .. } => "unknown-port",
            Self::LookupTimedOut { .. } => "lookup-timed-out",
            Self::TooManyServices(_) => "too-many-services",
            Self::NoEndpoint { .. } => "no-endpoint",
            Self::Unreachable { .. } => "unreachable",
            Self::Overloaded => "overloaded",
            Self::TooSlow { .. } => "per-try-timeout",
            Self::Interrupted { .. } => "interrupted",
            Self::Misdirected { .. } => "misdirected",
        }
    }

    /// As an HTTP status.
    pub(crate) const fn status(&self) -> StatusCode {
        match self {
            Self::NoAuthority
            | Self::Https
            | Self::Scheme(_)
            | Self::Port(_)
            | Self::NotHttp { .. }
            | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::NotInClusterset(_) | Self::NotOptedIn(_) => StatusCode::FORBIDDEN,
            Self::HeadersTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::UnknownService(_) | Self::UnknownPort { .. } | Self::Interrupted { .. } => StatusCode::BAD_GATEWAY,
            Self::LookupTimedOut { .. }
            | Self::TooManyServices(_)
            | Self::Overloaded
            | Self::NoEndpoint { .. }
            | Self::Unreachable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Misdirected { .. } => StatusCode::MISDIRECTED_REQUEST,
        }
    }

    /// As a SOCKS5 reply (RFC 1928, section 6).
    pub(crate) const fn socks_reply(&self) -> u8 {
        match self {
            Self::NoAuthority
            | Self::Https
            | Self::Scheme(_)
            | Self::Port(_)
            | Self::NotHttp { .. }
            | Self::HeadersTooLarge { .. }
            | Self::Body(_)
            | Self::Misdirected { .. } => 0x01,
            Self::NotInClusterset(_) | Self::NotOptedIn(_) | Self::TooManyServices(_) | Self::Overloaded => 0x02,
            Self::UnknownService(_) | Self::LookupTimedOut { .. } | Self::NoEndpoint { .. } => 0x04,
            Self::UnknownPort { .. } | Self::Unreachable { .. } | Self::TooSlow { .. } | Self::Interrupted { .. } => {
                0x05
            }
        }
    }

    /// The whole response. A gRPC caller is told in gRPC's own form: status 200 and UNAVAILABLE.
    pub(crate) fn response(&self, request: &HeaderMap) -> Response<Bytes> {
        let grpc = request
            .get(CONTENT_TYPE)
            .is_some_and(|content_type| content_type.as_bytes().starts_with(b"application/grpc"));
        let body = if grpc { Bytes::new() } else { Bytes::from(format!("isthmus: {self}\n")) };
        let mut response = Response::new(body);
        let fields = response.headers_mut();
        fields.insert(headers::ERROR, HeaderValue::from_static(self.code()));
        if matches!(self, Self::Overloaded) {
            fields.insert(RETRY_AFTER, HeaderValue::from_static(headers::RETRY_AFTER_SECONDS));
        }
        if grpc {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            fields.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static("14"));
            if let Ok(message) = HeaderValue::try_from(grpc_message(&self.to_string())) {
                fields.insert(HeaderName::from_static("grpc-message"), message);
            }
        } else {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            *response.status_mut() = self.status();
        }
        response
    }
}

/// Percent-encoded as gRPC over HTTP/2 asks for `grpc-message`.
fn grpc_message(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_reason_in_header_and_body() {
        let refusal = Refusal::UnknownService("a.b.svc.clusterset.local".to_owned());
        let response = refusal.response(&HeaderMap::new());
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(response.headers()[headers::ERROR], "unknown-service");
        assert_eq!(response.body(), "isthmus: no cluster exports a.b.svc.clusterset.local\n");
    }

    #[test]
    fn a_grpc_caller_reads_unavailable() {
        let request = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"))]);
        let response = Refusal::NotInClusterset("é%".to_owned()).response(&request);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
        let message = response.headers()["grpc-message"].to_str().unwrap_or_default();
        assert!(message.starts_with("\"%C3%A9%25\" is no clusterset service"), "{message}");
    }
}
