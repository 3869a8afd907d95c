//! A signing certificate with its key, and what stands above it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{AuthorityError, CertificateError, SpiffeId, TrustDomain, check_authority, pem, validity};
use tracing::info;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    AuthorityFiles, IssueError, Svid,
    issue::{BACKDATE, Leaf, whole_seconds},
    request::public_key,
    root::new_root,
};

/// The longest chain above a leaf, the root included: peers accept chains of four, their leaf among them.
const MAX_CERTIFICATES: usize = 4;

/// A trust domain's signing certificate and key: a root of its own, or one that the operator brought with those above it.
pub struct Authority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    /// What follows a leaf in its chain, the signing certificate first; nothing when the root itself signs.
    below_root: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    /// The earliest end of all of these certificates.
    not_after: SystemTime,
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
    /// When the files are unusable, or the certificate is there without its key.
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
        match (exists(&files.certificates)?, exists(&files.key)?) {
            (true, true) => {}
            (true, false) => {
                let (certificates, key) = (files.certificates.clone(), files.key.clone());
                return Err(OpenError::KeyMissing { certificates, key });
            }
            // A key alone is a creation that was interrupted: nobody has seen its certificate yet.
            (false, _) => Self::create_files(files, trust_domain, now)?,
        }
        Self::open_files(files, trust_domain)
    }

    /// Opens an authority from its files: one that was made here, or one that the operator brought.
    ///
    /// # Errors
    /// When the files are absent or unusable.
    pub fn open_files(files: &AuthorityFiles, trust_domain: &TrustDomain) -> Result<Self, OpenError> {
        let text = read(&files.certificates)?;
        let certificates = pem::certificates_from_pem(&text)
            .map_err(|source| OpenError::Pem { path: files.certificates.clone(), source })?;
        let key = pem::private_key_from_pem(&read(&files.key)?)
            .map_err(|source| OpenError::Pem { path: files.key.clone(), source })?;
        Self::new(trust_domain.clone(), certificates, KeyPair::try_from(&key)?)
    }

    /// Makes a new root and writes its files, the key first: whoever sees the certificate can count on the key.
    fn create_files(files: &AuthorityFiles, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), OpenError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = new_root(trust_domain, &key, whole_seconds(now))?;
        files.write_key(&key.serialize_pem()).map_err(|source| OpenError::File { path: files.key.clone(), source })?;
        files
            .write_certificates(&pem::certificates_to_pem([&root]))
            .map_err(|source| OpenError::File { path: files.certificates.clone(), source })?;
        info!(%trust_domain, certificate = %files.certificates.display(), "made a new root");
        Ok(())
    }

    fn new(
        trust_domain: TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
        key: KeyPair,
    ) -> Result<Self, OpenError> {
        let (Some((root, below_root)), Some(first)) = (certificates.split_last(), certificates.first()) else {
            return Err(OpenError::Length(0));
        };
        if certificates.len() > MAX_CERTIFICATES {
            return Err(OpenError::Length(certificates.len()));
        }
        let not_after = check_chain(&trust_domain, &certificates)?;
        let parsed = parse(first, 1, &trust_domain)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(OpenError::KeyMismatch);
        }
        let subject = parsed.subject().as_raw().to_vec();
        let issuer = Issuer::from_ca_cert_der(first, key)?;
        let (root, below_root) = (root.clone(), below_root.to_vec());
        let authority = Self { trust_domain, root, below_root, issuer, not_after };
        if authority.issuer_name()? != subject {
            return Err(OpenError::Subject);
        }
        Ok(authority)
    }

    /// The issuer's name as leaves signed here carry it, seen on a throw-away certificate: the library writes names anew,
    /// and one written otherwise than in the authority's certificate would break every chain.
    fn issuer_name(&self) -> Result<Vec<u8>, OpenError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let probe = rcgen::CertificateParams::default().signed_by(&key, &self.issuer)?;
        let probe = X509Certificate::from_der(probe.der()).map_err(|_| OpenError::Subject)?.1;
        Ok(probe.issuer().as_raw().to_vec())
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The certificate that the trust domain's bundle publishes.
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// The last second it can sign for: the earliest end of its certificates.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Issues an SVID for `id` to whoever holds the key of the request (PKCS#10 DER), from five minutes ago until `lifetime`
    /// from `now`, and never past [`not_after`](Self::not_after). Whether the asker *is* `id` has been decided before.
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
        let key = public_key(csr_der)?;
        if *id.trust_domain() != self.trust_domain {
            return Err(IssueError::TrustDomain { id: id.clone(), expected: self.trust_domain.clone() });
        }
        if id.path().is_empty() {
            return Err(IssueError::NoPath(id.clone()));
        }
        let now = whole_seconds(now);
        let not_after = now.checked_add(lifetime).map_or(self.not_after, |end| whole_seconds(end).min(self.not_after));
        if not_after <= now {
            return Err(IssueError::NoLifetime);
        }
        let leaf = Leaf { id, not_before: now - BACKDATE, not_after }.sign(&key, &self.issuer)?;
        let chain = std::iter::once(leaf).chain(self.below_root.iter().cloned()).collect();
        Ok(Svid { chain, not_after })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// Each may sign for the trust domain and is signed by the next, the last by itself. Returns the earliest end.
fn check_chain(trust_domain: &TrustDomain, certificates: &[CertificateDer<'static>]) -> Result<SystemTime, OpenError> {
    let mut ends = Vec::new();
    for (index, der) in certificates.iter().enumerate() {
        let position = index + 1;
        let refused = |source| OpenError::Authority { position, trust_domain: trust_domain.clone(), source };
        check_authority(der, trust_domain).map_err(refused)?;
        ends.push(validity(der).map_err(|error| refused(error.into()))?.not_after);
        let above = certificates.get(position).unwrap_or(der);
        let (certificate, above) = (parse(der, position, trust_domain)?, parse(above, position + 1, trust_domain)?);
        if certificate.issuer().as_raw() != above.subject().as_raw()
            || certificate.verify_signature(Some(above.public_key())).is_err()
        {
            return Err(OpenError::Order(position));
        }
    }
    ends.into_iter().min().ok_or(OpenError::Length(0))
}

fn parse<'a>(der: &'a [u8], position: usize, trust_domain: &TrustDomain) -> Result<X509Certificate<'a>, OpenError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => Err(OpenError::Authority {
            position,
            trust_domain: trust_domain.clone(),
            source: CertificateError::Malformed.into(),
        }),
    }
}

fn exists(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(|source| OpenError::File { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    fs::read(path).map_err(|source| OpenError::File { path: path.to_owned(), source })
}
