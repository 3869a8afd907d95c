//! Judging a peer's chain, and the rustls verifiers that do it in each handshake.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration, time::SystemTime};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use spiffe_identity::{AuthorityError, LeafError, SpiffeId, TrustDomain, check_authority, check_leaf};

use crate::{
    provider,
    trust::{Roots, Snapshot, TrustStore},
};

/// The longest chain a peer may send, its leaf included.
pub const MAX_CHAIN: usize = 4;

/// How many expected identities an error spells out.
const SPELLED_OUT: usize = 4;

/// In which role a peer showed its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The peer is the TLS client.
    Client,
    /// The peer is the TLS server.
    Server,
}

/// Whom a client is ready to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedPeer {
    /// One of these identities; an empty list expects nobody.
    AnyOf(Arc<[SpiffeId]>),
    /// Any workload of the trust domain.
    AnyInTrustDomain(TrustDomain),
}

impl ExpectedPeer {
    /// Exactly this identity.
    pub fn exactly(id: SpiffeId) -> Self {
        Self::AnyOf([id].into())
    }

    /// Whether this identity is expected.
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::AnyOf(ids) => ids.contains(id),
            Self::AnyInTrustDomain(trust_domain) => id.trust_domain() == trust_domain,
        }
    }
}

impl fmt::Display for ExpectedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyOf(ids) if ids.is_empty() => f.write_str("none"),
            Self::AnyOf(ids) => {
                for (index, id) in ids.iter().take(SPELLED_OUT).enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{id}")?;
                }
                match ids.len().saturating_sub(SPELLED_OUT) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::AnyInTrustDomain(trust_domain) => write!(f, "any workload of {trust_domain}"),
        }
    }
}

/// Why a peer is not believed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The chain is longer than [`MAX_CHAIN`].
    #[error("the peer's chain has {0} certificates, more than 4")]
    ChainTooLong(usize),
    /// The leaf is not an X.509-SVID.
    #[error("the peer's certificate is not an X.509-SVID: {0}")]
    Leaf(#[from] LeafError),
    /// The identity or its trust domain is quarantined.
    #[error("peer {0} is denied")]
    Denied(SpiffeId),
    /// What is known of other trust domains than the own one is too old to go by.
    #[error("peer {0} is not believed: what is known of other trust domains is older than maxTrustAge")]
    Lapsed(SpiffeId),
    /// There is no bundle for the leaf's trust domain.
    #[error("peer {0} is of a trust domain without a bundle here")]
    UnknownTrustDomain(SpiffeId),
    /// The bundle has no root that is valid now.
    #[error("peer {0} is of a trust domain without a root that is valid now")]
    NoRoots(SpiffeId),
    /// A certificate between leaf and root may not sign.
    #[error("certificate {position} in the chain of peer {id} may not sign: {source}")]
    Intermediate {
        /// Who was being judged.
        id: SpiffeId,
        /// Its place in the chain; the leaf is 0.
        position: usize,
        /// The rule that does not hold.
        source: AuthorityError,
    },
    /// A certificate of the chain has expired.
    #[error("the certificate of peer {0} has expired")]
    Expired(SpiffeId),
    /// A certificate of the chain is not valid yet.
    #[error("the certificate of peer {0} is not valid yet")]
    NotYetValid(SpiffeId),
    /// No root of the leaf's own trust domain signed the chain.
    #[error("peer {0} is signed by no root of its own trust domain")]
    UnknownIssuer(SpiffeId),
    /// RFC 5280 path building failed in another way.
    #[error("the chain of peer {id} is not valid: {source}")]
    Path {
        /// Who was being judged.
        id: SpiffeId,
        /// What path building says.
        source: webpki::Error,
    },
    /// The server is somebody, but not the one this connection is for.
    #[error("peer {id} is not among the expected identities: {expected}")]
    NotExpected {
        /// Who it is.
        id: SpiffeId,
        /// Whom the client expected.
        expected: ExpectedPeer,
    },
}

/// As it reads: rustls prints errors of verifiers by `Debug`.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(crate) fn verify_chain(
    snapshot: &Snapshot,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    purpose: Purpose,
    now: UnixTime,
) -> Result<SpiffeId, PeerError> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(PeerError::ChainTooLong(intermediates.len() + 1));
    }
    let id = check_leaf(leaf)?;
    if let Some(error) = snapshot.overridden(&id) {
        return Err(error);
    }
    let Some(roots) = snapshot.roots(id.trust_domain()) else { return Err(PeerError::UnknownTrustDomain(id)) };
    let anchors = valid_anchors(roots, now);
    if anchors.is_empty() {
        return Err(PeerError::NoRoots(id));
    }
    for (index, der) in intermediates.iter().enumerate() {
        if let Err(source) = check_authority(der, id.trust_domain()) {
            return Err(PeerError::Intermediate { id, position: index + 1, source });
        }
    }
    match build_path(leaf, intermediates, &anchors, purpose, now) {
        Ok(()) => Ok(id),
        Err(webpki::Error::CertExpired { .. }) => Err(PeerError::Expired(id)),
        Err(webpki::Error::CertNotValidYet { .. }) => Err(PeerError::NotYetValid(id)),
        // A root of the same name with another key shows as a bad signature.
        Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
            Err(PeerError::UnknownIssuer(id))
        }
        Err(source) => Err(PeerError::Path { id, source }),
    }
}

/// The anchors valid at `now`; almost always all of them, and then nothing is copied.
fn valid_anchors(roots: &Roots, now: UnixTime) -> Cow<'_, [TrustAnchor<'static>]> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
    if roots.validities.iter().all(|validity| validity.contains(now)) {
        return Cow::Borrowed(&roots.anchors);
    }
    let pairs = roots.anchors.iter().zip(&roots.validities);
    pairs.filter(|(_, validity)| validity.contains(now)).map(|(anchor, _)| anchor.clone()).collect()
}

fn build_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'static>],
    purpose: Purpose,
    now: UnixTime,
) -> Result<(), webpki::Error> {
    let usage = match purpose {
        Purpose::Client => webpki::KeyUsage::client_auth(),
        Purpose::Server => webpki::KeyUsage::server_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    let leaf = webpki::EndEntityCert::try_from(leaf)?;
    leaf.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None).map(|_| ())
}

fn refuse(error: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn verify_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
}

/// Never asked for: the configurations offer TLS 1.3 alone.
fn refuse_tls12() -> rustls::Error {
    PeerIncompatible::Tls12NotOfferedOrEnabled.into()
}

/// A server's verifier: any client whose own trust domain vouches for it. What the client may do is not decided here.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) trust: TrustStore,
    pub(crate) mandatory: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        verify_chain(&self.trust.snapshot(), leaf, intermediates, Purpose::Client, now).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client's verifier: the server must be one of the expected identities. Host names mean nothing here.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) trust: TrustStore,
    pub(crate) expected: ExpectedPeer,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let id = verify_chain(&self.trust.snapshot(), leaf, intermediates, Purpose::Server, now).map_err(refuse)?;
        if !self.expected.accepts(&id) {
            return Err(refuse(PeerError::NotExpected { id, expected: self.expected.clone() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
