//! The service's own certificate and the federation's roots, as they are now.
//!
//! ```text
//!   serviceDirectory (may be read-only) ──given──┐
//!                                                ├──► Identity, TrustStore ──renewed, told──► stateDirectory/credentials.json
//!   stateDirectory/credentials.json ───learnt────┘
//! ```
//!
//! What was learnt counts for as long as it was learnt on top of what is given: an operator who gives other files starts anew
//! with those. Certificate, key and roots lie in one file, so that they always belong together.

use std::path::{Path, PathBuf};

use anyhow::Context;
use mesh_runtime::{read_if_present, write_atomically};
use mesh_tls::{Identity, TrustStore, pem};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use spiffe_identity::{Bundle, TrustDomain};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// What was learnt, in the state directory.
const FILE: &str = "credentials.json";
/// More than sixteen roots and a chain can be.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// What was learnt, all PEM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Learnt {
    /// The files of the service directory that this was learnt on top of.
    given: String,
    roots: String,
    chain: String,
    key: String,
}

/// The certificate and the roots in force; replaced while they are used.
#[derive(Debug)]
pub struct Credentials {
    identity: Identity,
    trust: TrustStore,
    trust_domain: TrustDomain,
    file: PathBuf,
    given: String,
    roots_changed: watch::Sender<()>,
}

impl Credentials {
    /// What is given in `service`, or was learnt since then and kept in `state`.
    ///
    /// # Errors
    /// A given file cannot be used; the error names it. What was learnt and cannot be used is told and left alone.
    pub fn open(service: &Path, state: &Path, trust_domain: TrustDomain) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = service.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let (roots, chain, key) = (read("federation-root.crt")?, read("service.crt")?, read("service.key")?);
        let given = format!("{roots}{chain}");
        let own = Self {
            identity: Identity::from_pem(chain.as_bytes(), key.as_bytes()).context("service.crt")?,
            trust: TrustStore::new(),
            trust_domain,
            file: state.join(FILE),
            given,
            roots_changed: watch::Sender::new(()),
        };
        own.believe(pem::certificates_from_pem(roots.as_bytes()).context("federation-root.crt")?);
        if let Err(error) = own.remember() {
            warn!(file = %own.file.display(), error = format!("{error:#}"), "what was learnt of the federation's roots is not used");
        }
        Ok(own)
    }

    fn remember(&self) -> anyhow::Result<()> {
        let Some(bytes) = read_if_present(&self.file, MAX_FILE_BYTES)? else { return Ok(()) };
        let learnt: Learnt = serde_json::from_slice(&bytes)?;
        if learnt.given != self.given {
            info!("the service directory has other files than before: they count");
            return Ok(());
        }
        let roots = pem::certificates_from_pem(learnt.roots.as_bytes())?;
        let chain = pem::certificates_from_pem(learnt.chain.as_bytes())?;
        self.identity.replace(chain, pem::private_key_from_pem(learnt.key.as_bytes())?)?;
        self.believe(roots);
        Ok(())
    }

    fn believe(&self, x509_authorities: Vec<CertificateDer<'static>>) {
        let trust_domain = self.trust_domain.clone();
        self.trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
    }

    /// The service's own certificate.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whom to believe: the federation's own trust domain.
    #[must_use]
    pub fn trust(&self) -> &TrustStore {
        &self.trust
    }

    /// Learns when the roots are others: a certificate that was made to last may be below one that goes.
    #[must_use]
    pub fn roots_changed(&self) -> watch::Receiver<()> {
        self.roots_changed.subscribe()
    }

    /// Takes roots (DER) that differ from those in force; none at all changes nothing.
    pub fn take_roots(&self, roots: &[Vec<u8>]) {
        let roots: Vec<CertificateDer<'static>> = roots.iter().cloned().map(Into::into).collect();
        if roots.is_empty() || self.roots() == roots {
            return;
        }
        info!(roots = roots.len(), "the federation has other roots");
        self.believe(roots);
        self.write();
        self.roots_changed.send_replace(());
    }

    /// Takes a renewed certificate with its key.
    ///
    /// # Errors
    /// It cannot be used; the one before stays.
    pub fn take_certificate(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), mesh_tls::IdentityError> {
        self.identity.replace(chain, key)?;
        self.write();
        Ok(())
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.trust.bundle(&self.trust_domain).map(|bundle| bundle.x509_authorities).unwrap_or_default()
    }

    fn write(&self) {
        let Some((chain, key)) = self.identity.chain_and_key() else { return };
        let learnt = Learnt {
            given: self.given.clone(),
            roots: pem::certificates_to_pem(&self.roots()),
            chain: pem::certificates_to_pem(&chain),
            key: pem::private_key_to_pem(&key),
        };
        let written = serde_json::to_vec_pretty(&learnt).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| write_atomically(&self.file, &bytes, 0o600)) {
            error!(
                file = %self.file.display(), %error,
                "certificate and roots are in use but not written down: a restart begins with the older ones"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::{Duration, SystemTime};

    use spiffe_identity::SpiffeId;
    use svid_issuer::Authority;
    use tempfile::TempDir;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn trust_domain() -> TrustDomain {
        "mesh.example".parse().unwrap()
    }

    fn svid(authority: &Authority) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let (key, csr) = mesh_tls::new_key_and_csr().unwrap();
        let id = SpiffeId::service(&trust_domain(), "federator").unwrap();
        (authority.issue(&csr, &id, HOUR, SystemTime::now()).unwrap().chain, key)
    }

    /// An authority, and a folder with what `init` gives the service.
    fn given() -> (TempDir, Authority) {
        let directory = tempfile::tempdir().unwrap();
        let authority =
            Authority::open_or_create(&directory.path().join("ca"), &trust_domain(), SystemTime::now()).unwrap();
        give(&directory, &authority);
        for part in ["service", "state"] {
            std::fs::create_dir_all(directory.path().join(part)).unwrap();
        }
        (directory, authority)
    }

    fn give(directory: &TempDir, authority: &Authority) {
        let service = directory.path().join("service");
        std::fs::create_dir_all(&service).unwrap();
        let (chain, key) = svid(authority);
        std::fs::write(service.join("federation-root.crt"), pem::certificates_to_pem(&[authority.root()])).unwrap();
        std::fs::write(service.join("service.crt"), pem::certificates_to_pem(&chain)).unwrap();
        std::fs::write(service.join("service.key"), pem::private_key_to_pem(&key)).unwrap();
    }

    fn open(directory: &TempDir) -> Credentials {
        let [service, state] = ["service", "state"].map(|part| directory.path().join(part));
        Credentials::open(&service, &state, trust_domain()).unwrap()
    }

    #[test]
    fn other_roots_are_believed_kept_and_told_of_once_and_the_service_directory_is_only_read() {
        let (directory, authority) = given();
        let (_other_directory, other) = given();
        let before = std::fs::read(directory.path().join("service/federation-root.crt")).unwrap();
        let credentials = open(&directory);
        let mut changed = credentials.roots_changed();
        let told = [authority.root().to_vec(), other.root().to_vec()];
        credentials.take_roots(&told);
        assert!(changed.has_changed().unwrap());
        changed.borrow_and_update();
        // The same again, and a delta that is about something else.
        credentials.take_roots(&told);
        credentials.take_roots(&[]);
        assert!(!changed.has_changed().unwrap());
        assert_eq!(open(&directory).roots(), [authority.root(), other.root()]);
        assert_eq!(std::fs::read(directory.path().join("service/federation-root.crt")).unwrap(), before);
    }

    #[test]
    fn a_renewed_certificate_counts_after_a_restart_until_other_files_are_given() {
        let (directory, authority) = given();
        let credentials = open(&directory);
        let (chain, key) = svid(&authority);
        credentials.take_certificate(chain.clone(), key).unwrap();
        assert_eq!(open(&directory).identity().chain(), chain);
        give(&directory, &authority);
        let given = pem::certificates_from_pem(&std::fs::read(directory.path().join("service/service.crt")).unwrap());
        assert_eq!(open(&directory).identity().chain(), given.unwrap());
    }

    #[test]
    fn what_was_learnt_and_is_damaged_or_cannot_be_kept_stops_nobody() {
        let (directory, authority) = given();
        std::fs::write(directory.path().join("state/credentials.json"), "{").unwrap();
        let credentials = open(&directory);
        assert_eq!(credentials.roots(), [authority.root()]);
        std::fs::remove_dir_all(directory.path().join("state")).unwrap();
        let (chain, key) = svid(&authority);
        credentials.take_certificate(chain.clone(), key).unwrap();
        assert_eq!(credentials.identity().chain(), chain);
    }
}
