//! An authority's files, read and written.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{TrustDomain, pem};
use tracing::warn;

use crate::{
    AuthorityFiles, OpenError, SealingKey,
    files::{read_if_there, remove, write_public, write_secret},
    root::new_root,
    seal::is_sealed,
    signer::Signer,
};

/// The files of one authority, and what unseals its key.
pub(crate) struct Disk {
    pub(crate) files: AuthorityFiles,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) seal: Option<SealingKey>,
}

impl Disk {
    /// Makes a new root and writes its files, the key first: whoever sees the certificate can count on the key.
    pub(crate) fn create(&self, now: SystemTime) -> Result<(), OpenError> {
        let (root, key) = self.generate_root(now)?;
        self.write_key(&key)?;
        self.write_certificates(&self.files.certificates, &[root])
    }

    fn generate_root(&self, now: SystemTime) -> Result<(CertificateDer<'static>, KeyPair), OpenError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = new_root(&self.trust_domain, &key, now)?;
        Ok((root, key))
    }

    /// What `ca.crt` holds.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, OpenError> {
        let path = &self.files.certificates;
        parse_certificates(path, &std::fs::read(path).map_err(|source| failed(path, source))?)
    }

    /// The key of the first certificate in `ca.crt`, unsealed; `None` when it was taken away.
    pub(crate) fn key(&self) -> Result<Option<KeyPair>, OpenError> {
        let path = &self.files.key;
        let Some(text) = read_if_there(path).map_err(|source| failed(path, source))? else { return Ok(None) };
        let text = self.unseal(path, text)?;
        parse_key(path, &text).map(Some)
    }

    /// Whether there is a key, whatever is in it.
    pub(crate) fn has_key(&self) -> Result<bool, OpenError> {
        let path = &self.files.key;
        path.try_exists().map_err(|source| failed(path, source))
    }

    /// Whether there is a key that lies on disk as it is although there is a sealing key.
    pub(crate) fn is_unsealed(&self) -> Result<bool, OpenError> {
        let path = &self.files.key;
        let text = read_if_there(path).map_err(|source| failed(path, source))?;
        Ok(self.seal.is_some() && text.is_some_and(|text| !is_sealed(&text)))
    }

    pub(crate) fn write_key(&self, key: &KeyPair) -> Result<(), OpenError> {
        let path = &self.files.key;
        let text = self.sealed(path, key.serialize_pem())?;
        write_secret(path, &text).map_err(|source| failed(path, source))
    }

    fn write_certificates(&self, path: &Path, certificates: &[CertificateDer<'static>]) -> Result<(), OpenError> {
        write_public(path, &pem::certificates_to_pem(certificates)).map_err(|source| failed(path, source))
    }

    fn sealed(&self, path: &Path, text: String) -> Result<String, OpenError> {
        let Some(seal) = &self.seal else { return Ok(text) };
        seal.seal(&self.trust_domain, &text).map_err(|source| OpenError::Seal { path: path.to_owned(), source })
    }

    fn unseal(&self, path: &Path, text: Vec<u8>) -> Result<Vec<u8>, OpenError> {
        match &self.seal {
            _ if !is_sealed(&text) => Ok(text),
            None => Err(OpenError::Sealed(path.to_owned())),
            Some(seal) => seal
                .unseal(&self.trust_domain, &text)
                .map_err(|source| OpenError::Seal { path: path.to_owned(), source }),
        }
    }

    /// An intermediate that was stored, if it is whole and below `root`. One that is not is made anew.
    pub(crate) fn intermediate(&self, path: &Path, root: &CertificateDer<'static>) -> Option<Signer> {
        let stored = || -> Result<Option<Signer>, OpenError> {
            let Some(text) = read_if_there(path).map_err(|source| failed(path, source))? else { return Ok(None) };
            let (certificates, key) = (parse_certificates(path, &text)?, parse_key(path, &text)?);
            Signer::new(&self.trust_domain, certificates, key).map(Some)
        };
        match stored() {
            Ok(signer) => signer.filter(|signer| signer.root() == Some(root)),
            Err(error) => {
                warn!(%error, path = %path.display(), "a stored intermediate is not used");
                None
            }
        }
    }

    /// Stores an intermediate with its key. On a disk that cannot be written it lives in memory alone.
    pub(crate) fn store_intermediate(&self, path: &Path, certificates: &[CertificateDer<'static>], key: &KeyPair) {
        let text = pem::certificates_to_pem(certificates) + &key.serialize_pem();
        if let Err(error) = write_secret(path, &text) {
            warn!(%error, path = %path.display(), "an intermediate is not stored; after a restart another one is made");
        }
    }

    /// The next intermediate becomes the one in use.
    pub(crate) fn promote_intermediate(&self) {
        let (next, online) = (self.files.online_next(), self.files.online());
        match std::fs::rename(&next, &online) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, path = %online.display(), "an intermediate is not stored");
            }
            _ => {}
        }
    }

    /// Certificate of the next root, when one is prepared.
    pub(crate) fn next_root(&self) -> Result<Option<CertificateDer<'static>>, OpenError> {
        self.one_certificate(&self.files.next_root())
    }

    /// Certificate of the root before, until it is retired.
    pub(crate) fn old_root(&self) -> Result<Option<CertificateDer<'static>>, OpenError> {
        self.one_certificate(&self.files.old_root())
    }

    fn one_certificate(&self, path: &Path) -> Result<Option<CertificateDer<'static>>, OpenError> {
        let Some(text) = read_if_there(path).map_err(|source| failed(path, source))? else { return Ok(None) };
        Ok(certificates_and_rest(path, &text)?.0.into_iter().next())
    }

    /// Makes the next root, certificate and key in one file so that there is never half of it.
    pub(crate) fn prepare_root(&self, now: SystemTime) -> Result<CertificateDer<'static>, OpenError> {
        let path = self.files.next_root();
        let present = read_if_there(&self.files.key).map_err(|source| failed(&self.files.key, source))?;
        if self.seal.is_none() && present.is_some_and(|text| is_sealed(&text)) {
            // Its successor must not lie open where this one does not.
            return Err(OpenError::Sealed(self.files.key.clone()));
        }
        let (root, key) = self.generate_root(now)?;
        let text = pem::certificates_to_pem([&root]) + &self.sealed(&path, key.serialize_pem())?;
        write_secret(&path, &text).map_err(|source| failed(&path, source))?;
        Ok(root)
    }

    /// Destroys the next root.
    pub(crate) fn discard_next_root(&self) -> Result<(), OpenError> {
        let path = self.files.next_root();
        remove(&path).map_err(|source| failed(&path, source))
    }

    /// Puts the next root in the place of the present one, whose key is destroyed. The certificate's replacement decides:
    /// after a crash before it nothing has changed, after one behind it [`finish_activation`](Self::finish_activation) goes on.
    pub(crate) fn activate_root(&self, next: &CertificateDer<'static>) -> Result<(), OpenError> {
        let present = self.certificates()?;
        if present.first() != Some(next) {
            self.write_certificates(&self.files.old_root(), &present)?;
            self.write_certificates(&self.files.certificates, std::slice::from_ref(next))?;
        }
        self.finish_activation()
    }

    /// Goes on with an activation that was interrupted after its decisive step.
    pub(crate) fn finish_activation(&self) -> Result<(), OpenError> {
        let path = self.files.next_root();
        let Some(text) = read_if_there(&path).map_err(|source| failed(&path, source))? else { return Ok(()) };
        let (certificates, key) = certificates_and_rest(&path, &text)?;
        if certificates.first() != self.certificates()?.first() {
            return Ok(());
        }
        let place = &self.files.key;
        let key = String::from_utf8_lossy(&key).into_owned();
        write_secret(place, &key).map_err(|source| failed(place, source))?;
        remove(&path).map_err(|source| failed(&path, source))
    }

    /// Forgets the root before.
    pub(crate) fn retire_root(&self) -> Result<(), OpenError> {
        let path = self.files.old_root();
        remove(&path).map_err(|source| failed(&path, source))
    }
}

/// The certificates at the front of a text, and the key behind them, sealed or not.
fn certificates_and_rest(path: &Path, text: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Vec<u8>), OpenError> {
    const END: &[u8] = b"-----END CERTIFICATE-----\n";
    let place = text.windows(END.len()).rposition(|window| window == END);
    let (certificates, rest) = text.split_at(place.map_or(0, |place| place + END.len()));
    Ok((parse_certificates(path, certificates)?, rest.to_vec()))
}

fn parse_certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    pem::certificates_from_pem(text).map_err(|source| OpenError::Pem { path: path.to_owned(), source })
}

fn parse_key(path: &Path, text: &[u8]) -> Result<KeyPair, OpenError> {
    let key = pem::private_key_from_pem(text);
    let key = key.map_err(|source| OpenError::Pem { path: path.to_owned(), source })?;
    Ok(KeyPair::try_from(&key)?)
}

fn failed(path: &Path, source: io::Error) -> OpenError {
    OpenError::File { path: PathBuf::from(path), source }
}
