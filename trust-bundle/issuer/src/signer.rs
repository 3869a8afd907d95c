//! A signing certificate with its key in memory, and what stands above it.

use std::time::SystemTime;

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{CertificateError, TrustDomain, Validity, check_authority, validity};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::OpenError;

/// The longest chain above a leaf, the root included: peers accept chains of four, their leaf among them.
const MAX_CERTIFICATES: usize = 4;

/// Signs leaves or intermediates.
pub(crate) struct Signer {
    /// The signing certificate first, the root last; equal when the root itself signs.
    certificates: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

impl Signer {
    pub(crate) fn new(
        trust_domain: &TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
        key: KeyPair,
    ) -> Result<Self, OpenError> {
        let not_after = check_chain(trust_domain, &certificates)?;
        let first = certificates.first().ok_or(OpenError::Length(0))?;
        let parsed = parse(first, 1, trust_domain)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(OpenError::KeyMismatch);
        }
        let subject = parsed.subject().as_raw().to_vec();
        let not_before = own_validity(first, trust_domain)?.not_before;
        let issuer = Issuer::from_ca_cert_der(first, key)?;
        let signer = Self { issuer, validity: Validity { not_before, not_after }, certificates };
        if signer.issuer_name()? != subject {
            return Err(OpenError::Subject);
        }
        Ok(signer)
    }

    /// The issuer's name as leaves signed here carry it, seen on a throw-away certificate: the library writes names anew,
    /// and one written otherwise than in the authority's certificate would break every chain.
    fn issuer_name(&self) -> Result<Vec<u8>, OpenError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let probe = rcgen::CertificateParams::default().signed_by(&key, &self.issuer)?;
        let probe = X509Certificate::from_der(probe.der()).map_err(|_| OpenError::Subject)?.1;
        Ok(probe.issuer().as_raw().to_vec())
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// From the signing certificate's first second to the earliest end of it and those above.
    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }

    /// The last certificate.
    pub(crate) fn root(&self) -> Option<&CertificateDer<'static>> {
        self.certificates.last()
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// What follows a leaf in its chain; nothing when the root itself signs.
    pub(crate) fn below_root(&self) -> &[CertificateDer<'static>] {
        self.certificates.split_last().map(|(_, below)| below).unwrap_or_default()
    }
}

/// Each may sign for the trust domain and is signed by the next, the last by itself. Returns the earliest end.
pub(crate) fn check_chain(
    trust_domain: &TrustDomain,
    certificates: &[CertificateDer<'static>],
) -> Result<SystemTime, OpenError> {
    if certificates.len() > MAX_CERTIFICATES {
        return Err(OpenError::Length(certificates.len()));
    }
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

/// Whether an intermediate may stand between this root and a leaf.
pub(crate) fn allows_intermediates(root: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(root) else { return false };
    let constraints = certificate.basic_constraints().ok().flatten();
    constraints.is_some_and(|constraints| constraints.value.path_len_constraint != Some(0))
}

fn own_validity(der: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Validity, OpenError> {
    let refused = |error: CertificateError| OpenError::Authority {
        position: 1,
        trust_domain: trust_domain.clone(),
        source: error.into(),
    };
    validity(der).map_err(refused)
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
