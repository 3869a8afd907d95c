//! One replica, put together from what the program, or a test, gives it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use federation_store::Store;
use mesh_runtime::Process;
use mesh_tls::rpc::{self, AcceptLimits};
use mesh_tls::{ClientAuth, Identity, TrustStore, server_config};
use spiffe_identity::TrustDomain;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cache::Cache;
use crate::collect;
use crate::debug::View;
use crate::heap;
use crate::liveness::Liveness;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::presence::presence;
use crate::protocol::MISSED_HEARTBEATS;
use crate::publish::Publisher;
use crate::quota::Quota;
use crate::registry::Registry;
use crate::rpc::FederationService;
use crate::session::Shared;
use crate::wire::FederationServer;

/// Connections of one cluster, as a control-plane's replicas need them and those that are not yet known to be gone; sessions
/// have a bound of their own.
const CONNECTIONS_PER_PEER: usize = 64;

/// What a replica is made of.
pub struct Parts<S> {
    /// Its name, for logs and status.
    pub name: String,
    /// The store.
    pub store: S,
    /// Whose records are believed.
    pub members: watch::Receiver<Arc<Members>>,
    /// Its certificate.
    pub identity: Identity,
    /// Whom it trusts.
    pub trust: TrustStore,
    /// The federation's own trust domain.
    pub trust_domain: TrustDomain,
    /// Where it serves `federation.v1`.
    pub listener: TcpListener,
    /// How often heartbeats go both ways.
    pub heartbeat: Duration,
    /// What one cluster may use.
    pub quota: Quota,
    /// Connections that are not yet authenticated, at most.
    pub handshakes: usize,
    /// Of these, from one address.
    pub handshakes_per_source: usize,
}

/// What can be looked at while it runs.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its copy of the store.
    pub cache: Cache,
    /// The sessions that are open.
    pub registry: Registry,
}

impl Replica {
    /// Reads the store; the future then serves until the process drains.
    ///
    /// # Errors
    /// The store's.
    pub async fn start<S: Store>(
        parts: Parts<S>,
        process: &Process,
    ) -> anyhow::Result<(Self, impl Future<Output = anyhow::Result<()>> + Send + use<S>)> {
        let store = parts.store;
        let cache = Cache::load(&store, Liveness::new()).await.context("store")?;
        let (registry, metrics) = (Registry::default(), Metrics::default());
        process.register(|registered| metrics.register(registered));
        let (presence, keeper) = presence(store.clone(), &parts.name, parts.heartbeat * MISSED_HEARTBEATS);
        let view = View {
            cache: cache.clone(),
            registry: registry.clone(),
            members: parts.members.clone(),
            replica: parts.name.clone(),
            heartbeat: parts.heartbeat,
        };
        process.add_debug_routes(view.routes());
        let shared = Shared {
            cache: cache.clone(),
            publisher: Publisher::new(store.clone(), cache.clone(), parts.quota, metrics.clone()),
            presence,
            members: parts.members.clone(),
            registry: registry.clone(),
            metrics: metrics.clone(),
            heartbeat: parts.heartbeat,
            drain: process.drain(),
        };
        let service = FederationService::new(shared, parts.trust_domain, parts.name);
        let service = FederationServer::new(service);
        let tls = server_config(&parts.identity, &parts.trust, ClientAuth::Required, &[rpc::ALPN]);
        let limits = AcceptLimits {
            handshakes: parts.handshakes,
            handshakes_per_source: parts.handshakes_per_source,
            connections_per_peer: CONNECTIONS_PER_PEER,
            ..AcceptLimits::default()
        };
        let (incoming, drain) = (rpc::incoming(parts.listener, tls, limits), process.drain());
        let server = rpc::server()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move { drain.signaled().await });
        let replica = Self { cache: cache.clone(), registry };
        let (members, quota) = (parts.members, parts.quota);
        let running = async move {
            let background = async {
                tokio::join!(
                    keeper.run(),
                    collect::run(store.clone(), cache.clone(), members, quota, metrics.clone()),
                    view.observe(metrics.clone()),
                    heap::follow(metrics.clone()),
                );
            };
            tokio::select! {
                served = server => served.context("federation.v1"),
                followed = cache.follow(store.clone()) => followed.context("store"),
                () = background => Ok(()),
            }
        };
        Ok((replica, running))
    }
}
