//! What is taken from a certificate request (PKCS#10): the public key, once its owner proved that it holds the private one.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384},
    prelude::FromDer,
    x509,
};

/// The largest request that is read at all.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Why a certificate request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Larger than [`MAX_REQUEST_BYTES`].
    #[error("the certificate request has {0} bytes, more than 16384")]
    TooLarge(usize),
    /// Not exactly one PKCS#10 request in DER.
    #[error("the certificate request is malformed")]
    Malformed,
    /// The key is of a kind that SVIDs are not issued for.
    #[error("the request's key is neither EC P-256 nor P-384")]
    KeyKind,
    /// The signature is not the key's: whoever asks does not hold the private key.
    #[error("the certificate request's signature is not its key's")]
    Signature,
}

pub(crate) fn public_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, RequestError> {
    if csr.len() > MAX_REQUEST_BYTES {
        return Err(RequestError::TooLarge(csr.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr).map_err(|_| RequestError::Malformed)?;
    if !rest.is_empty() {
        return Err(RequestError::Malformed);
    }
    let key = &request.certification_request_info.subject_pki;
    if !is_supported(key) {
        return Err(RequestError::KeyKind);
    }
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::KeyKind)
}

fn is_supported(key: &x509::SubjectPublicKeyInfo<'_>) -> bool {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384)
}
