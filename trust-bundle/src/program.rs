//! The running service: store, state, RPC face, drain.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::Json;
use axum::routing::get;
use federation_api::signing::PublicKey;
use federation_api::trust::v1::trust_server::TrustServer;
use federation_store::EmbeddedStore;
use mesh_runtime::Process;
use mesh_tls::rpc::{self, AcceptLimits};
use mesh_tls::{ClientAuth, Identity, TrustStore, server_config};
use prometheus_client::metrics::gauge::Gauge;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::Config;
use crate::init::FederationFile;
use crate::membership::Membership;
use crate::rpc::{TrustService, Watchers};
use crate::state::{self, TrustState};

/// How long to wait before trying again to renew the service's own certificate.
const RENEW_RETRY: Duration = Duration::from_secs(30);

/// Runs until drained.
///
/// # Errors
/// Whatever keeps the service from starting, naming the file or the address; a store that cannot go on.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let directory = &config.service_directory;
    let file = read_federation_file(&directory.join("federation.json"))?;
    let root_path = directory.join("membership-root.pub");
    let root = std::fs::read_to_string(&root_path).with_context(|| root_path.display().to_string())?;
    let root = PublicKey::from_pem(&root).with_context(|| root_path.display().to_string())?;
    let trust_domain: TrustDomain = file.federation.as_str().parse()?;
    let authority = Arc::new(Authority::open(&directory.join("authority"), &trust_domain)?);
    let store = EmbeddedStore::open(&config.store).await?;

    let first_state = process.readiness().require("the store's state");
    let (published, state) = watch::channel(Arc::new(state::load(&store).await?));
    first_state.ready();

    let (identity, trust) = own_identity(&authority, &trust_domain, config.certificate_lifetime)?;
    let tls = server_config(&identity, &trust, ClientAuth::Optional, &[rpc::ALPN]);
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listen: {}", config.listen))?;
    info!(listen = %listener.local_addr()?, federation = %file.federation, "serving trust.v1");

    let membership = Membership::new(store.clone(), file.federation.clone(), root);
    let lifetime = config.certificate_lifetime;
    let service = TrustService::new(membership, authority.clone(), trust_domain.clone(), lifetime, state.clone());
    observe(&process, state, service.watchers());
    let limits = AcceptLimits { handshakes: config.pending_handshakes, ..AcceptLimits::default() };
    let server =
        rpc::server().add_service(TrustServer::new(service)).serve_with_incoming(rpc::incoming(listener, tls, limits));
    let drain = process.drain();
    tokio::select! {
        served = server => served.context("trust.v1"),
        followed = state::publish(store, published) => followed.context("store"),
        never = renew_own(&authority, &trust_domain, lifetime, &identity) => never,
        () = drain.signaled() => Ok(()),
    }
}

/// Reads `federation.json`.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read_federation_file(path: &std::path::Path) -> anyhow::Result<FederationFile> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

fn own_identity(
    authority: &Authority,
    trust_domain: &TrustDomain,
    lifetime: Duration,
) -> anyhow::Result<(Identity, TrustStore)> {
    let trust = TrustStore::new();
    trust.insert(Bundle {
        trust_domain: trust_domain.clone(),
        x509_authorities: vec![authority.root()],
        sequence: 1,
        refresh_hint: None,
    });
    let identity = Identity::empty();
    replace_own(authority, trust_domain, lifetime, &identity)?;
    Ok((identity, trust))
}

fn replace_own(
    authority: &Authority,
    trust_domain: &TrustDomain,
    lifetime: Duration,
    identity: &Identity,
) -> anyhow::Result<()> {
    let (key, csr) = mesh_tls::new_key_and_csr()?;
    let id = SpiffeId::service(trust_domain, "trust-bundle")?;
    let svid = authority.issue(&csr, &id, lifetime, SystemTime::now())?;
    identity.replace(svid.chain, key)?;
    Ok(())
}

/// Keeps the service's own certificate fresh: a new one at half life.
async fn renew_own(
    authority: &Authority,
    trust_domain: &TrustDomain,
    lifetime: Duration,
    identity: &Identity,
) -> anyhow::Result<()> {
    let mut wait = lifetime / 2;
    loop {
        tokio::time::sleep(wait).await;
        wait = match replace_own(authority, trust_domain, lifetime, identity) {
            Ok(()) => lifetime / 2,
            Err(error) => {
                warn!(%error, "own certificate not renewed, the valid one stays");
                RENEW_RETRY
            }
        };
    }
}

/// Metrics and `/debug/trust`.
fn observe(process: &Process, state: watch::Receiver<Arc<TrustState>>, watchers: Watchers) {
    let (members, epoch) = (Gauge::<i64>::default(), Gauge::<i64>::default());
    process.register(|registry| {
        registry.register("members", "Member clusters", members.clone());
        registry.register("epoch", "The trust state's epoch", epoch.clone());
    });
    let mut changes = state.clone();
    tokio::spawn(async move {
        loop {
            {
                let state = changes.borrow_and_update();
                members.set(i64::try_from(state.members().count()).unwrap_or(i64::MAX));
                epoch.set(i64::try_from(state.epoch()).unwrap_or(i64::MAX));
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
    let debug = move || {
        let state = state.borrow().clone();
        let acknowledged = watchers.list().into_iter().map(|(peer, ack)| {
            serde_json::json!({ "peer": peer, "epoch": ack.epoch, "pendingProxies": ack.pending_proxies })
        });
        let body = serde_json::json!({
            "incarnation": state.incarnation(),
            "epoch": state.epoch(),
            "members": state.members().collect::<Vec<_>>(),
            "bundles": state.trust_domains().collect::<Vec<_>>(),
            "watchers": acknowledged.collect::<Vec<_>>(),
        });
        std::future::ready(Json(body))
    };
    process.add_debug_routes(axum::Router::new().route("/debug/trust", get(debug)));
}
