//! Certificates made to order.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use spiffe_identity::TrustDomain;

pub(crate) const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
pub(crate) const ALTERNATIVE_NAMES: &[u64] = &[2, 5, 29, 17];
pub(crate) const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
/// An extension nobody knows.
pub(crate) const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];

/// DER of a key usage with digitalSignature alone.
pub(crate) const DIGITAL_SIGNATURE: &[u8] = &[3, 2, 7, 0x80];

pub(crate) fn trust_domain() -> TrustDomain {
    "east.mesh.example".parse().unwrap()
}

pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

pub(crate) fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// An X.509-SVID with nothing wrong.
pub(crate) fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://east.mesh.example/ns/shop/sa/cart")];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A root with nothing wrong.
pub(crate) fn root() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://east.mesh.example")];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn signed(params: &CertificateParams) -> Certificate {
    params.self_signed(&KeyPair::generate().unwrap()).unwrap()
}
