//! The shop that runs on the lab: one workload program with a role, in the shape of the public Online Boutique sample.
//!
//! ```text
//!  browser ──HTTP──► frontend 8080 ──gRPC──► productcatalogservice 3550
//!                        │ ────────gRPC──► cartservice 7070 ──RESP over TCP──► redis-cart 6379
//!                        └ ────────gRPC──► checkoutservice 5050 ──gRPC──► cartservice, productcatalogservice
//! ```
//!
//! Each call to another service goes through the workload's sidecar as an explicit proxy (`--proxy`): HTTP CONNECT to
//! the clusterset name. The program knows nothing else of the mesh.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;

pub mod cart;
pub mod catalog;
pub mod checkout;
pub mod frontend;
pub mod proxy;
pub mod redis;

#[expect(missing_docs, clippy::too_many_lines, reason = "generated from proto/shop.proto")]
#[rustfmt::skip]
#[path = "generated/shop.v1.rs"]
pub mod v1;

/// Which service the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// HTML pages.
    Frontend,
    /// Products.
    Productcatalogservice,
    /// Carts, kept in redis-cart.
    Cartservice,
    /// Orders.
    Checkoutservice,
    /// A store that speaks enough of Redis' protocol.
    RedisCart,
}

/// How a workload runs.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its role.
    pub role: Role,
    /// Where it listens.
    pub listen: SocketAddr,
    /// `<cluster>/<pod>`, told in answers.
    pub instance: String,
    /// Its sidecar's explicit proxy; `None` calls directly.
    pub proxy: Option<SocketAddr>,
    /// The namespace of the other services.
    pub namespace: String,
}

/// Runs a workload until the process ends.
///
/// # Errors
/// The address cannot be bound, or serving fails.
pub async fn run(workload: Workload) -> anyhow::Result<()> {
    let listener = TcpListener::bind(workload.listen).await.with_context(|| format!("listen: {}", workload.listen))?;
    let others = proxy::Others { proxy: workload.proxy, namespace: workload.namespace.clone() };
    let instance = workload.instance.clone();
    match workload.role {
        Role::Frontend => frontend::serve(listener, instance, &others).await,
        Role::Productcatalogservice => catalog::serve(listener, instance).await,
        Role::Cartservice => cart::serve(listener, instance, others).await,
        Role::Checkoutservice => checkout::serve(listener, instance, &others).await,
        Role::RedisCart => redis::serve(listener).await,
    }
}

/// The caller's SPIFFE ID as the sidecar hands it over: the `URI=` of `x-forwarded-client-cert`.
pub(crate) fn caller(headers: &http::HeaderMap) -> String {
    let header = headers.get("x-forwarded-client-cert").and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split([';', ',']).find_map(|part| part.strip_prefix("URI=")).unwrap_or_default().to_owned()
}

/// Who answered a gRPC call.
pub(crate) fn served<T>(instance: &str, request: &tonic::Request<T>) -> v1::Served {
    v1::Served { instance: instance.to_owned(), caller: caller(&request.metadata().clone().into_headers()) }
}
