//! This sidecar's own SVID.
//!
//! ```text
//!  disk (0600) ─┐                                        ┌─► disk
//!               ├─► Identity (swapped live) ◄── issued ──┤
//!  token, once ─┴─► control-plane, verified by the pin ──┘   renewed at half its life ± 10 %, by itself
//! ```
//!
//! A failed renewal keeps the valid SVID and is tried again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use federation_api::client::discovery::issue_svid;
use mesh_runtime::{read_if_present, write_atomically};
use mesh_tls::pem::{certificates_from_pem, certificates_to_pem, private_key_from_pem, private_key_to_pem};
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore};
use rand::RngExt;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tokio::sync::Notify;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::config::DiscoveryConfig;
use crate::metrics::{Metrics, Result as ResultLabel};
use crate::routing::state::unix_seconds;
use crate::workload_api::Standing;

/// First wait after a failed attempt; doubled with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// When a root is gone, renewals are spread over this time.
const ROOT_GONE_SPREAD: Duration = Duration::from_secs(1);
/// Longest wait between attempts.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Of a file that holds a key and a few certificates.
const MAX_FILE: u64 = 256 * 1024;

/// Why there is no new SVID.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// A file cannot be read or written.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// No key or request could be made.
    #[error("certificate request: {0}")]
    Request(String),
    /// The control-plane refused, or did not answer.
    #[error("control-plane: {0}")]
    Refused(Box<tonic::Status>),
    /// What was issued cannot be used.
    #[error("issued SVID: {0}")]
    Unusable(String),
}

impl IdentityError {
    /// Whether the control-plane does not grant this workload an SVID, rather than being unable to.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied))
    }
}

/// The roots by which the control-plane is recognised: those of the pin file and those of the cluster's bundle, so that
/// a rotation of either one comes through. Clones share them.
#[derive(Clone)]
pub(crate) struct Pins {
    trust: TrustStore,
    trust_domain: TrustDomain,
    file: Arc<Path>,
    roots: Arc<Mutex<PinnedRoots>>,
    root_gone: Arc<Notify>,
}

#[derive(Default)]
struct PinnedRoots {
    file: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
}

impl Pins {
    pub(crate) fn new(trust_domain: TrustDomain, file: &Path) -> Self {
        Self {
            trust: TrustStore::new(),
            trust_domain,
            file: file.into(),
            roots: Arc::default(),
            root_gone: Arc::default(),
        }
    }

    /// Takes the cluster's bundle in; those of other trust domains mean nothing here.
    pub(crate) fn bundle(&self, bundle: &Bundle) {
        if bundle.trust_domain == self.trust_domain {
            self.update(|roots| {
                if roots.bundle.iter().any(|root| !bundle.x509_authorities.contains(root)) {
                    self.root_gone.notify_one();
                }
                roots.bundle.clone_from(&bundle.x509_authorities);
            });
        }
    }

    /// A root of the cluster's bundle is believed no longer: what hangs on it is of no use any more.
    async fn root_gone(&self) {
        self.root_gone.notified().await;
        let spread = ROOT_GONE_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
        tokio::time::sleep(spread).await;
    }

    /// Reads the pin file again: it may have been replaced. The roots that are known stay if it cannot be read.
    pub(crate) fn read(&self) {
        let file = read(&self.file).and_then(|text| {
            certificates_from_pem(&text)
                .map_err(|error| IdentityError::File { path: self.file.to_path_buf(), problem: error.to_string() })
        });
        match file {
            Ok(file) => self.update(|roots| roots.file = file),
            Err(error) => warn!(%error, "pinned roots"),
        }
    }

    fn update(&self, change: impl FnOnce(&mut PinnedRoots)) {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut roots);
        let mut authorities = roots.file.clone();
        authorities.extend(roots.bundle.iter().filter(|root| !roots.file.contains(root)).cloned());
        self.trust.insert(Bundle {
            trust_domain: self.trust_domain.clone(),
            x509_authorities: authorities,
            sequence: 0,
            refresh_hint: None,
        });
    }
}

/// Gets and renews the SVID.
pub(crate) struct Issuing {
    config: DiscoveryConfig,
    control_plane: SpiffeId,
    pins: Pins,
    identity: Identity,
    file: PathBuf,
    metrics: Metrics,
    standing: Standing,
    /// When the current one was issued.
    issued: Option<SystemTime>,
}

impl Issuing {
    pub(crate) fn new(
        config: DiscoveryConfig,
        control_plane: SpiffeId,
        pins: Pins,
        identity: Identity,
        directory: &Path,
        metrics: Metrics,
        standing: Standing,
    ) -> Self {
        let file = directory.join("svid.pem");
        Self { config, control_plane, pins, identity, file, metrics, standing, issued: None }
    }

    /// Takes the SVID from disk, if there is one that is still good.
    pub(crate) fn load(&mut self) {
        match self.load_file() {
            Ok(true) => info!(peer.id = %self.name(), "SVID from disk"),
            Ok(false) => {}
            Err(error) => warn!(%error, "the SVID on disk is of no use"),
        }
    }

    fn load_file(&mut self) -> Result<bool, IdentityError> {
        let problem = |problem: String| IdentityError::File { path: self.file.clone(), problem };
        let Some(text) = read_if_present(&self.file, MAX_FILE).map_err(|error| problem(error.to_string()))? else {
            return Ok(false);
        };
        let chain = certificates_from_pem(&text).map_err(|error| problem(error.to_string()))?;
        let key = private_key_from_pem(&text).map_err(|error| problem(error.to_string()))?;
        let loaded = Identity::from_der(chain.clone(), key.clone_key()).map_err(|error| problem(error.to_string()))?;
        let now = SystemTime::now();
        if loaded.not_after().is_none_or(|end| end <= now) {
            return Err(problem("it has expired".to_owned()));
        }
        self.check_name(&loaded)?;
        self.identity.replace(chain, key).map_err(|error| problem(error.to_string()))?;
        let written = std::fs::metadata(&self.file).and_then(|metadata| metadata.modified()).unwrap_or(now);
        self.adopted(written.min(now));
        Ok(true)
    }

    /// The SVID must be one of a workload of the own cluster.
    fn check_name(&self, identity: &Identity) -> Result<(), IdentityError> {
        let id = identity.spiffe_id().ok_or_else(|| IdentityError::Unusable("it names nobody".to_owned()))?;
        if *id.trust_domain() != self.pins.trust_domain || id.as_workload().is_none() {
            return Err(IdentityError::Unusable(format!("{id} is no workload of {}", self.pins.trust_domain)));
        }
        Ok(())
    }

    fn adopted(&mut self, issued: SystemTime) {
        self.issued = Some(issued);
        if let Some(end) = self.identity.not_after() {
            self.metrics.svid_expiry.set(unix_seconds(end));
        }
    }

    /// A channel to the control-plane, which it must prove to be; shows the SVID once there is one.
    pub(crate) fn channel(&self) -> Channel {
        let expected = ExpectedPeer::exactly(self.control_plane.clone());
        let config = mesh_tls::client_config(Some(&self.identity), &self.pins.trust, expected, &[rpc::ALPN]);
        rpc::channel(&self.config.addresses, config, ChannelOptions::default())
    }

    /// Renews for ever; gets the first one if there is none.
    pub(crate) async fn keep_renewed(mut self) {
        let mut wait = FIRST_RETRY;
        loop {
            let due = self.due();
            let rest = due.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.pins.root_gone() => info!("a root of the cluster is gone: renewing at once"),
            }
            match Box::pin(self.renew()).await {
                Ok(()) => {
                    self.standing.answered(false);
                    wait = FIRST_RETRY;
                    self.count("ok");
                    info!(peer.id = %self.name(), "SVID issued");
                }
                Err(error) => {
                    if error.is_refusal() {
                        self.standing.answered(true);
                    }
                    self.count("failed");
                    warn!(%error, retry_in = ?wait, "no new SVID, keeping what there is");
                    let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.0));
                    tokio::time::sleep(jittered).await;
                    wait = (wait * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    /// When to renew: at once without an SVID, else at half its life, ten percent earlier or later so that many do not
    /// come together.
    fn due(&self) -> SystemTime {
        let (Some(issued), Some(end)) = (self.issued, self.identity.not_after()) else { return SystemTime::UNIX_EPOCH };
        let life = end.duration_since(issued).unwrap_or_default();
        issued + life.mul_f64(0.5 * rand::rng().random_range(0.9..1.1))
    }

    async fn renew(&mut self) -> Result<(), IdentityError> {
        self.pins.read();
        let (key, csr) = mesh_tls::new_key_and_csr().map_err(|error| IdentityError::Request(error.to_string()))?;
        let valid = self.identity.not_after().is_some_and(|end| end > SystemTime::now());
        let by_svid = if valid { Some(issue_svid(self.channel(), csr.clone(), None).await) } else { None };
        let issued = match by_svid {
            Some(Ok(issued)) => issued,
            // No SVID, or one that is not believed any more, which a server says by cutting the connection: the token is
            // the proof.
            refused => {
                if let Some(Err(status)) = refused {
                    warn!(%status, "renewal by the SVID failed, trying the token");
                }
                let token = self.token()?;
                issue_svid(self.channel_without_svid(), csr, Some(token))
                    .await
                    .map_err(|status| IdentityError::Refused(Box::new(status)))?
            }
        };
        let chain: Vec<CertificateDer<'static>> =
            issued.certificate_chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        self.adopt(chain, key).await
    }

    fn channel_without_svid(&self) -> Channel {
        let expected = ExpectedPeer::exactly(self.control_plane.clone());
        let config = mesh_tls::client_config(None, &self.pins.trust, expected, &[rpc::ALPN]);
        rpc::channel(&self.config.addresses, config, ChannelOptions::default())
    }

    fn token(&self) -> Result<String, IdentityError> {
        let text = read(&self.config.token_file)?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    async fn adopt(
        &mut self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), IdentityError> {
        let unusable = |error: mesh_tls::IdentityError| IdentityError::Unusable(error.to_string());
        let candidate = Identity::from_der(chain.clone(), key.clone_key()).map_err(unusable)?;
        self.check_name(&candidate)?;
        let text = format!("{}{}", private_key_to_pem(&key), certificates_to_pem(&chain));
        self.identity.replace(chain, key).map_err(unusable)?;
        self.adopted(SystemTime::now());
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || write_atomically(&file, text.as_bytes(), 0o600)).await;
        match written {
            Ok(Ok(())) => {}
            // The new SVID is good for as long as this process lives.
            Ok(Err(error)) => warn!(file = %self.file.display(), %error, "the SVID cannot be written down"),
            Err(error) => warn!(%error, "the SVID cannot be written down"),
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.identity.spiffe_id().map(|id| id.to_string()).unwrap_or_default()
    }

    fn count(&self, result: &'static str) {
        self.metrics.svid_issues.get_or_create(&ResultLabel { result }).inc();
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let problem = |problem: String| IdentityError::File { path: path.to_owned(), problem };
    read_if_present(path, MAX_FILE)
        .map_err(|error| problem(error.to_string()))?
        .ok_or_else(|| problem("not found".to_owned()))
}
