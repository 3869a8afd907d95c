//! A trust domain's certificate authority, as its callers see it.

mod crossover;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use spiffe_identity::{AuthorityError, BACKDATE, SpiffeId, TrustDomain, Validity, pem};
use tracing::{info, warn};

pub use self::crossover::RootError;
use crate::{
    AuthorityFiles, IssueError, SealError, SealingKey, Svid,
    disk::Disk,
    issue::{Leaf, whole_seconds},
    online::{INTERMEDIATE_LIFETIME, Online, root_signer},
    request::public_key,
    signer::{Signer, allows_intermediates, check_chain},
};

/// A trust domain's signing certificates and keys: a root of its own with an online intermediate below it, or a chain that
/// the operator brought. Shared by reference; it locks for itself, and never while it signs a leaf.
pub struct Authority {
    disk: Disk,
    state: Mutex<State>,
}

struct State {
    root: CertificateDer<'static>,
    /// The earliest end of the certificates in `ca.crt`.
    not_after: SystemTime,
    signing: Signing,
    next_root: Option<CertificateDer<'static>>,
    old_root: Option<CertificateDer<'static>>,
}

/// What signs leaves.
enum Signing {
    /// An intermediate below the root, made here.
    Online(Online),
    /// The first certificate of the file: an operator's intermediate, or a root that allows no intermediate below it.
    Itself(Arc<Signer>),
}

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The certificate is there and its key is not. Making a new root instead would cut off everybody.
    #[error("{certificates} is there, but its key {key} is not")]
    KeyMissing {
        /// The file that is there.
        certificates: PathBuf,
        /// The file that is not.
        key: PathBuf,
    },
    /// The key is sealed, and no sealing key was given.
    #[error("{0} is sealed, and there is no sealing key")]
    Sealed(PathBuf),
    /// The key cannot be sealed or unsealed.
    #[error("{path}: {source}")]
    Seal {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: SealError,
    },
    /// A file is not the PEM text of certificates or a key.
    #[error("{path}: {source}")]
    Pem {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::PemError,
    },
    /// More certificates than a peer would accept below a leaf, or none.
    #[error("{0} certificates, outside 1 to 4")]
    Length(usize),
    /// A certificate may not sign for the trust domain.
    #[error("certificate {position} may not sign for {trust_domain}: {source}")]
    Authority {
        /// Its place in the file, from 1.
        position: usize,
        /// For whom it was to sign.
        trust_domain: TrustDomain,
        /// The rule that does not hold.
        source: AuthorityError,
    },
    /// A certificate is not signed by the one after it; the last must be self-signed.
    #[error("certificate {0} is not signed by the one that should stand above it")]
    Order(usize),
    /// The key is not the first certificate's.
    #[error("the private key is not the first certificate's")]
    KeyMismatch,
    /// The certificate's name is encoded in a way that leaves signed here would not match.
    #[error("the first certificate's subject cannot be repeated exactly as an issuer's name")]
    Subject,
    /// The key or certificate cannot be used by the signing library.
    #[error("the key or certificate cannot be used: {0}")]
    Signing(#[from] rcgen::Error),
}

impl Authority {
    /// Opens the authority in `directory` (`ca.crt` and `ca.key`), or makes a new root there when there is none.
    ///
    /// # Errors
    /// When the files are unusable, or the certificate is there without its key and without a stored intermediate.
    pub fn open_or_create(directory: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, OpenError> {
        Self::open_or_create_files(&AuthorityFiles::in_directory(directory), trust_domain, now)
    }

    /// Opens the authority in `directory` (`ca.crt` and `ca.key`).
    ///
    /// # Errors
    /// When the files are absent or unusable.
    pub fn open(directory: &Path, trust_domain: &TrustDomain) -> Result<Self, OpenError> {
        Self::open_files(&AuthorityFiles::in_directory(directory), trust_domain)
    }

    /// [`open_or_create`](Self::open_or_create) with files of any name.
    ///
    /// # Errors
    /// As there.
    pub fn open_or_create_files(
        files: &AuthorityFiles,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, OpenError> {
        Disk::of(files, trust_domain, None).open_or_create(now)
    }

    /// Opens an authority from its files: one that was made here, or one that the operator brought.
    ///
    /// # Errors
    /// When the files are absent or unusable.
    pub fn open_files(files: &AuthorityFiles, trust_domain: &TrustDomain) -> Result<Self, OpenError> {
        Disk::of(files, trust_domain, None).open()
    }

    /// [`open_or_create_files`](Self::open_or_create_files) with a root's key sealed on disk. A key that lies there as it is
    /// gets sealed.
    ///
    /// # Errors
    /// As there, or when the key is sealed under another sealing key.
    pub fn open_or_create_sealed(
        files: &AuthorityFiles,
        trust_domain: &TrustDomain,
        seal: SealingKey,
        now: SystemTime,
    ) -> Result<Self, OpenError> {
        Disk::of(files, trust_domain, Some(seal)).open_or_create(now)
    }

    /// [`open_files`](Self::open_files) with a sealing key, for a key that may be sealed.
    ///
    /// # Errors
    /// As there, or when the key is sealed under another sealing key.
    pub fn open_sealed(
        files: &AuthorityFiles,
        trust_domain: &TrustDomain,
        seal: SealingKey,
    ) -> Result<Self, OpenError> {
        Disk::of(files, trust_domain, Some(seal)).open()
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.disk.trust_domain
    }

    /// The root that signs. While it is replaced the bundle publishes others beside it: [`roots`](Self::roots).
    pub fn root(&self) -> CertificateDer<'static> {
        self.state().root.clone()
    }

    /// The last second it can sign for: the earliest end of its certificates, its intermediate (which is replaced) aside.
    pub fn not_after(&self) -> SystemTime {
        self.state().not_after
    }

    /// When the online intermediate in use is valid; `None` before the first one, and for an authority that has none.
    pub fn intermediate_validity(&self) -> Option<Validity> {
        match &self.state().signing {
            Signing::Online(online) => online.validity(),
            Signing::Itself(_) => None,
        }
    }

    /// Makes and takes into use whatever intermediate is due at `now`. [`issue`](Self::issue) does the same as it goes;
    /// calling this every minute makes sure that it happens in a quiet cluster too, and says what an alarm should say.
    ///
    /// # Errors
    /// When the next intermediate is due and the root's key cannot be used. The one in use signs on until its end.
    pub fn maintain(&self, now: SystemTime) -> Result<(), OpenError> {
        let mut state = self.state();
        let root = state.root.clone();
        match &mut state.signing {
            Signing::Online(online) => online.maintain(&self.disk, &root, whole_seconds(now)),
            Signing::Itself(_) => Ok(()),
        }
    }

    /// Signs below a new intermediate from now on, whatever the age of the one in use: SVIDs from before stay valid until
    /// their end, and only another root's rotation ends them sooner.
    ///
    /// # Errors
    /// [`RootError::Brought`] for a chain of the operator's, or the root's key cannot be used; the one in use signs on.
    pub fn renew_intermediate(&self, now: SystemTime) -> Result<(), RootError> {
        let mut state = self.state();
        let root = state.root.clone();
        match &mut state.signing {
            Signing::Online(online) => Ok(online.renew(&self.disk, &root, whole_seconds(now))?),
            Signing::Itself(_) => Err(RootError::Brought),
        }
    }

    /// Issues an SVID for `id` to whoever holds the key of the request (PKCS#10 DER), from five minutes ago until `lifetime`
    /// from `now`, and never past the end of any certificate above it. Whether the asker *is* `id` has been decided before.
    ///
    /// A lifetime beyond an intermediate's own ([`INTERMEDIATE_LIFETIME`]) is signed by the root itself, as long as its key
    /// is at hand: an operator's certificate, not a workload's.
    ///
    /// # Errors
    /// When the request is refused, the identity is of another trust domain, or no time is left.
    pub fn issue(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Svid, IssueError> {
        self.issue_marked(csr_der, id, "", lifetime, now)
    }

    /// [`issue`](Self::issue), with a word of the issuer to itself in the certificate's subject: peers do not look at it, and
    /// [`mark`](crate::mark) reads it back. Empty: none.
    ///
    /// # Errors
    /// As there.
    pub fn issue_marked(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        mark: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Svid, IssueError> {
        let key = public_key(csr_der)?;
        let trust_domain = self.trust_domain();
        if id.trust_domain() != trust_domain {
            return Err(IssueError::TrustDomain { id: id.clone(), expected: trust_domain.clone() });
        }
        if id.path().is_empty() {
            return Err(IssueError::NoPath(id.clone()));
        }
        let now = whole_seconds(now);
        if now >= self.not_after() {
            return Err(IssueError::NoLifetime);
        }
        let signer = self.signer(lifetime, now)?;
        let end = signer.validity().not_after;
        let not_after = now.checked_add(lifetime).map_or(end, |wanted| whole_seconds(wanted).min(end));
        if not_after <= now {
            return Err(IssueError::NoLifetime);
        }
        let leaf = Leaf { id, mark, not_before: now - BACKDATE, not_after }.sign(&key, signer.issuer())?;
        let chain = std::iter::once(leaf).chain(signer.below_root().iter().cloned()).collect();
        Ok(Svid { chain, not_after })
    }

    fn signer(&self, lifetime: Duration, now: SystemTime) -> Result<Arc<Signer>, OpenError> {
        let mut state = self.state();
        let root = state.root.clone();
        match &mut state.signing {
            Signing::Itself(signer) => Ok(signer.clone()),
            Signing::Online(online) => {
                if lifetime > INTERMEDIATE_LIFETIME {
                    match root_signer(&self.disk, &root) {
                        Ok(signer) => return Ok(Arc::new(signer)),
                        Err(error) => warn!(%error, "a long-lived certificate gets an intermediate's life"),
                    }
                }
                online.signer(&self.disk, &root, now)
            }
        }
    }

    pub(crate) fn files(&self) -> &AuthorityFiles {
        &self.disk.files
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn of(files: &AuthorityFiles, trust_domain: &TrustDomain, seal: Option<SealingKey>) -> Self {
        Self { files: files.clone(), trust_domain: trust_domain.clone(), seal }
    }

    fn open_or_create(self, now: SystemTime) -> Result<Authority, OpenError> {
        let there = self.files.certificates.try_exists();
        // A key alone is a creation that was interrupted: nobody has seen its certificate yet.
        if !there.map_err(|source| OpenError::File { path: self.files.certificates.clone(), source })? {
            self.create(whole_seconds(now))?;
            let certificate = self.files.certificates.display();
            info!(trust_domain = %self.trust_domain, %certificate, "made a new root");
        }
        let authority = self.open()?;
        authority.disk.seal_what_is_open();
        Ok(authority)
    }

    fn open(self) -> Result<Authority, OpenError> {
        self.finish_activation()?;
        let certificates = self.certificates()?;
        let not_after = check_chain(&self.trust_domain, &certificates)?;
        let root = certificates.last().cloned().ok_or(OpenError::Length(0))?;
        let signing = if certificates.len() == 1 && allows_intermediates(&root) {
            let online = Online::read(&self, &root);
            self.check_root_key(&root, &online)?;
            Signing::Online(online)
        } else {
            let key = self.key()?.ok_or_else(|| self.key_missing())?;
            Signing::Itself(Arc::new(Signer::new(&self.trust_domain, certificates, key)?))
        };
        let (next_root, old_root) = (self.next_root()?, self.old_root()?);
        let state = Mutex::new(State { root, not_after, signing, next_root, old_root });
        Ok(Authority { disk: self, state })
    }

    /// A key that is there must be the root's. It may be away, or sealed without a sealing key, while an intermediate lives.
    fn check_root_key(&self, root: &CertificateDer<'static>, online: &Online) -> Result<(), OpenError> {
        if !self.has_key()? && online.is_empty() {
            return Err(self.key_missing());
        }
        match self.key() {
            Ok(Some(key)) => Signer::new(&self.trust_domain, vec![root.clone()], key).map(|_| ()),
            Err(OpenError::Sealed(_)) if !online.is_empty() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn key_missing(&self) -> OpenError {
        OpenError::KeyMissing { certificates: self.files.certificates.clone(), key: self.files.key.clone() }
    }

    fn seal_what_is_open(&self) {
        let sealed = self.is_unsealed().and_then(|unsealed| match self.key()? {
            Some(key) if unsealed => self.write_key(&key),
            _ => Ok(()),
        });
        if let Err(error) = sealed {
            warn!(%error, "the root's key could not be sealed");
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", self.trust_domain()).finish_non_exhaustive()
    }
}
