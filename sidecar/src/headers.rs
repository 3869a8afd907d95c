//! What a proxy does to header fields: hop-by-hop fields end here (RFC 9110, section 7.6.1), and so does every field by
//! which a peer could pretend to be a sidecar. Fields are counted too: a mesh session is shared, and ends when one message
//! on it has more fields than its peer takes.

use http::header::{
    CONNECTION, EXPECT, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};

/// Who called, in Envoy's format; see [`crate::xfcc`].
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// On a response that a sidecar made itself: why, as one word.
pub(crate) const ERROR: HeaderName = HeaderName::from_static("isthmus-error");
/// From sidecar to sidecar: the application has seen nothing of the request, which may go elsewhere whatever its method.
pub(crate) const UNPROCESSED: HeaderName = HeaderName::from_static("isthmus-unprocessed");
/// From sidecar to sidecar: a request that the server's sidecar answers itself, after a look at the application's port.
pub(crate) const PROBE: HeaderName = HeaderName::from_static("isthmus-probe");
/// From sidecar to sidecar, on a port whose protocol nobody declares: the client speaks HTTP/2, so the application is asked
/// in it too.
pub(crate) const HTTP2: HeaderName = HeaderName::from_static("isthmus-http2");
/// From the local application: `1` asks for [`PATH`].
pub(crate) const TRACE: HeaderName = HeaderName::from_static("isthmus-trace");
/// To the local application that asked by [`TRACE`]: the path that the request took.
pub(crate) const PATH: HeaderName = HeaderName::from_static("isthmus-path");

/// `retry-after` of a request that was shed, in seconds.
pub(crate) const RETRY_AFTER_SECONDS: &str = "1";

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields of one message that a sidecar sends into the mesh, in bytes as HTTP/2 counts them (RFC 9113, section 6.5.2). Well
/// under [`MAX_LIST`], which a peer takes: pseudo-header fields and a trace context come on top.
pub(crate) const LIST_LIMIT: usize = 48 * 1024;
/// Fields of one message that a sidecar takes from the mesh, counted likewise.
pub(crate) const MAX_LIST: u32 = 64 * 1024;
/// Fields of one message that a sidecar reads from an application, so that it can say itself that they are too many.
pub(crate) const READ_LIMIT: usize = 512 * 1024;

/// What HTTP/2 adds for each field.
const FIELD_OVERHEAD: usize = 32;
/// Bytes that HTTP/2's Huffman code makes longer than twice as long count as this many: 30 bits at most (RFC 7541, appendix
/// B). A peer bounds the coded bytes too.
const RARE_BYTE: usize = 4;

/// Fields that speak of one connection only. `te` is judged apart; `trailer` stays, it describes the message.
const HOP_BY_HOP: [HeaderName; 7] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TRANSFER_ENCODING, UPGRADE];

/// Makes a request of the local application fit for the mesh.
pub(crate) fn clean_outbound_request(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    keep_te_trailers_only(headers);
    // Answered on this hop already, when the body was first read.
    headers.remove(EXPECT);
    remove_sidecar_fields(headers);
    headers.remove(FORWARDED_CLIENT_CERT);
}

/// Makes a request from the mesh fit for the application. The caller then adds the caller's certificate.
pub(crate) fn clean_inbound_request(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    keep_te_trailers_only(headers);
    remove_sidecar_fields(headers);
    headers.remove(FORWARDED_CLIENT_CERT);
}

/// Makes a response of the application fit for the mesh, or one of the mesh fit for the local application.
pub(crate) fn clean_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove_sidecar_fields(headers);
}

/// Fields that only sidecars may set, on a message that did not come from one.
fn remove_sidecar_fields(headers: &mut HeaderMap) {
    headers.remove(ERROR);
    headers.remove(UNPROCESSED);
    headers.remove(PROBE);
    headers.remove(HTTP2);
    headers.remove(PATH);
}

/// Whether fields, and `more` that go with them, are too large for one message of the mesh.
pub(crate) fn too_large(fields: &HeaderMap, more: &[&str]) -> bool {
    let texts = || {
        let fields = fields.iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
        fields.chain(more.iter().map(|text| text.as_bytes()))
    };
    let overhead = (fields.len() + more.len()) * FIELD_OVERHEAD;
    let bytes: usize = texts().map(<[u8]>::len).sum();
    if overhead + bytes * RARE_BYTE <= LIST_LIMIT {
        return false;
    }
    let rare = texts().flatten().filter(|byte| is_rare(**byte)).count();
    overhead + bytes + rare * (RARE_BYTE - 1) > LIST_LIMIT
}

const fn is_rare(byte: u8) -> bool {
    byte == b'\\' || !(byte.is_ascii_graphic() || byte == b' ')
}

/// Removes hop-by-hop fields, those that `connection` names among them.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(CONNECTION).cloned() {
        let mut more: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().skip(1).cloned().collect();
        more.push(named);
        for value in more {
            remove_named(headers, &value);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes the fields that one `connection` value lists.
fn remove_named(headers: &mut HeaderMap, value: &HeaderValue) {
    let Ok(text) = value.to_str() else { return };
    for name in text.split(',').map(str::trim) {
        // `te` is judged by its own rule, `close` and `keep-alive` are options and not fields.
        if !name.eq_ignore_ascii_case("te")
            && let Ok(name) = HeaderName::try_from(name)
        {
            headers.remove(name);
        }
    }
}

/// HTTP/2 allows `te: trailers` and nothing else (RFC 9113, section 8.2.2), and gRPC needs it.
fn keep_te_trailers_only(headers: &mut HeaderMap) {
    let Some(value) = headers.get(TE) else { return };
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|coding| coding.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers")));
    if trailers {
        if value != "trailers" || headers.get_all(TE).iter().count() > 1 {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    } else {
        headers.remove(TE);
    }
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn hop_by_hop_fields_and_those_that_connection_names_end_here() {
        let mut fields = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "te, x-second"),
            ("x-private", "1"),
            ("x-second", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers, deflate;q=0.5"),
            ("trailer", "grpc-status"),
            ("x-kept", "1"),
        ]);
        clean_outbound_request(&mut fields);
        assert_eq!(fields, headers(&[("te", "trailers"), ("trailer", "grpc-status"), ("x-kept", "1")]));
    }

    #[test]
    fn fields_are_counted_as_http2_counts_them() {
        let of = |size: usize, byte: u8| {
            HeaderMap::from_iter([(
                COOKIE,
                HeaderValue::from_bytes(&vec![byte; size]).unwrap_or(HeaderValue::from_static("")),
            )])
        };
        let room = LIST_LIMIT - FIELD_OVERHEAD - "cookie".len();
        assert!(!too_large(&of(room, b'x'), &[]));
        assert!(too_large(&of(room + 1, b'x'), &[]));
        assert!(too_large(&of(room, b'x'), &["/"]));
        for rare in [b'\\', 0xff, b'\t'] {
            assert!(!too_large(&of(room / RARE_BYTE, rare), &[]));
            assert!(too_large(&of(room / RARE_BYTE + 1, rare), &[]));
        }
        let mut many = HeaderMap::new();
        (0..LIST_LIMIT / (FIELD_OVERHEAD + 7)).for_each(|_| {
            many.append(COOKIE, HeaderValue::from_static("x"));
        });
        assert!(!too_large(&many, &[]));
        many.append(COOKIE, HeaderValue::from_static("x"));
        assert!(too_large(&many, &[]));
    }

    #[test]
    fn te_without_trailers_is_removed() {
        let mut fields = headers(&[("te", "deflate")]);
        clean_outbound_request(&mut fields);
        assert!(fields.is_empty());
    }

    #[test]
    fn nobody_pretends_to_be_a_sidecar() {
        let forged = [
            ("x-forwarded-client-cert", "URI=spiffe://a/b"),
            ("isthmus-error", "x"),
            ("isthmus-unprocessed", "true"),
            ("isthmus-probe", "1"),
            ("isthmus-path", "x"),
        ];
        for clean in [clean_outbound_request, clean_inbound_request] {
            let mut fields = headers(&forged);
            clean(&mut fields);
            assert!(fields.is_empty(), "{fields:?}");
        }
        let mut fields = headers(&forged[1..]);
        clean_response(&mut fields);
        assert!(fields.is_empty(), "{fields:?}");
    }
}
