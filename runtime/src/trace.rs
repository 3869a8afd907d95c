//! W3C Trace Context (`traceparent`, `tracestate`) over HTTP headers.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Reads the caller's trace context. Absent or malformed headers give a context without a span, which starts a new
/// trace.
pub fn extract(headers: &HeaderMap) -> Context {
    // An empty context as the base: what happens to be current on this thread is not the peer's.
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

/// Writes the context's span into the headers, replacing what was there. A context without a span writes nothing.
pub fn inject(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut HeadersMut(headers));
}

/// The trace context of a `tracing` span, to be handed to [`inject`].
pub fn context_of(span: &tracing::Span) -> Context {
    span.context()
}

/// Makes `span` a child of the caller's span in `headers`. To be called before the span is entered; without trace
/// export, or when the span has started already, it changes nothing.
pub fn continue_from(span: &tracing::Span, headers: &HeaderMap) {
    // Both errors mean that there is nothing to attach to, which leaves a local trace: not worth failing a request.
    let _ = span.set_parent(extract(headers));
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use opentelemetry::trace::TraceContextExt;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_a_peer_sends_is_passed_on_well_formed_or_not_at_all(
            parent in prop_oneof!["[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", "[ -~]{0,80}"],
            state in "[ -~]{0,80}",
        ) {
            let mut incoming = headers(&parent);
            incoming.insert("tracestate", HeaderValue::from_str(&state).unwrap());
            let context = extract(&incoming);
            let mut outgoing = HeaderMap::new();
            inject(&context, &mut outgoing);
            let valid = context.span().span_context().is_valid();
            prop_assert_eq!(outgoing.contains_key("traceparent"), valid);
            if valid {
                // The same ids, in the version that we speak: a caller of a later one is understood as far as that.
                let passed_on = outgoing["traceparent"].to_str().unwrap();
                prop_assert_eq!(&passed_on[..3], "00-");
                prop_assert_eq!(&passed_on[3..52], &parent[3..52]);
            }
        }
    }

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(traceparent: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static("traceparent"), traceparent.parse().unwrap())])
    }

    #[test]
    fn a_context_is_carried_from_headers_to_headers() {
        let mut incoming = headers(TRACEPARENT);
        incoming.insert("tracestate", HeaderValue::from_static("vendor=1"));
        let context = extract(&incoming);
        let span = context.span().span_context().clone();
        assert!(span.is_remote() && span.is_sampled());
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        let mut outgoing = headers("stale");
        inject(&context, &mut outgoing);
        assert_eq!(outgoing["traceparent"], TRACEPARENT);
        assert_eq!(outgoing["tracestate"], "vendor=1");
    }

    #[test]
    fn malformed_headers_start_a_new_trace() {
        for bad in ["", "00", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "garbage-é"] {
            let context = extract(&HeaderMap::from_iter([(
                HeaderName::from_static("traceparent"),
                HeaderValue::from_bytes(bad.as_bytes()).unwrap(),
            )]));
            assert!(!context.span().span_context().is_valid(), "{bad}");
            let mut outgoing = HeaderMap::new();
            inject(&context, &mut outgoing);
            assert!(!outgoing.contains_key("traceparent"), "{bad}");
        }
    }
}
