//! Makes a federation: what the operator keeps, and what the services are given.
//!
//! ```text
//! DIR/operator/                                 keep offline
//!   membership-root.key   membership-root.pub   the key that makes members, and what every token pins
//!   operator.key          operator.crt          a client certificate …/operator/<name>
//!   federation.json       federation-root.crt   addresses and pins that tokens carry
//! DIR/service/                                  given to every trust-bundle replica
//!   federation.json       membership-root.pub   federation-root.crt
//!   authority/ca.key      authority/ca.crt      the federation's own certificate authority
//! DIR/federator/                                given to every federator replica
//!   federation.json       membership-root.pub   federation-root.crt
//!   service.key           service.crt
//! ```
//!
//! Keys are readable by their owner only, and so are the folders.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use federation::FederationDomain;
use federation_api::signing::MembershipRoot;
use mesh_runtime::write_atomically;
use mesh_tls::pem;
use serde::{Deserialize, Serialize};
use spiffe_identity::{SpiffeId, TrustDomain};
use svid_issuer::Authority;

/// How long the operator's certificate lives.
pub(crate) const OPERATOR_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a service's first certificate lives; the service renews it at half of it.
const SERVICE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Modes of the files and the folders.
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// The file `federation.json`: how a federation is called and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FederationFile {
    /// Its domain, which is also its trust domain.
    pub federation: FederationDomain,
    /// `host:port` of every trust-bundle replica.
    pub trust_bundle_addresses: Vec<String>,
    /// `host:port` of every federator replica.
    pub federator_addresses: Vec<String>,
}

/// Why no federation was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already: its root must not be overwritten.
    #[error("{0} exists: a federation was made here before")]
    Exists(PathBuf),
    /// Not an address.
    #[error("{0:?} is not host:port")]
    Address(String),
    /// A file could not be written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operator's name or the domain makes no SPIFFE ID.
    #[error("the operator's name or the federation's domain cannot be used: {0}")]
    Name(String),
    /// A key or a certificate could not be made.
    #[error("{what}: {reason}")]
    Crypto {
        /// Which one.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// Makes a federation below `directory`, all files new.
///
/// # Errors
/// [`InitError`]; nothing that was there before is overwritten. Everything that can be wrong with what was asked for is
/// found before anything is written.
pub fn init(directory: &Path, file: &FederationFile, operator: &str, now: SystemTime) -> Result<(), InitError> {
    let name = |error: &dyn std::fmt::Display| InitError::Name(error.to_string());
    let trust_domain: TrustDomain = file.federation.as_str().parse().map_err(|error| name(&error))?;
    let operator_id = SpiffeId::operator(&trust_domain, operator).map_err(|error| name(&error))?;
    let federator_id = SpiffeId::service(&trust_domain, "federator").map_err(|error| name(&error))?;
    for address in file.trust_bundle_addresses.iter().chain(&file.federator_addresses) {
        check_address(address)?;
    }
    let [operator, service, federator] = make_directories(directory)?;

    let root = MembershipRoot::generate().map_err(|error| crypto("membership root", &error))?;
    let root_pem = root.to_pem().map_err(|error| crypto("membership root", &error))?;
    let authority = Authority::open_or_create(&service.join("authority"), &trust_domain, now)
        .map_err(|error| crypto("federation authority", &error))?;

    write(&operator.join("membership-root.key"), root_pem.as_bytes(), SECRET)?;
    for directory in [&operator, &service, &federator] {
        write_public(directory, file, &root, &authority)?;
    }
    write_identity(&operator, "operator", &authority, &operator_id, OPERATOR_LIFETIME, now)?;
    write_identity(&federator, "service", &authority, &federator_id, SERVICE_LIFETIME, now)
}

/// Who can be given a certificate by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An operator, by name.
    Operator(String),
    /// The federator's replicas.
    Federator,
}

/// Writes a new certificate for somebody into a folder, with its key and the roots that are published now: for another
/// operator, or for one who was away while the authority was replaced and whom nobody knows any more. What else the folder
/// holds, a membership root above all, stays.
///
/// # Errors
/// [`InitError`]
pub fn issue(service: &Path, holder: &Holder, out: &Path, now: SystemTime) -> Result<(), InitError> {
    let path = service.join("federation.json");
    let failed = |path: &Path, source| InitError::File { path: path.to_owned(), source };
    let text = fs::read(&path).map_err(|source| failed(&path, source))?;
    let file: FederationFile = serde_json::from_slice(&text).map_err(|error| crypto("federation.json", &error))?;
    let name = |error: &dyn std::fmt::Display| InitError::Name(error.to_string());
    let trust_domain: TrustDomain = file.federation.as_str().parse().map_err(|error| name(&error))?;
    let (id, stem, lifetime) = match holder {
        Holder::Operator(name) => (SpiffeId::operator(&trust_domain, name), "operator", OPERATOR_LIFETIME),
        Holder::Federator => (SpiffeId::service(&trust_domain, "federator"), "service", SERVICE_LIFETIME),
    };
    let id = id.map_err(|error| name(&error))?;
    let authority = Authority::open(&service.join("authority"), &trust_domain);
    let authority = authority.map_err(|error| crypto("federation authority", &error))?;
    DirBuilder::new().recursive(true).mode(PRIVATE_DIRECTORY).create(out).map_err(|source| failed(out, source))?;
    for name in ["federation.json", "membership-root.pub"] {
        let (from, to) = (service.join(name), out.join(name));
        let bytes = fs::read(&from).map_err(|source| failed(&from, source))?;
        write(&to, &bytes, PUBLIC)?;
    }
    write(&out.join("federation-root.crt"), pem::certificates_to_pem(&authority.roots()).as_bytes(), PUBLIC)?;
    write_identity(out, stem, &authority, &id, lifetime, now)
}

/// Tokens carry the addresses to every cluster: a mistake in one is best found here.
fn check_address(address: &str) -> Result<(), InitError> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => Ok(()),
        _ => Err(InitError::Address(address.to_owned())),
    }
}

/// The three folders, made here: a folder that is there already belongs to a federation that must not be lost.
fn make_directories(directory: &Path) -> Result<[PathBuf; 3], InitError> {
    let folders = ["operator", "service", "federator"].map(|name| directory.join(name));
    if let Some(present) = folders.iter().find(|folder| folder.exists()) {
        return Err(InitError::Exists(present.clone()));
    }
    let failed = |path: &Path, source| InitError::File { path: path.to_owned(), source };
    fs::create_dir_all(directory).map_err(|source| failed(directory, source))?;
    for folder in &folders {
        DirBuilder::new().mode(PRIVATE_DIRECTORY).create(folder).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => InitError::Exists(folder.clone()),
            _ => failed(folder, source),
        })?;
    }
    Ok(folders)
}

fn crypto(what: &'static str, reason: &dyn std::fmt::Display) -> InitError {
    InitError::Crypto { what, reason: reason.to_string() }
}

fn write_public(
    directory: &Path,
    file: &FederationFile,
    root: &MembershipRoot,
    authority: &Authority,
) -> Result<(), InitError> {
    let json = serde_json::to_vec_pretty(file).map_err(|error| crypto("federation.json", &error))?;
    write(&directory.join("federation.json"), &json, PUBLIC)?;
    write(&directory.join("membership-root.pub"), root.public().to_pem().as_bytes(), PUBLIC)?;
    write(&directory.join("federation-root.crt"), pem::certificates_to_pem(&[authority.root()]).as_bytes(), PUBLIC)
}

fn write_identity(
    directory: &Path,
    name: &str,
    authority: &Authority,
    id: &SpiffeId,
    lifetime: Duration,
    now: SystemTime,
) -> Result<(), InitError> {
    let (key, csr) = mesh_tls::new_key_and_csr().map_err(|error| crypto("certificate", &error))?;
    let svid = authority.issue(&csr, id, lifetime, now).map_err(|error| crypto("certificate", &error))?;
    write(&directory.join(format!("{name}.key")), pem::private_key_to_pem(&key).as_bytes(), SECRET)?;
    write(&directory.join(format!("{name}.crt")), pem::certificates_to_pem(&svid.chain).as_bytes(), PUBLIC)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InitError> {
    write_atomically(path, bytes, mode).map_err(|source| InitError::File { path: path.to_owned(), source })
}
