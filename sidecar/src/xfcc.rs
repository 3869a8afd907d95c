//! The caller's identity for the application: `x-forwarded-client-cert` in Envoy's format
//! (<https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert>).
//!
//! `By` is the server's SPIFFE ID, `Hash` the SHA-256 of the caller's certificate in hexadecimal, `URI` the caller's
//! SPIFFE ID. A SPIFFE ID has no character that would need quoting.

use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderValue;
use spiffe_identity::SpiffeId;

/// The field's value for one connection: it is the same for all its requests.
pub(crate) fn forwarded_client_cert(by: &SpiffeId, certificate: &[u8], caller: &SpiffeId) -> Option<HeaderValue> {
    let mut value = format!("By={by};Hash=");
    for byte in digest(&SHA256, certificate).as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(value, "{byte:02x}");
    }
    let _ = write!(value, ";URI={caller}");
    HeaderValue::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_value_is_as_envoy_writes_it() {
        let by: SpiffeId = "spiffe://west.mesh.example/ns/shop/sa/cart".parse().unwrap();
        let caller: SpiffeId = "spiffe://east.mesh.example/ns/shop/sa/frontend".parse().unwrap();
        assert_eq!(
            forwarded_client_cert(&by, b"abc", &caller).unwrap(),
            "By=spiffe://west.mesh.example/ns/shop/sa/cart;\
             Hash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad;\
             URI=spiffe://east.mesh.example/ns/shop/sa/frontend"
        );
    }
}
