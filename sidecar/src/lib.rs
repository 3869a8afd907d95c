//! Originates and terminates mTLS for one workload; balances, fails over, retries.
//!
//! ```text
//!                    ┌──────────────────────── sidecar ────────────────────────┐
//!  application ─────►│ outbound 15001      routing            session          │
//!  captured, or HTTP,│ (or the proxy) ───► host ─► route ─► path ─► TLS ───────┼──► sidecar, or gateway of another cluster
//!  CONNECT, SOCKS5   │                       ▲      balance                    │
//!  its DNS ─────────►│ names 15053 ──────────┤                                 │
//!                    │   discovery ──► state ┤                                 │
//!                    │                       ▼                                 │
//!  application ◄─────┤ application ◄─ inbound 15008 ◄── TLS ◄──────────────────┼─── sidecars of callers
//!                    │                strict 15006: 403 or a reset ◄───────────┼─── plaintext to strict ports, captured
//!                    └─────────────────────────────────────────────────────────┘
//! ```
//!
//! Beside it, `workload_api` hands the workload's SVID and everybody's roots to other programs of the workload.
//!
//! # What always holds
//!
//! 1. Both ends of a session are authenticated by name: the server must be one of the identities that the chosen cluster's
//!    own export names, the client is handed to the application in `x-forwarded-client-cert`, which nobody else can set.
//! 2. The server speaks first: no byte of a request is sent before its verdict, so a refusal can go elsewhere.
//! 3. A request that no application has seen is tried elsewhere whatever its method; one that may have been acted upon,
//!    only when repeating it is harmless, and within a budget.
//! 4. With every control plane dead, sessions, new ones included, go on from the last state, also after a restart.
//!    With `maxTrustAge` set, other trust domains are shut out once the trust state was not confirmed for so long (its own
//!    cluster never is), and let in again by the next confirmation.
//! 5. The application never notices: what is captured is told apart by its original destination, a server that speaks first is
//!    heard on ports that declare nothing, and what is not of the clusterset is never captured ([`capture`]), but for services
//!    of the own cluster whose namespace has opted in.
//! 6. Overload is shed early: requests, connections, queries and sessions are bounded, and one too many is told so.
//! 7. No lock is held across an await; every task belongs to the sidecar and ends with it.
//! 8. A service of the own cluster (`….svc.cluster.local`) is called within the cluster and by the cluster's own identities only:
//!    no gateway, no other cluster, no policy changes that; failover policies are for imports, so its balancing has its
//!    defaults. An endpoint without a sidecar is called as it is, in plaintext, and once connected has no sign of life but
//!    TCP's ([`relay::SocketOptions`]); one of the clusterset never is.
//! 9. A caller is let in by an export, if it is of the federation, or by an `AccessPolicy` where one names the port; by its
//!    certificate, never by what it says of itself. Open raw connections are judged again when policies change; plaintext is
//!    refused where a policy is strict, and left as it is elsewhere.

pub mod capture;
pub mod config;
pub mod waiting;

mod admin;
mod failure;
mod hang_up;
mod headers;
mod identity;
mod inbound;
mod metrics;
mod names;
mod outbound;
mod routing;
mod service;
mod session;
mod tasks;
mod telemetry;
mod trust_age;
mod wiring;
mod workload_api;
mod xfcc;

pub use config::Config;
pub use wiring::Sidecar;

use mesh_runtime::Process;

/// The program: runs a sidecar until the process drains.
///
/// # Errors
/// When a listener cannot be bound or the state directory cannot be used.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    Sidecar::start(config, process).await?.run().await;
    Ok(())
}
