//! One authority, one certificate for the members, one for clients.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use super::MEMBERS;
use super::network::{Network, peer_address};

/// Writes `ca.crt`, and `member` and `client` as `.crt` and `.key`.
pub(super) fn write(directory: &Path, network: &Network) -> io::Result<()> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "etcd lab");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key).map_err(io::Error::other)?;
    std::fs::write(directory.join("ca.crt"), authority.pem())?;
    let issuer = Issuer::new(params, key);

    // Members check that a peer's certificate names the address it comes from: the proxy's.
    let own = (0..MEMBERS).flat_map(|member| [network.address(member), peer_address(member)]);
    let names = own.chain([Ipv4Addr::LOCALHOST]).map(|address| SanType::IpAddress(IpAddr::V4(address))).collect();
    issue(&issuer, directory, "member", names)?;
    issue(&issuer, directory, "client", Vec::new())
}

fn issue(issuer: &Issuer<'_, KeyPair>, directory: &Path, name: &str, names: Vec<SanType>) -> io::Result<()> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer).map_err(io::Error::other)?;
    std::fs::write(directory.join(format!("{name}.crt")), certificate.pem())?;
    std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem())
}
