//! The operator's web certificate, swapped when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use mesh_runtime::read_if_present;
use mesh_tls::pem;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use super::WebConfig;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(30);

/// Of a file with a chain or a key.
const MAX_FILE: u64 = 256 * 1024;

/// Why files are no certificate; the last good one stays in force.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct CertificateError {
    path: PathBuf,
    problem: String,
}

/// A certificate that follows its files. Clones share it.
#[derive(Clone, Debug)]
pub struct WebCertificate {
    config: WebConfig,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current {
    /// Read in handshakes, written when the files changed; never held over an await.
    certified: RwLock<Arc<CertifiedKey>>,
}

impl WebCertificate {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file.
    pub fn open(config: WebConfig) -> Result<Self, CertificateError> {
        let certified = RwLock::new(read(&config)?);
        Ok(Self { config, current: Arc::new(Current { certified }) })
    }

    /// A server's configuration that always shows the newest certificate, and asks for none.
    ///
    /// # Errors
    /// The provider has no suites.
    pub fn server_config(&self, alpn: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
        let builder =
            ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
        let builder = builder.context("TLS")?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Arc::new(config))
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// Names the file; the certificate stays.
    pub fn reload(&self) -> Result<(), CertificateError> {
        let certified = read(&self.config)?;
        *self.current.certified.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    /// Reads the files whenever they have changed.
    pub(super) async fn keep_current(&self) {
        let mut known = self.changed_at();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.changed_at();
            if now == known {
                continue;
            }
            match self.reload() {
                Ok(()) => {
                    known = now;
                    info!(file = %self.config.certificate_file.display(), "the web certificate was replaced");
                }
                Err(error) => warn!(%error, "the web certificate stays as it was"),
            }
        }
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
        [changed(&self.config.certificate_file), changed(&self.config.key_file)]
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.certified.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(config: &WebConfig) -> Result<Arc<CertifiedKey>, CertificateError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |problem: String| CertificateError { path, problem }
    };
    let text = |path: &Path| {
        let found = read_if_present(path, MAX_FILE).map_err(|error| wrong(path)(error.to_string()))?;
        found.ok_or_else(|| wrong(path)("not found".to_owned()))
    };
    let (certificate, key) = (&config.certificate_file, &config.key_file);
    let chain =
        pem::certificates_from_pem(&text(certificate)?).map_err(|error| wrong(certificate)(error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(certificate)("no certificate in it".to_owned()));
    }
    let secret = pem::private_key_from_pem(&text(key)?).map_err(|error| wrong(key)(error.to_string()))?;
    let secret =
        default_provider().key_provider.load_private_key(secret).map_err(|error| wrong(key)(error.to_string()))?;
    let certified = CertifiedKey::new(chain, secret);
    certified.keys_match().map_err(|error| wrong(key)(error.to_string()))?;
    Ok(Arc::new(certified))
}
