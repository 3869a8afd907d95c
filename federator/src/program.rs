//! The running service: store, cache, members, RPC face, drain.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use federation::FederationDomain;
use federation_api::client::trust::renew;
use federation_api::signing::PublicKey;
use mesh_runtime::Process;
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, client_config};
use rand::RngExt as _;
use serde::Deserialize;
use spiffe_identity::{SpiffeId, TrustDomain};
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::config::Config;
use crate::credentials::Credentials;
use crate::members::Members;
use crate::replica::{Parts, Replica};
use crate::trust::TrustFollower;

/// When to renew the service's certificate, as parts of its life.
const RENEW_AFTER: std::ops::Range<f64> = 0.45..0.55;
/// The least time between two renewals, whatever the clocks say.
const LEAST_RENEWAL: Duration = Duration::from_secs(1);
/// A renewal that failed is tried again after a tenth of the life that is left, and after this at the latest.
const RENEW_RETRY: Duration = Duration::from_secs(30);

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
    credentials: Credentials,
}

/// Runs until drained.
///
/// # Errors
/// Whatever keeps the service from starting, naming the file or the address; a store that cannot go on.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let first_state = process.readiness().require("the store's records");
    let plane = Plane::read(&config)?;
    let store = config.store.clone().open().await?;
    process.register(|registry| store.register_metrics(registry));
    let nobody = Members::new(plane.root, plane.file.federation.clone());
    let (follower, members) = TrustFollower::start(&config.state_directory, nobody);
    let trust_bundle = plane.trust_bundle()?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listen: {}", config.listen))?;
    info!(listen = %listener.local_addr()?, federation = %plane.file.federation, "serving federation.v1");
    let parts = Parts {
        name: config.replica.clone(),
        store,
        members,
        identity: plane.credentials.identity().clone(),
        trust: plane.credentials.trust().clone(),
        trust_domain: plane.trust_domain.clone(),
        listener,
        heartbeat: config.heartbeat_interval,
        quota: config.quota,
        handshakes: config.pending_handshakes,
        handshakes_per_source: config.pending_handshakes_per_source,
    };
    let (_, running) = Replica::start(parts, &process).await?;
    first_state.ready();
    let background = async {
        tokio::join!(
            follower.follow(trust_bundle.clone(), config.replica.clone(), &plane.credentials),
            keep_renewed(&plane.credentials, trust_bundle)
        );
    };
    tokio::select! {
        ended = Box::pin(running) => ended,
        () = background => Ok(()),
    }
}

impl Plane {
    fn read(config: &Config) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = config.service_directory.join(name);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let file: FederationFile = serde_json::from_slice(&read("federation.json")?).context("federation.json")?;
        let root = PublicKey::from_pem(&String::from_utf8_lossy(&read("membership-root.pub")?));
        let root = root.context("membership-root.pub")?;
        let trust_domain: TrustDomain = file.federation.as_str().parse()?;
        let credentials = Credentials::open(&config.service_directory, &config.state_directory, trust_domain.clone())?;
        Ok(Self { file, root, trust_domain, credentials })
    }

    fn trust_bundle(&self) -> anyhow::Result<Channel> {
        let expected = [SpiffeId::service(&self.trust_domain, "trust-bundle")?];
        let expected = ExpectedPeer::AnyOf(expected.into());
        let config = client_config(Some(self.credentials.identity()), self.credentials.trust(), expected, &[rpc::ALPN]);
        Ok(rpc::channel(&self.file.trust_bundle_addresses, config, ChannelOptions::default()))
    }
}

/// Renews the service's certificate at half of its life, a tenth of that earlier or later, and when the federation has
/// other roots.
async fn keep_renewed(credentials: &Credentials, trust_bundle: Channel) {
    let mut roots = credentials.roots_changed();
    loop {
        let validity = credentials.identity().validity();
        let due = validity.map(|validity| validity.after(rand::rng().random_range(RENEW_AFTER)));
        let wait = due.and_then(|due| due.duration_since(SystemTime::now()).ok()).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(wait.max(LEAST_RENEWAL)) => {}
            // The sender outlives this.
            _ = roots.changed() => {}
        }
        if let Err(error) = renew_once(credentials, trust_bundle.clone()).await {
            warn!(error = format!("{error:#}"), "own certificate not renewed, the valid one stays");
            let left = validity.and_then(|validity| validity.not_after.duration_since(SystemTime::now()).ok());
            tokio::time::sleep((left.unwrap_or_default() / 10).clamp(LEAST_RENEWAL, RENEW_RETRY)).await;
        }
    }
}

async fn renew_once(credentials: &Credentials, trust_bundle: Channel) -> anyhow::Result<()> {
    let (key, csr) = mesh_tls::new_key_and_csr()?;
    let answer = renew(trust_bundle, csr).await?;
    credentials.take_certificate(answer.certificate_chain.into_iter().map(Into::into).collect(), key)?;
    info!("own certificate renewed");
    Ok(())
}
