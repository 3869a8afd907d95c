//! A trust domain's authority: what it issues, its intermediates, its key at rest, and the change from one root to the next.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod intermediates;
mod issuing;
mod load;
mod roots;
mod sealing;

use std::time::{Duration, SystemTime};

use mesh_tls::{PeerError, Purpose, TrustStore};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::{Authority, Svid};
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn east() -> TrustDomain {
    "east.mesh.example".parse().unwrap()
}

pub(crate) fn cart() -> SpiffeId {
    SpiffeId::workload(&east(), "shop", "cart").unwrap()
}

pub(crate) fn authority() -> (TempDir, Authority) {
    let directory = TempDir::new().unwrap();
    let authority = Authority::open_or_create(directory.path(), &east(), now()).unwrap();
    (directory, authority)
}

pub(crate) fn request(params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

pub(crate) fn plain_request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let csr = request(&CertificateParams::default(), &key);
    (key, csr)
}

pub(crate) fn parse(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

pub(crate) fn spki(key: &KeyPair) -> Vec<u8> {
    rcgen::PublicKeyData::subject_public_key_info(key)
}

/// An SVID for a day.
pub(crate) fn issue(authority: &Authority, now: SystemTime) -> Svid {
    authority.issue(&plain_request().1, &cart(), DAY, now).unwrap()
}

/// Whether peers who hold these roots believe the SVID.
pub(crate) fn judged(roots: Vec<CertificateDer<'static>>, svid: &Svid, now: SystemTime) -> Result<(), PeerError> {
    let trust = TrustStore::new();
    trust.insert(Bundle { trust_domain: east(), x509_authorities: roots, sequence: 1, refresh_hint: None });
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    trust.verify(&svid.chain, Purpose::Client, now).map(|id| assert_eq!(id, cart()))
}
