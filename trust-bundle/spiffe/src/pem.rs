//! Certificates and keys as PEM text (RFC 7468): how they lie in files.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Characters a line of base64 has (RFC 7468, section 2).
const LINE: usize = 64;

/// Why a text holds no certificates or key.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The text is not PEM.
    #[error("not PEM: {0}")]
    Syntax(#[source] rustls_pki_types::pem::Error),
    /// The text is PEM, and what was asked for is not in it.
    #[error("no {0} in the PEM text")]
    Missing(&'static str),
}

/// The certificates as one text, in their order.
pub fn certificates_to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    certificates.into_iter().map(|der| block("CERTIFICATE", der)).collect()
}

/// All certificates of a text, in their order; other blocks are passed over.
///
/// # Errors
/// When the text is not PEM or holds no certificate.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = certificates.map_err(PemError::Syntax)?;
    if certificates.is_empty() { Err(PemError::Missing("certificate")) } else { Ok(certificates) }
}

/// The private key as a text. Write it to files of mode 0600 only.
pub fn private_key_to_pem(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    block(label, key.secret_der())
}

/// The first private key of a text.
///
/// # Errors
/// When the text is not PEM or holds no private key.
pub fn private_key_from_pem(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(PemError::Missing("private key")),
        Err(error) => Err(PemError::Syntax(error)),
    }
}

fn block(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
