//! What an X.509-SVID leaf must say (X509-SVID, sections 2 to 5).

use crate::{
    CertificateError, IdError, SpiffeId,
    certificate::{Extensions, UriNames, parse},
};

/// Why a certificate is not an X.509-SVID that may authenticate anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// The certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Not exactly one URI in the Subject Alternative Name.
    #[error("the certificate carries {0} URI names instead of one")]
    UriNames(usize),
    /// The URI is not a SPIFFE ID.
    #[error("the certificate's URI name is not a SPIFFE ID: {0}")]
    Id(#[source] IdError),
    /// The SPIFFE ID names a trust domain and no workload.
    #[error("{0} has no path, so it names no workload")]
    NoPath(SpiffeId),
    /// Basic constraints are absent, so the certificate does not say that it is no authority.
    #[error("the certificate has no basic constraints")]
    NoBasicConstraints,
    /// The certificate is an authority's: those sign and never authenticate.
    #[error("the certificate is a certificate authority's")]
    IsAuthority,
    /// The key usage extension is absent.
    #[error("the certificate has no key usage")]
    NoKeyUsage,
    /// The key usage extension is not marked critical.
    #[error("the certificate's key usage is not critical")]
    KeyUsageNotCritical,
    /// The key may not make the signature that TLS asks for.
    #[error("the certificate's key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// The key may sign certificates or revocation lists.
    #[error("the certificate's key usage allows {0}, which a leaf must not")]
    SigningKeyUsage(&'static str),
    /// The extended key usage is present and lacks one of serverAuth and clientAuth.
    #[error("the certificate's extended key usage lacks {0}")]
    ExtendedKeyUsage(&'static str),
}

/// Checks a leaf by every rule of the X.509-SVID standard that does not need its issuer or a clock, and returns whom it names.
///
/// The caller still has to build the RFC 5280 path, at the current time, to a root in the bundle of the ID's trust domain.
///
/// # Errors
/// The first rule that does not hold.
pub fn check_leaf(der: &[u8]) -> Result<SpiffeId, LeafError> {
    let certificate = parse(der)?;
    let extensions = Extensions::read(&certificate, false)?;
    let constraints = extensions.basic_constraints.as_ref().ok_or(LeafError::NoBasicConstraints)?;
    if constraints.ca {
        return Err(LeafError::IsAuthority);
    }
    check_usage(&extensions)?;
    let id = match extensions.uri_names() {
        UriNames::None => return Err(LeafError::UriNames(0)),
        UriNames::Several(count) => return Err(LeafError::UriNames(count)),
        UriNames::One(id) => id.map_err(LeafError::Id)?,
    };
    if id.path().is_empty() {
        return Err(LeafError::NoPath(id));
    }
    Ok(id)
}

fn check_usage(extensions: &Extensions<'_>) -> Result<(), LeafError> {
    let (critical, usage) = extensions.key_usage.as_ref().ok_or(LeafError::NoKeyUsage)?;
    if !critical {
        return Err(LeafError::KeyUsageNotCritical);
    }
    if !usage.digital_signature() {
        return Err(LeafError::NoDigitalSignature);
    }
    if usage.key_cert_sign() {
        return Err(LeafError::SigningKeyUsage("keyCertSign"));
    }
    if usage.crl_sign() {
        return Err(LeafError::SigningKeyUsage("cRLSign"));
    }
    match &extensions.extended_key_usage {
        Some(usage) if !usage.server_auth => Err(LeafError::ExtendedKeyUsage("serverAuth")),
        Some(usage) if !usage.client_auth => Err(LeafError::ExtendedKeyUsage("clientAuth")),
        _ => Ok(()),
    }
}
