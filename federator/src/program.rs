//! The running service: store, cache, members, RPC face, drain.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use federation::FederationDomain;
use federation_api::client::trust::renew;
use federation_api::signing::PublicKey;
use mesh_runtime::{Process, write_atomically};
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, pem};
use serde::Deserialize;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::config::Config;
use crate::members::Members;
use crate::replica::{Parts, Replica};
use crate::trust::{FederationRoots, TrustFollower};

/// How long to wait before trying again to renew the service's certificate.
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
    let nobody = Members::new(plane.root, plane.file.federation.clone());
    let (follower, members) = TrustFollower::start(&config.state_directory, nobody);
    let trust_bundle = plane.trust_bundle()?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listen: {}", config.listen))?;
    info!(listen = %listener.local_addr()?, federation = %plane.file.federation, "serving federation.v1");
    let parts = Parts {
        name: config.replica.clone(),
        store,
        members,
        identity: plane.identity.clone(),
        trust: plane.trust.clone(),
        trust_domain: plane.trust_domain.clone(),
        listener,
        heartbeat: config.heartbeat_interval,
        quota: config.quota,
        handshakes: config.pending_handshakes,
    };
    let (_, running) = Replica::start(parts, &process).await?;
    first_state.ready();
    let root_file = config.service_directory.join("federation-root.crt");
    let roots = FederationRoots::new(plane.trust.clone(), plane.trust_domain.clone(), root_file);
    let background = async {
        tokio::join!(
            follower.follow(trust_bundle.clone(), config.replica.clone(), &roots),
            keep_renewed(&plane.identity, &config, trust_bundle, roots.changed())
        );
    };
    tokio::select! {
        ended = Box::pin(running) => ended,
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

/// Renews the service's certificate at half of its life and when the federation has other roots, and writes it down.
async fn keep_renewed(identity: &Identity, config: &Config, trust_bundle: Channel, mut roots: watch::Receiver<()>) {
    loop {
        let validity = identity.validity();
        let wait = validity.map_or(RENEW_RETRY, |validity| {
            let half =
                validity.not_before + validity.not_after.duration_since(validity.not_before).unwrap_or_default() / 2;
            half.duration_since(SystemTime::now()).unwrap_or_default()
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // The sender outlives this.
            _ = roots.changed() => {}
        }
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
