//! Makes a federation: what the operator keeps, and what the services are given.
//!
//! ```text
//! DIR/operator/                              keep offline, 0600
//!   membership-root.key   membership-root.pub   the key that makes members, and what every token pins
//!   operator.key          operator.crt          a client certificate …/operator/<name>
//!   federation.json       federation-root.crt   addresses and pins that tokens carry
//! DIR/service/                               given to every trust-bundle replica
//!   federation.json       membership-root.pub
//!   authority/                                  the federation's own certificate authority, key 0600
//! DIR/federator/                             given to every federator replica
//!   federation.json       membership-root.pub   federation-root.crt
//!   service.key           service.crt
//! ```

use std::fs;
use std::io;
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
const OPERATOR_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a service's first certificate lives; the service renews it at half of it.
const SERVICE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

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
    /// A file could not be written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operator's name or the domain makes no SPIFFE ID.
    #[error("{0}")]
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
/// [`InitError`]; nothing that was there before is overwritten.
pub fn init(directory: &Path, file: &FederationFile, operator: &str, now: SystemTime) -> Result<(), InitError> {
    let (operator_directory, service) = (directory.join("operator"), directory.join("service"));
    for present in [&operator_directory, &service] {
        if present.exists() {
            return Err(InitError::Exists(present.clone()));
        }
    }
    let trust_domain: TrustDomain =
        file.federation.as_str().parse().map_err(|error| InitError::Name(format!("{error}")))?;
    let operator_id =
        SpiffeId::operator(&trust_domain, operator).map_err(|error| InitError::Name(error.to_string()))?;

    let crypto = |what| move |error: &dyn std::fmt::Display| InitError::Crypto { what, reason: error.to_string() };
    let root = MembershipRoot::generate().map_err(|error| crypto("membership root")(&error))?;
    let authority_directory = service.join("authority");
    make_directory(&authority_directory)?;
    let authority = Authority::open_or_create(&authority_directory, &trust_domain, now)
        .map_err(|error| crypto("federation authority")(&error))?;

    make_directory(&operator_directory)?;
    let root_pem = root.to_pem().map_err(|error| crypto("membership root")(&error))?;
    write(&operator_directory.join("membership-root.key"), root_pem.as_bytes(), 0o600)?;
    write_public(&operator_directory, file, &root, &authority)?;
    write_identity(&operator_directory, "operator", &authority, &operator_id, OPERATOR_LIFETIME, now)?;
    write_public(&service, file, &root, &authority)?;
    let federator = directory.join("federator");
    make_directory(&federator)?;
    write_public(&federator, file, &root, &authority)?;
    let federator_id =
        SpiffeId::service(&trust_domain, "federator").map_err(|error| InitError::Name(error.to_string()))?;
    write_identity(&federator, "service", &authority, &federator_id, SERVICE_LIFETIME, now)
}

fn write_public(
    directory: &Path,
    file: &FederationFile,
    root: &MembershipRoot,
    authority: &Authority,
) -> Result<(), InitError> {
    let json = serde_json::to_vec_pretty(file)
        .map_err(|error| InitError::Crypto { what: "federation.json", reason: error.to_string() })?;
    write(&directory.join("federation.json"), &json, 0o644)?;
    write(&directory.join("membership-root.pub"), root.public().to_pem().as_bytes(), 0o644)?;
    write(&directory.join("federation-root.crt"), pem::certificates_to_pem(&[authority.root()]).as_bytes(), 0o644)
}

fn write_identity(
    directory: &Path,
    name: &str,
    authority: &Authority,
    id: &SpiffeId,
    lifetime: Duration,
    now: SystemTime,
) -> Result<(), InitError> {
    let crypto = |reason: String| InitError::Crypto { what: "certificate", reason };
    let (key, csr) = mesh_tls::new_key_and_csr().map_err(|error| crypto(error.to_string()))?;
    let svid = authority.issue(&csr, id, lifetime, now).map_err(|error| crypto(error.to_string()))?;
    write(&directory.join(format!("{name}.key")), pem::private_key_to_pem(&key).as_bytes(), 0o600)?;
    write(&directory.join(format!("{name}.crt")), pem::certificates_to_pem(&svid.chain).as_bytes(), 0o644)
}

fn make_directory(path: &Path) -> Result<(), InitError> {
    fs::create_dir_all(path).map_err(|source| InitError::File { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InitError> {
    write_atomically(path, bytes, mode).map_err(|source| InitError::File { path: path.to_owned(), source })
}
