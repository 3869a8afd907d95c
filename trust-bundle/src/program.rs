//! The running service: store, state, RPC face, drain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::routing::get;
use axum::{Json, Router};
use federation_api::signing::PublicKey;
use federation_store::Store;
use mesh_runtime::{Process, ReadinessGuard};
use mesh_tls::rpc::{self, AcceptLimits};
use mesh_tls::{ClientAuth, server_config};
use spiffe_identity::{Pace, TrustDomain};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use crate::allowance::Changes;
use crate::audit::AuditLog;
use crate::authority::PlaneAuthority;
use crate::config::Config;
use crate::contact;
use crate::endpoint::{self, Bound};
use crate::init::FederationFile;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::rotation::Driver;
use crate::rpc::{Parts, TrustService};
use crate::state::{self, Loaded, TrustState};
use crate::tokens::Tokens;
use crate::verify::Verifier;
use crate::watchers::{Watcher, Watchers, share};

/// Connections of one identity: a control-plane's replicas, and those that are not yet known to be gone. Watches have a bound of
/// their own ([`MAX_WATCHES_PER_PEER`](crate::watchers::MAX_WATCHES_PER_PEER)).
const CONNECTIONS_PER_PEER: usize = 128;

/// Runs until drained.
///
/// # Errors
/// Whatever keeps the service from starting, naming the file or the address; a store that cannot go on.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let first_state = process.readiness().require("the store's state");
    let mut plane = Plane::read(&config.service_directory)?;
    let store = config.store.clone().open().await?;
    process.register(|registry| store.register_metrics(registry));
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listen: {}", config.listen))?;
    if let Some(endpoint) = &config.bundle_endpoint {
        plane.endpoint = Some(Bound::open(endpoint).await?);
    }
    let limits = AcceptLimits {
        handshakes: config.pending_handshakes,
        connections_per_peer: CONNECTIONS_PER_PEER,
        ..AcceptLimits::default()
    };
    let (certificate_lifetime, pace) = (config.certificate_lifetime, config.pace());
    let settings = Settings { certificate_lifetime, limits, pace, silence: contact::SILENCE };
    Box::pin(serve(plane, settings, store.clone(), listener, process, first_state)).await?;
    store.close().await;
    Ok(())
}

/// What [`crate::init`] wrote for the service, read.
#[derive(Debug)]
pub struct Plane {
    authority: PathBuf,
    trust_domain: TrustDomain,
    verifier: Verifier,
    endpoint: Option<Bound>,
}

/// How the service is to work, apart from its files and addresses.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long the certificates of the federation's plane live.
    pub certificate_lifetime: Duration,
    /// What the listener allows.
    pub limits: AcceptLimits,
    /// How long each phase of the authority's rotation waits.
    pub pace: Pace,
    /// After which silence of the store watchers are sent away; see [`contact`].
    pub silence: Duration,
}

impl Plane {
    /// Reads the folder `service`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("federation.json");
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let file: FederationFile = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let path = directory.join("membership-root.pub");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let root = PublicKey::from_pem(&text).with_context(|| path.display().to_string())?;
        let trust_domain: TrustDomain = file.federation.as_str().parse()?;
        let authority = directory.join("authority");
        Ok(Self { authority, trust_domain, verifier: Verifier::new(file.federation, root), endpoint: None })
    }
}

/// Serves `trust.v1` from `store` on `listener` until drained; `first_state` is let go once watchers can be told the state.
///
/// # Errors
/// A store that cannot be read or cannot go on.
pub async fn serve<S: Store>(
    plane: Plane,
    settings: Settings,
    store: S,
    listener: TcpListener,
    process: Process,
    first_state: ReadinessGuard,
) -> anyhow::Result<()> {
    let Plane { authority, trust_domain, verifier, endpoint } = plane;
    let Settings { certificate_lifetime, limits, pace, silence } = settings;
    let authority = PlaneAuthority::open(&authority, &trust_domain, certificate_lifetime)?;
    let metrics = Metrics::default();
    process.register(|registry| metrics.register(registry));
    let replica = format!("{:016x}", rand::random::<u64>());
    let watchers = Watchers::new(&replica, metrics.watchers.clone());
    let loaded = state::load(&store, &verifier, &authority, &metrics, &watchers).await;
    let Loaded { state, revision } = loaded.context("store")?;
    let (published, state) = watch::channel(Arc::new(state));
    let ((in_touch, touch), (reached, at)) = (watch::channel(true), watch::channel(revision));

    let tls = server_config(authority.identity(), authority.trust(), ClientAuth::Optional, &[rpc::ALPN]);
    let bundles = Box::pin(serve_bundles(endpoint, trust_domain.clone(), &authority, state.clone(), &process));
    process.add_debug_routes(debug_routes(state.clone(), watchers.clone()));
    let audit = AuditLog::new(store.clone());
    let driver = Driver {
        store: store.clone(),
        authority: authority.clone(),
        pace,
        watchers: watchers.clone(),
        state: state.clone(),
        audit: audit.clone(),
        replica,
    };
    let service = TrustService::new(Parts {
        membership: Membership::new(store.clone(), verifier.clone(), state.clone(), audit.clone()),
        tokens: Tokens::new(store.clone(), verifier.clone(), audit.clone()),
        store: store.clone(),
        audit,
        federation: trust_domain.clone(),
        authority: authority.clone(),
        certificate_lifetime,
        changes: Changes::new(certificate_lifetime),
        state,
        in_touch: touch,
        watchers: watchers.clone(),
        metrics: metrics.clone(),
        drain: process.drain(),
    });
    info!(listen = %listener.local_addr()?, federation = %trust_domain, "serving trust.v1");
    let drain = process.drain();
    let server = Box::pin(
        rpc::server()
            .add_service(service.for_members())
            .add_service(service.for_operators())
            .serve_with_incoming_shutdown(rpc::incoming(listener, tls, limits), async move { drain.signaled().await }),
    );
    first_state.ready();
    let followed = state::publish(store.clone(), reached, published, &verifier, &authority, &metrics, &watchers);
    let outcome = tokio::select! {
        served = server => served.context("trust.v1"),
        followed = Box::pin(followed) => followed.context("store"),
        served = bundles => served.context("bundleEndpoint"),
        () = authority.keep_renewed() => Ok(()),
        () = Box::pin(driver.run()) => Ok(()),
        () = Box::pin(contact::keep(store.clone(), at, in_touch, silence)) => Ok(()),
        () = Box::pin(share(watchers.clone(), store.clone())) => Ok(()),
    };
    watchers.withdraw(&store).await;
    outcome
}

/// The bundle endpoint, if there is to be one; ends only with an error.
async fn serve_bundles(
    endpoint: Option<Bound>,
    federation: TrustDomain,
    authority: &PlaneAuthority,
    state: watch::Receiver<Arc<TrustState>>,
    process: &Process,
) -> anyhow::Result<()> {
    let Some(bound) = endpoint else { return std::future::pending().await };
    let metrics = endpoint::Metrics::default();
    process.register(|registry| metrics.register(registry));
    endpoint::run(bound, state, authority.trust().clone(), federation, authority.identity().clone(), metrics).await
}

/// `/debug/trust`: what is known, and how far each watcher has come.
fn debug_routes(state: watch::Receiver<Arc<TrustState>>, watchers: Watchers) -> Router {
    let debug = move || {
        let state = state.borrow().clone();
        let deny_list = state.deny_list();
        let body = serde_json::json!({
            "incarnation": state.incarnation(),
            "epoch": state.epoch(),
            "members": state.members().map(ToString::to_string).collect::<Vec<_>>(),
            "bundles": state.trust_domains().map(ToString::to_string).collect::<Vec<_>>(),
            "denyListEpoch": deny_list.map(|list| list.epoch),
            "quarantined": deny_list.iter().flat_map(|list| &list.clusters).map(ToString::to_string).collect::<Vec<_>>(),
            "watchers": watchers.here().iter().map(describe).collect::<Vec<_>>(),
        });
        std::future::ready(Json(body))
    };
    Router::new().route("/debug/trust", get(debug))
}

fn describe(watcher: &Watcher) -> serde_json::Value {
    serde_json::json!({
        "peer": watcher.peer.to_string(),
        "told": watcher.told,
        "epoch": watcher.acknowledged.epoch,
        "pendingProxies": watcher.acknowledged.pending_proxies,
        "pending": watcher.acknowledged.pending_count,
        "connected": watcher.acknowledged.connected_count,
    })
}
