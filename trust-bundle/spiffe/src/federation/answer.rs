//! Serving bundles: the answer to one request.

use crate::{BundleSet, TrustDomain};

/// What a bundle endpoint answers. It asks no client for a certificate, and never redirects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200, 404 or 405.
    pub status: u16,
    /// Headers, by their lower-case names.
    pub headers: Vec<(&'static str, String)>,
    /// A JWK Set; empty unless the status is 200 and the method GET.
    pub body: String,
}

impl Answer {
    /// The answer to `GET /<trust domain>` (a query is passed over) from the bundles in force.
    pub fn of(held: &BundleSet, method: &str, target: &str) -> Self {
        if !matches!(method, "GET" | "HEAD") {
            return Self { status: 405, headers: vec![("allow", "GET, HEAD".into())], body: String::new() };
        }
        let path = target.split('?').next().unwrap_or_default();
        let name = path.strip_prefix('/').and_then(|name| name.parse::<TrustDomain>().ok());
        let Some(bundle) = name.and_then(|name| held.bundle(&name)) else {
            return Self { status: 404, headers: Vec::new(), body: String::new() };
        };
        let body = bundle.to_jwks();
        let headers = vec![
            ("content-type", "application/json".into()),
            ("content-length", body.len().to_string()),
            // A cache in between would hold a new root back, or an old one up.
            ("cache-control", "no-store".into()),
        ];
        Self { status: 200, headers, body: if method == "GET" { body } else { String::new() } }
    }
}
