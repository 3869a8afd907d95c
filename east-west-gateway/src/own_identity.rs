//! The gateway's own SVID: for discovery only, never for traffic.
//!
//! ```text
//!   svid.pem ──► valid? ──yes──► wait for half of its life ──► renew by the SVID ──┐
//!                  │ no                                            │ refused       │
//!                  └──► the service-account token, under the pinned root ◄─────────┘──► svid.pem (0600)
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use federation_api::client::discovery::issue_svid;
use mesh_runtime::{read_if_present, write_atomically};
use mesh_tls::{ExpectedPeer, Identity, IdentityError, TrustStore, client_config, new_key_and_csr, pem, rpc};
use rand::RngExt;
use rustls_pki_types::CertificateDer;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tokio::sync::Notify;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::config::DiscoveryConfig;

/// The chain and the key, in one file so that they always belong together.
const FILE: &str = "svid.pem";
/// More than any chain with its key.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// More than any service-account token.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;
/// The first wait after a failed request; each further one is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// The longest wait after a failed request.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// When to renew, as parts of the time from issuing to expiry: half of it, one tenth of that more or less.
const RENEW_AFTER: std::ops::Range<f64> = 0.45..0.55;
/// The least time between two renewals, whatever lifetime the control-plane gives.
const LEAST_RENEWAL: Duration = Duration::from_millis(500);

/// Why there is no new SVID.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the root file {path}: {reason}")]
    Roots { path: PathBuf, reason: String },
    #[error("the token file {path}: {reason}")]
    Token { path: PathBuf, reason: String },
    #[error(transparent)]
    Key(#[from] mesh_tls::RequestError),
    #[error("the control-plane: {}: {}", .0.code(), .0.message())]
    Call(#[from] tonic::Status),
    #[error("the SVID that was issued: {0}")]
    Svid(#[from] IdentityError),
    #[error("the SVID that was issued is of another trust domain: {0}")]
    TrustDomain(SpiffeId),
    #[error("writing {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

/// The SVID, the roots it is used with, and what renews it.
pub(crate) struct OwnIdentity {
    config: DiscoveryConfig,
    trust_domain: TrustDomain,
    file: PathBuf,
    identity: Identity,
    trust: TrustStore,
    control_plane: ExpectedPeer,
    failures: AtomicU64,
    root_gone: Notify,
}

impl OwnIdentity {
    /// Takes on what is on disk, if it can still be used.
    pub(crate) fn open(config: &DiscoveryConfig, state_directory: &Path) -> anyhow::Result<Self> {
        let trust_domain = config.trust_domain().map_err(anyhow::Error::msg)?;
        let expected = ExpectedPeer::exactly(config.control_plane().map_err(anyhow::Error::msg)?);
        let file = state_directory.join(FILE);
        let (identity, trust) = (Identity::empty(), TrustStore::new());
        let own = Self {
            config: config.clone(),
            trust_domain,
            file,
            identity,
            trust,
            control_plane: expected,
            failures: AtomicU64::new(0),
            root_gone: Notify::new(),
        };
        own.load();
        if let Err(error) = own.pin() {
            warn!(%error, "no roots yet");
        }
        Ok(own)
    }

    /// A new channel that calls as this gateway. Before the first SVID it leads nowhere, since a connection made without one
    /// would stay without.
    pub(crate) fn channel(&self) -> Channel {
        let known = self.identity.spiffe_id().is_some();
        self.channel_as(Some(&self.identity), if known { &self.config.addresses } else { &[] })
    }

    fn channel_as(&self, identity: Option<&Identity>, addresses: &[String]) -> Channel {
        let tls = client_config(identity, &self.trust, self.control_plane.clone(), &[rpc::ALPN]);
        rpc::channel(addresses, tls, rpc::ChannelOptions::default())
    }

    /// How many requests for an SVID have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// The cluster's trust domain.
    pub(crate) fn trust_domain(&self) -> &str {
        self.trust_domain.as_str()
    }

    /// The SVID; replaced while it is used.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Believes the roots in the pinned file, and those that the control-plane has announced since: one of them is its own.
    ///
    /// The file stays in force, so that a cluster whose root was made anew is believed again once the file says so.
    fn pin(&self) -> Result<(), RequestError> {
        self.believe(Vec::new())
    }

    /// [`Self::pin`], and announced roots beside the pinned ones.
    pub(crate) fn announced(&self, roots: Vec<CertificateDer<'static>>) {
        let known = self.roots();
        if let Err(error) = self.believe(roots) {
            warn!(%error, "the announced roots are not used");
        }
        let left = self.roots();
        if known.iter().any(|root| !left.contains(root)) {
            self.root_gone.notify_one();
        }
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.trust.bundle(&self.trust_domain).map(|bundle| bundle.x509_authorities).unwrap_or_default()
    }

    fn believe(&self, announced: Vec<CertificateDer<'static>>) -> Result<(), RequestError> {
        let path = &self.config.root_file;
        let wrong = |reason: String| RequestError::Roots { path: path.clone(), reason };
        let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let mut roots = pem::certificates_from_pem(&text).map_err(|error| wrong(error.to_string()))?;
        let known = self.roots();
        let announced = if announced.is_empty() { known.clone() } else { announced };
        for root in announced {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        roots.truncate(spiffe_identity::MAX_AUTHORITIES);
        if roots != known {
            let trust_domain = self.trust_domain.clone();
            self.trust.insert(Bundle { trust_domain, x509_authorities: roots, sequence: 0, refresh_hint: None });
        }
        Ok(())
    }

    fn load(&self) {
        let text = match read_if_present(&self.file, MAX_FILE_BYTES) {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => return warn!(file = %self.file.display(), %error, "the SVID cannot be read"),
        };
        let loaded = Identity::from_pem(&text, &text).and_then(|found| {
            let alive = found.not_after().is_some_and(|end| end > SystemTime::now());
            let ours = found.spiffe_id().is_some_and(|id| *id.trust_domain() == self.trust_domain);
            if alive && ours { self.identity.replace(found.chain(), pem::private_key_from_pem(&text)?) } else { Ok(()) }
        });
        if let Err(error) = loaded {
            warn!(file = %self.file.display(), %error, "the SVID on disk is not used");
        }
    }

    /// Gets the first SVID and renews it for ever.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        let mut issued =
            std::fs::metadata(&self.file).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut retry = FIRST_RETRY;
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.until_renewal(issued)) => {}
                // What hangs on it is of no use any more.
                () = self.root_gone.notified() => info!("a root of the cluster is gone: renewing at once"),
            }
            match self.request().await {
                Ok(()) => {
                    issued = SystemTime::now();
                    retry = FIRST_RETRY;
                    let id = self.identity.spiffe_id();
                    info!(peer.id = id.map(tracing::field::display), "own SVID issued");
                }
                Err(error) => {
                    self.failures.fetch_add(1, Relaxed);
                    let wait = retry.mul_f64(rand::rng().random_range(0.5..1.0));
                    warn!(%error, retry_in = ?wait, "no new SVID");
                    tokio::time::sleep(wait).await;
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    /// Zero when there is none or its time has come.
    fn until_renewal(&self, issued: SystemTime) -> Duration {
        let Some(not_after) = self.identity.not_after() else { return Duration::ZERO };
        let lifetime = not_after.duration_since(issued).unwrap_or_default();
        let due = issued + lifetime.mul_f64(rand::rng().random_range(RENEW_AFTER)).max(LEAST_RENEWAL);
        due.duration_since(SystemTime::now()).unwrap_or_default()
    }

    /// By the SVID while it is valid, otherwise, or when that fails, by the token.
    async fn request(&self) -> Result<(), RequestError> {
        // The file may have appeared or changed since.
        self.pin()?;
        if self.identity.not_after().is_some_and(|end| end > SystemTime::now()) {
            match self.request_with(self.channel(), None).await {
                Err(RequestError::Call(status)) => warn!(%status, "renewal by the SVID failed, trying the token"),
                outcome => return outcome,
            }
        }
        let path = &self.config.token_file;
        let wrong = |reason: String| RequestError::Token { path: path.clone(), reason };
        let token = read_if_present(path, MAX_TOKEN_BYTES).map_err(|error| wrong(error.to_string()))?;
        let token = token.ok_or_else(|| wrong("does not exist".to_owned()))?;
        let token = String::from_utf8(token).map_err(|error| wrong(error.to_string()))?;
        // Without a certificate: a server refuses an expired one before it hears of the token.
        let channel = self.channel_as(None, &self.config.addresses);
        self.request_with(channel, Some(token.trim().to_owned())).await
    }

    async fn request_with(&self, channel: Channel, token: Option<String>) -> Result<(), RequestError> {
        let (key, csr) = new_key_and_csr()?;
        let issued = issue_svid(channel, csr, token).await?;
        let chain: Vec<_> = issued.certificate_chain.into_iter().map(CertificateDer::from).collect();
        let candidate = Identity::from_der(chain.clone(), key.clone_key())?;
        if let Some(id) = candidate.spiffe_id().filter(|id| *id.trust_domain() != self.trust_domain) {
            return Err(RequestError::TrustDomain(id));
        }
        let text = format!("{}{}", pem::certificates_to_pem(&chain), pem::private_key_to_pem(&key));
        let path = self.file.clone();
        let written = tokio::task::spawn_blocking(move || write_atomically(&path, text.as_bytes(), 0o600)).await;
        self.identity.replace(chain, key)?;
        // It is used even if it could not be kept.
        let written = written.unwrap_or_else(|_| Err(io::Error::other("the writing task panicked")));
        if let Err(source) = written {
            let error = RequestError::Write { path: self.file.clone(), source };
            warn!(%error, "the SVID is not on disk");
        }
        Ok(())
    }
}
