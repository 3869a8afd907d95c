//! The running service: store, cache, members, RPC face, drain.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::Json;
use axum::routing::get;
use federation::FederationDomain;
use federation_api::client::trust::renew;
use federation_api::federation::v1::federation_server::FederationServer;
use federation_api::signing::PublicKey;
use mesh_runtime::{Process, write_atomically};
use mesh_tls::rpc::{self, AcceptLimits, ChannelOptions};
use mesh_tls::{ClientAuth, ExpectedPeer, Identity, TrustStore, client_config, pem, server_config};
use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::cache::Cache;
use crate::config::Config;
use crate::liveness::Liveness;
use crate::members::Members;
use crate::publish::Publisher;
use crate::rpc::FederationService;
use crate::session::Shared;
use crate::trust::TrustFollower;

/// How long to wait before trying again to renew the service's certificate.
const RENEW_RETRY: Duration = Duration::from_secs(30);
/// How often the gauges are brought up to date.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// The file `federation.json`, as `trust-bundle init` writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FederationFile {
    federation: FederationDomain,
    trust_bundle_addresses: Vec<String>,
    #[serde(rename = "federatorAddresses")]
    _federator_addresses: Vec<String>,
}

/// What the service directory holds.
struct Plane {
    file: FederationFile,
    root: PublicKey,
    trust_domain: TrustDomain,
    identity: Identity,
    trust: TrustStore,
}

/// Runs until drained.
///
/// # Errors
/// Whatever keeps the service from starting, naming the file or the address; a store that cannot go on.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let first_state = process.readiness().require("the store's records");
    let plane = Plane::read(&config.service_directory)?;
    let store = config.store.clone().open().await?;
    process.register(|registry| store.register_metrics(registry));
    let cache = Cache::load(&store).await?;
    let liveness = Liveness::new();
    let nobody = Members::new(plane.root, plane.file.federation.clone());
    let (follower, members) = TrustFollower::start(&config.state_directory, nobody);
    let trust_bundle = plane.trust_bundle()?;

    let publisher = Publisher::new(store.clone(), cache.clone(), config.quota);
    let shared = Shared {
        cache: cache.clone(),
        publisher,
        liveness: liveness.clone(),
        members: members.clone(),
        heartbeat: config.heartbeat_interval,
        drain: process.drain(),
    };
    let sessions = Gauge::default();
    let service = FederationService::new(shared, plane.trust_domain.clone(), config.replica.clone(), sessions.clone());
    let tls = server_config(&plane.identity, &plane.trust, ClientAuth::Required, &[rpc::ALPN]);
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listen: {}", config.listen))?;
    info!(listen = %listener.local_addr()?, federation = %plane.file.federation, "serving federation.v1");
    let limits = AcceptLimits { handshakes: config.pending_handshakes, ..AcceptLimits::default() };
    let drain = process.drain();
    let server = rpc::server()
        .add_service(FederationServer::new(service))
        .serve_with_incoming_shutdown(rpc::incoming(listener, tls, limits), async move { drain.signaled().await });
    let observed = observe(&process, &cache, &liveness, members, sessions);
    first_state.ready();
    let background = async {
        tokio::join!(
            follower.follow(trust_bundle.clone()),
            keep_renewed(&plane.identity, &config, trust_bundle),
            observed
        );
    };
    tokio::select! {
        served = server => served.context("federation.v1"),
        followed = cache.follow(store.clone()) => followed.context("store"),
        followed = liveness.follow(store) => followed.context("store"),
        () = background => Ok(()),
    }
}

impl Plane {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let file: FederationFile = serde_json::from_slice(&read("federation.json")?).context("federation.json")?;
        let root = PublicKey::from_pem(&String::from_utf8_lossy(&read("membership-root.pub")?));
        let root = root.context("membership-root.pub")?;
        let trust_domain: TrustDomain = file.federation.as_str().parse()?;
        let roots = pem::certificates_from_pem(&read("federation-root.crt")?).context("federation-root.crt")?;
        let trust = TrustStore::new();
        trust.insert(Bundle {
            trust_domain: trust_domain.clone(),
            x509_authorities: roots,
            sequence: 1,
            refresh_hint: None,
        });
        let identity = Identity::from_pem(&read("service.crt")?, &read("service.key")?).context("service.crt")?;
        Ok(Self { file, root, trust_domain, identity, trust })
    }

    fn trust_bundle(&self) -> anyhow::Result<Channel> {
        let expected = [SpiffeId::service(&self.trust_domain, "trust-bundle")?];
        let expected = ExpectedPeer::AnyOf(expected.into());
        let config = client_config(Some(&self.identity), &self.trust, expected, &[rpc::ALPN]);
        Ok(rpc::channel(&self.file.trust_bundle_addresses, config, ChannelOptions::default()))
    }
}

/// Renews the service's certificate at half of its life, and writes the new one down.
async fn keep_renewed(identity: &Identity, config: &Config, trust_bundle: Channel) {
    loop {
        let validity = identity.validity();
        let wait = validity.map_or(RENEW_RETRY, |validity| {
            let half =
                validity.not_before + validity.not_after.duration_since(validity.not_before).unwrap_or_default() / 2;
            half.duration_since(SystemTime::now()).unwrap_or_default()
        });
        tokio::time::sleep(wait).await;
        if let Err(error) = renew_once(identity, &config.service_directory, trust_bundle.clone()).await {
            warn!(error = format!("{error:#}"), "own certificate not renewed, the valid one stays");
            tokio::time::sleep(RENEW_RETRY).await;
        }
    }
}

async fn renew_once(identity: &Identity, directory: &Path, trust_bundle: Channel) -> anyhow::Result<()> {
    let (key, csr) = mesh_tls::new_key_and_csr()?;
    let answer = renew(trust_bundle, csr).await?;
    let chain: Vec<_> = answer.certificate_chain.into_iter().map(Into::into).collect();
    let (key_text, chain_text) = (pem::private_key_to_pem(&key), pem::certificates_to_pem(&chain));
    identity.replace(chain, key)?;
    write_atomically(&directory.join("service.key"), key_text.as_bytes(), 0o600)?;
    write_atomically(&directory.join("service.crt"), chain_text.as_bytes(), 0o644)?;
    info!("own certificate renewed");
    Ok(())
}

/// Metrics and `/debug/federation`; the returned future keeps the gauges true.
fn observe(
    process: &Process,
    cache: &Cache,
    liveness: &Liveness,
    members: tokio::sync::watch::Receiver<Arc<Members>>,
    sessions: Gauge<i64>,
) -> impl Future<Output = ()> + use<> {
    let [records, revision, connected, known] = [(); 4].map(|()| Gauge::<i64>::default());
    process.register(|registry| {
        registry.register("sessions", "Open sessions", sessions);
        registry.register("records", "Records kept, withdrawn ones included", records.clone());
        registry.register("revision", "The store's revision as this replica has seen it", revision.clone());
        registry.register("clusters_connected", "Clusters whose lease is alive", connected.clone());
        registry.register("members", "Members that are believed", known.clone());
    });
    let (debug_cache, debug_liveness, debug_members) = (cache.clone(), liveness.clone(), members.clone());
    let debug = move || {
        let clusters = debug_liveness.list().into_iter().map(|state| {
            serde_json::json!({
                "cluster": state.cluster, "connected": state.connected, "sinceMs": state.since_ms,
                "appliedRevision": state.applied_revision,
            })
        });
        let members: Vec<_> = debug_members.borrow().clusters().map(ToString::to_string).collect();
        std::future::ready(Json(serde_json::json!({
            "incarnation": debug_cache.incarnation(),
            "revision": debug_cache.revision(),
            "records": debug_cache.len(),
            "members": members,
            "clusters": clusters.collect::<Vec<_>>(),
        })))
    };
    process.add_debug_routes(axum::Router::new().route("/debug/federation", get(debug)));
    let (cache, liveness) = (cache.clone(), liveness.watch());
    async move {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        loop {
            records.set(count(cache.len()));
            revision.set(i64::try_from(cache.revision()).unwrap_or(i64::MAX));
            connected.set(count(liveness.borrow().values().filter(|state| state.connected).count()));
            known.set(count(members.borrow().clusters().count()));
            tokio::time::sleep(OBSERVE_EVERY).await;
        }
    }
}
