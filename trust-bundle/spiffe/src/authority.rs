//! What a signing certificate must say (X509-SVID, sections 3 to 5), be it a bundle's root or an intermediate.

use crate::{
    CertificateError, IdError, JwkError, SpiffeId, TrustDomain,
    bundle::PublicKey,
    certificate::{Extensions, UriNames, parse},
};

/// Why a certificate may not sign for a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Basic constraints are absent or say CA=false.
    #[error("the certificate is not a certificate authority's")]
    NotAuthority,
    /// Key usage is absent or lacks keyCertSign.
    #[error("the certificate's key usage lacks keyCertSign")]
    NoCertificateSigning,
    /// More than one URI name.
    #[error("the certificate carries {0} URI names; an authority has one at most")]
    UriNames(usize),
    /// The URI name is not a SPIFFE ID.
    #[error("the certificate's URI name is not a SPIFFE ID: {0}")]
    Id(#[source] IdError),
    /// The SPIFFE ID has a path: signing certificates name a trust domain.
    #[error("{0} has a path, which a signing certificate must not")]
    Path(SpiffeId),
    /// The SPIFFE ID names another trust domain.
    #[error("the certificate is an authority of {found}, not of {expected}")]
    TrustDomain {
        /// The trust domain it was offered for.
        expected: TrustDomain,
        /// The trust domain it names.
        found: TrustDomain,
    },
    /// The key is of a kind that a bundle cannot carry everywhere.
    #[error(transparent)]
    Key(#[from] JwkError),
}

/// Checks a certificate that is to sign for `trust_domain`: CA=true, keyCertSign, at most one URI name and that one the trust
/// domain itself, an EC P-256, EC P-384 or RSA key (2048 bits or more), no critical extension that is not understood.
///
/// Whether it is valid *now* is the caller's concern, and so is who signed it.
///
/// # Errors
/// The first rule that does not hold.
pub fn check_authority(der: &[u8], trust_domain: &TrustDomain) -> Result<(), AuthorityError> {
    let certificate = parse(der)?;
    let extensions = Extensions::read(&certificate, true)?;
    if !extensions.basic_constraints.as_ref().is_some_and(|constraints| constraints.ca) {
        return Err(AuthorityError::NotAuthority);
    }
    if !extensions.key_usage.as_ref().is_some_and(|(_, usage)| usage.key_cert_sign()) {
        return Err(AuthorityError::NoCertificateSigning);
    }
    match extensions.uri_names() {
        UriNames::None => {}
        UriNames::Several(count) => return Err(AuthorityError::UriNames(count)),
        UriNames::One(id) => {
            let id = id.map_err(AuthorityError::Id)?;
            if !id.path().is_empty() {
                return Err(AuthorityError::Path(id));
            }
            if id.trust_domain() != trust_domain {
                return Err(AuthorityError::TrustDomain {
                    expected: trust_domain.clone(),
                    found: id.trust_domain().clone(),
                });
            }
        }
    }
    PublicKey::of(&certificate)?;
    Ok(())
}
