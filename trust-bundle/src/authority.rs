//! The federation's own authority as one replica has it: its folder, what signs, and the service's own certificate below it.
//!
//! All replicas have the same folder (a shared volume), or copies of it. One of them drives a rotation and changes the
//! files; the store says which roots are published and which one signs, by their digests alone, and every replica takes
//! the certificates from its own folder. A captured store can therefore name no root that is not there, and a replica
//! whose folder lags behind tells nobody anything until it has caught up.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use federation_api::trust::v1::StoredAuthority;
use mesh_tls::{Identity, Purpose, TrustStore};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::{Authority, OpenError};
use tracing::{error, info, warn};

/// A renewal of the service's own certificate that failed is tried again after a tenth of the life that is left, within
/// these bounds.
const RENEW_RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Why this replica cannot say which roots the federation has.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityLag {
    /// The folder cannot be read.
    #[error("the authority's folder: {0}")]
    Open(#[from] OpenError),
    /// The folder is not that of the replica that drives the rotation, or not yet.
    #[error(
        "the authority's folder does not hold the roots that the federation has now: is it shared by all replicas?"
    )]
    Other,
}

/// The authority of one replica, swapped when its files were changed by another. Clones share it.
#[derive(Debug, Clone)]
pub struct PlaneAuthority(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    current: RwLock<Arc<Authority>>,
    /// This replica changes the files itself, so what it has in memory is newer than what the store says.
    driving: AtomicBool,
    lifetime: Duration,
    identity: Identity,
    trust: TrustStore,
}

impl PlaneAuthority {
    /// Opens the folder; the service's own certificates live for `lifetime`.
    ///
    /// # Errors
    /// When the files are unusable, or the first certificate cannot be issued.
    pub fn open(directory: &Path, trust_domain: &TrustDomain, lifetime: Duration) -> anyhow::Result<Self> {
        let authority = Arc::new(Authority::open(directory, trust_domain)?);
        let own = Self(Arc::new(Inner {
            directory: directory.to_owned(),
            current: RwLock::new(authority),
            driving: AtomicBool::new(false),
            lifetime,
            identity: Identity::empty(),
            trust: TrustStore::new(),
        }));
        own.believe(own.current().roots());
        own.renew()?;
        Ok(own)
    }

    /// What signs now.
    #[must_use]
    pub fn current(&self) -> Arc<Authority> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The service's own certificate.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Whom the service believes: its own federation.
    #[must_use]
    pub fn trust(&self) -> &TrustStore {
        &self.0.trust
    }

    /// Reads the files again, as another replica may have left them, and changes them alone from now on.
    ///
    /// # Errors
    /// When they are unusable; what signed before signs on.
    pub fn drive(&self) -> Result<Arc<Authority>, OpenError> {
        let opened = Arc::new(Authority::open(&self.0.directory, self.current().trust_domain())?);
        self.swap(opened.clone());
        self.0.driving.store(true, Ordering::Relaxed);
        Ok(opened)
    }

    /// Another replica may change the files from now on.
    pub fn yield_to_others(&self) {
        self.0.driving.store(false, Ordering::Relaxed);
    }

    /// Takes what the store says of the authority into use, and returns the roots that are published.
    ///
    /// # Errors
    /// [`AuthorityLag`]; what signed before stays.
    pub fn follow(&self, stored: &StoredAuthority) -> Result<Vec<Vec<u8>>, AuthorityLag> {
        let driving = self.0.driving.load(Ordering::Relaxed);
        if !fits(&self.current(), stored, driving) {
            let opened = Authority::open(&self.0.directory, self.current().trust_domain())?;
            if !fits(&opened, stored, driving) {
                return Err(AuthorityLag::Other);
            }
            info!("the federation's authority was changed by another replica: taken from its folder");
            self.swap(Arc::new(opened));
        }
        let roots = named(&self.current(), stored);
        self.believe(roots.clone());
        // The own certificate stays as long as those who know the published roots believe it: whoever has not heard of a
        // new root yet, an operator or a joiner with an older token, finds the service until the old one is retired.
        let chain = self.0.identity.chain();
        if self.0.trust.verify(&chain, Purpose::Server, UnixTime::now()).is_err()
            && let Err(error) = self.renew()
        {
            warn!(error = format!("{error:#}"), "own certificate not renewed, the valid one stays");
        }
        Ok(roots.iter().map(|root| root.to_vec()).collect())
    }

    fn swap(&self, authority: Arc<Authority>) {
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = authority;
    }

    fn believe(&self, x509_authorities: Vec<CertificateDer<'static>>) {
        let trust_domain = self.current().trust_domain().clone();
        self.0.trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
    }

    fn renew(&self) -> anyhow::Result<()> {
        let authority = self.current();
        let (key, csr) = mesh_tls::new_key_and_csr()?;
        let id = SpiffeId::service(authority.trust_domain(), "trust-bundle")?;
        let svid = authority.issue(&csr, &id, self.0.lifetime, SystemTime::now())?;
        Ok(self.0.identity.replace(svid.chain, key)?)
    }

    /// A new certificate at half of what the current one has left; it may have less than the whole lifetime, as it never
    /// outlives the authority.
    pub async fn keep_renewed(&self) {
        loop {
            let left = self.0.identity.not_after().and_then(|end| end.duration_since(SystemTime::now()).ok());
            tokio::time::sleep(left.unwrap_or_default() / 2).await;
            if let Err(error) = self.renew() {
                error!(error = format!("{error:#}"), "own certificate not renewed, the valid one stays");
                tokio::time::sleep((left.unwrap_or_default() / 10).clamp(RENEW_RETRY[0], RENEW_RETRY[1])).await;
            }
        }
    }
}

/// What the store is to say: these roots are published, and the present one signs.
#[must_use]
pub fn stored(authority: &Authority, roots: &[CertificateDer<'static>]) -> StoredAuthority {
    StoredAuthority {
        root_digests: roots.iter().map(|root| digest(root)).collect(),
        signer_digest: digest(&authority.root()),
    }
}

fn named(authority: &Authority, stored: &StoredAuthority) -> Vec<CertificateDer<'static>> {
    authority.roots().into_iter().filter(|root| stored.root_digests.contains(&digest(root))).collect()
}

fn fits(authority: &Authority, stored: &StoredAuthority, driving: bool) -> bool {
    let root = digest(&authority.root());
    let signs = driving || root == stored.signer_digest;
    signs && stored.root_digests.contains(&root) && named(authority, stored).len() == stored.root_digests.len()
}

fn digest(certificate: &CertificateDer<'_>) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate).as_ref().to_vec()
}
