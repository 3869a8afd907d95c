//! Making a root.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{SpiffeId, TrustDomain};

use crate::issue::BACKDATE;

/// How long a root lives: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3652 * 24 * 3600);

/// Intermediates that may stand between this root and a leaf.
const INTERMEDIATES: u8 = 1;

/// The certificate of a new root for `key`.
pub(crate) fn new_root(
    trust_domain: &TrustDomain,
    key: &KeyPair,
    now: SystemTime,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.distinguished_name = subject(&serial);
    params.subject_alt_names = vec![SanType::URI(SpiffeId::of_trust_domain(trust_domain).to_string().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(INTERMEDIATES));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params.self_signed(key)?.into())
}

/// A subject no other root has. A trust domain's name may be longer than a common name can, and stands in the SAN.
fn subject(serial: &[u8]) -> DistinguishedName {
    let digits: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Isthmus");
    name.push(DnType::CommonName, format!("Isthmus root {digits}"));
    name
}

/// 127 random bits: unpredictable, positive, never zero at the front (RFC 5280, section 4.1.2.2).
pub(crate) fn random_serial() -> Result<[u8; 16], rcgen::Error> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(serial)
}
