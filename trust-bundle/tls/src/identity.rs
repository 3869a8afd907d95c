//! A process's own X.509-SVID, and how it asks for one.

use std::{fmt, sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe_identity::{LeafError, SpiffeId, Validity, check_leaf, pem, validity};
use tokio::sync::watch;

use crate::{MAX_CHAIN, provider};

/// A chain and its key, swapped while listeners and connections live. Clones share one identity.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    current: ArcSwapOption<Svid>,
    revision: watch::Sender<u64>,
}

struct Svid {
    certified: Arc<CertifiedKey>,
    key: PrivateKeyDer<'static>,
    id: SpiffeId,
    validity: Validity,
}

/// Why a chain and key are not an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The chain is empty or longer than a peer would accept.
    #[error("the chain has {0} certificates, outside 1 to 4")]
    ChainLength(usize),
    /// The first certificate is not an X.509-SVID.
    #[error("the certificate is not an X.509-SVID: {0}")]
    Leaf(#[from] LeafError),
    /// The key cannot be used, or is another one than the certificate's.
    #[error("the private key does not serve the certificate: {0}")]
    Key(#[source] rustls::Error),
    /// A file's text is not what it should be.
    #[error(transparent)]
    Pem(#[from] pem::PemError),
}

impl Identity {
    /// No identity yet: servers refuse every handshake and clients show no certificate until [`replace`](Self::replace).
    pub fn empty() -> Self {
        Self { inner: Arc::new(Inner { current: ArcSwapOption::empty(), revision: watch::Sender::new(0) }) }
    }

    /// An identity from its chain, leaf first and without the root, and the leaf's key.
    ///
    /// # Errors
    /// When a peer would refuse the chain for its form, or the key does not match. Issuer and time are not looked at.
    pub fn from_der(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, IdentityError> {
        let identity = Self::empty();
        identity.replace(chain, key)?;
        Ok(identity)
    }

    /// [`from_der`](Self::from_der) from the PEM texts of a chain and a key.
    ///
    /// # Errors
    /// As there, or when a text is not PEM.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        Self::from_der(pem::certificates_from_pem(chain)?, pem::private_key_from_pem(key)?)
    }

    /// Takes on a new chain and key: the next handshake shows them, live connections keep theirs.
    ///
    /// # Errors
    /// As [`from_der`](Self::from_der); the old identity stays then.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), IdentityError> {
        let leaf = match chain.first() {
            Some(leaf) if chain.len() <= MAX_CHAIN => leaf,
            _ => return Err(IdentityError::ChainLength(chain.len())),
        };
        let id = check_leaf(leaf)?;
        let validity = validity(leaf).map_err(LeafError::from)?;
        let usable = provider().key_provider.load_private_key(key.clone_key()).map_err(IdentityError::Key)?;
        let certified = CertifiedKey::new(chain, usable);
        certified.keys_match().map_err(IdentityError::Key)?;
        self.inner.current.store(Some(Arc::new(Svid { certified: Arc::new(certified), key, id, validity })));
        self.inner.revision.send_modify(|revision| *revision += 1);
        Ok(())
    }

    /// Whom the certificate names; `None` before the first one.
    pub fn spiffe_id(&self) -> Option<SpiffeId> {
        self.inner.current.load().as_ref().map(|svid| svid.id.clone())
    }

    /// When the certificate is valid; `None` before the first one.
    pub fn validity(&self) -> Option<Validity> {
        self.inner.current.load().as_ref().map(|svid| svid.validity)
    }

    /// The last second the certificate is valid; `None` before the first one.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.validity().map(|validity| validity.not_after)
    }

    /// The chain, leaf first; empty before the first one.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.inner.current.load().as_ref().map(|svid| svid.certified.cert.clone()).unwrap_or_default()
    }

    /// The chain and its key, of one SVID: for whoever hands the identity on. `None` before the first one.
    pub fn chain_and_key(&self) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        self.inner.current.load().as_ref().map(|svid| (svid.certified.cert.clone(), svid.key.clone_key()))
    }

    /// Counts replacements: a way to wait for the first identity.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.inner.current.load().as_ref().map(|svid| svid.certified.clone())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.spiffe_id()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        self.inner.current.load().is_some()
    }
}

/// A key pair or request could not be made; the system's randomness failed.
#[derive(Debug, thiserror::Error)]
#[error("no certificate request could be made: {0}")]
pub struct RequestError(#[from] rcgen::Error);

/// A new P-256 key (PKCS#8) and the certificate request (PKCS#10 DER) that proves its possession. The request names nobody:
/// the issuer decides whom the key stands for.
///
/// # Errors
/// When the system's randomness fails.
pub fn new_key_and_csr() -> Result<(PrivateKeyDer<'static>, Vec<u8>), RequestError> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut request = rcgen::CertificateParams::default();
    request.distinguished_name = rcgen::DistinguishedName::new();
    let csr = request.serialize_request(&key)?.der().to_vec();
    Ok((PrivateKeyDer::Pkcs8(key.serialize_der().into()), csr))
}
