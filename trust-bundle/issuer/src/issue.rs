//! Issuing an X.509-SVID.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{LeafError, SpiffeId, TrustDomain, check_leaf};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{OpenError, RequestError, root::random_serial};

/// How long an SVID lives unless the operator says otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// An issued X.509-SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svid {
    /// The leaf, then the certificates above it, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's last valid second.
    pub not_after: SystemTime,
}

/// Why no SVID is issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The identity is of another trust domain than the authority.
    #[error("{id} is not of the authority's trust domain {expected}")]
    TrustDomain {
        /// Whom the certificate was to name.
        id: SpiffeId,
        /// The authority's own trust domain.
        expected: TrustDomain,
    },
    /// The identity has no path, so it is the authority's own name.
    #[error("{0} has no path, so it names no workload")]
    NoPath(SpiffeId),
    /// Nothing would be left of the lifetime: it is zero, or the authority has expired.
    #[error("the certificate would have no time to live")]
    NoLifetime,
    /// What was issued is not what a peer would accept; the authority's certificate or key is unusual.
    #[error("the issued certificate is no X.509-SVID: {0}")]
    NotAnSvid(#[from] LeafError),
    /// There is no intermediate to sign with, and none can be made.
    #[error("nothing can sign: {0}")]
    Authority(#[from] OpenError),
    /// Signing failed.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// What a leaf is made from.
pub(crate) struct Leaf<'a> {
    pub(crate) id: &'a SpiffeId,
    /// The issuer's word to itself; empty: none.
    pub(crate) mark: &'a str,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Leaf<'_> {
    pub(crate) fn sign(
        &self,
        key: &impl PublicKeyData,
        issuer: &rcgen::Issuer<'static, KeyPair>,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Isthmus");
        if !self.mark.is_empty() {
            name.push(DnType::OrganizationalUnitName, self.mark);
        }
        let mut params = CertificateParams::default();
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.distinguished_name = name;
        params.subject_alt_names = vec![SanType::URI(self.id.to_string().try_into()?)];
        // `NoCa` would leave basic constraints out.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.use_authority_key_identifier_extension = true;
        let leaf: CertificateDer<'static> = params.signed_by(key, issuer)?.into();
        check_leaf(&leaf)?;
        Ok(leaf)
    }
}

/// The word that [`issue_marked`](crate::Authority::issue_marked) put into a leaf (DER); `None` when there is none, or no one word.
/// Only of a certificate that was verified does it mean anything.
pub fn mark(leaf: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let mut units = certificate.subject().iter_organizational_unit();
    match (units.next(), units.next()) {
        (Some(unit), None) => unit.as_str().ok().map(str::to_owned),
        _ => None,
    }
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo, DER): the same for every certificate of one key.
pub fn key_digest(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(digest(&SHA256, certificate.public_key().raw).as_ref().to_vec())
}

/// `time` cut to the second, as certificates carry it.
pub(crate) fn whole_seconds(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}
