//! Making roots and intermediates.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{BACKDATE, SpiffeId, TrustDomain};

use crate::{seal::to_hex, signer::Signer};

/// How long a root lives: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3652 * 24 * 3600);

/// Intermediates that may stand between a root and a leaf.
const INTERMEDIATES: u8 = 1;

/// The certificate of a new root for `key`.
pub(crate) fn new_root(
    trust_domain: &TrustDomain,
    key: &KeyPair,
    now: SystemTime,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let params = authority_params(trust_domain, "root", INTERMEDIATES, now, now + ROOT_LIFETIME)?;
    Ok(params.self_signed(key)?.into())
}

/// The certificate of a new intermediate for `key`, below `root`.
pub(crate) fn new_intermediate(
    root: &Signer,
    trust_domain: &TrustDomain,
    key: &KeyPair,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = authority_params(trust_domain, "intermediate", 0, now, not_after)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, root.issuer())?.into())
}

fn authority_params(
    trust_domain: &TrustDomain,
    kind: &str,
    below: u8,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = not_after.into();
    params.distinguished_name = subject(kind, &serial);
    params.subject_alt_names = vec![SanType::URI(SpiffeId::of_trust_domain(trust_domain).to_string().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// A subject no other authority has. A trust domain's name may be longer than a common name can, and stands in the SAN.
fn subject(kind: &str, serial: &[u8]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Isthmus");
    name.push(DnType::CommonName, format!("Isthmus {kind} {}", to_hex(serial)));
    name
}

/// 127 random bits: unpredictable, positive, never zero at the front (RFC 5280, section 4.1.2.2).
pub(crate) fn random_serial() -> Result<[u8; 16], rcgen::Error> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(serial)
}
