//! `isthmus token create`: offline, from the operator's directory.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use federation::FederationDomain;
use federation::delegation::NamespaceSet;
use federation_api::signing::{MembershipRoot, PublicKey};
use federation_api::token::{JoinToken, TokenRequest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::arguments::{Format, TokenCreate};
use crate::failure::Failure;
use crate::output::{Output, note, print};
use crate::time::brief;

/// What `trust-bundle init` wrote about the federation; what is not needed here is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FederationFile {
    federation: FederationDomain,
    trust_bundle_addresses: Vec<String>,
    federator_addresses: Vec<String>,
}

/// `isthmus token create -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    /// The secret.
    token: String,
    federation: String,
    cluster: String,
    generation: u64,
    /// `["*"]`: all.
    namespaces: Vec<String>,
    /// Empty: anywhere but in reserved ranges.
    address_ranges: Vec<String>,
    /// Empty: any.
    host_names: Vec<String>,
    trust_bundle_addresses: Vec<String>,
    federator_addresses: Vec<String>,
    expires: Timestamp,
}

/// Prints the token alone on standard output, so that `$(…)` takes it, and what it grants on standard error.
pub(crate) fn create(arguments: &TokenCreate, format: Format, output: &Output) -> Result<(), Failure> {
    let now = SystemTime::now();
    let token = make(arguments, now)?;
    let created = describe(&token, arguments)?;
    match format {
        Format::Json => output.show(&created, |_| String::new()),
        Format::Table => {
            for line in summary(&created, arguments.expires) {
                note(&line);
            }
            print(&format!("{token}\n"))
        }
    }
}

fn make(arguments: &TokenCreate, now: SystemTime) -> Result<JoinToken, Failure> {
    let directory = &arguments.operator;
    let key_file = directory.join("membership-root.key");
    let root = MembershipRoot::from_pem(&read_text(&key_file)?).map_err(|error| unusable(&key_file, &error))?;
    warn_if_shared(&key_file);
    check_public_half(&root, &directory.join("membership-root.pub"))?;
    let file = federation_file(&directory.join("federation.json"))?;
    let namespaces = if arguments.namespaces.is_empty() {
        NamespaceSet::All
    } else {
        NamespaceSet::Some(arguments.namespaces.iter().cloned().collect())
    };
    Ok(JoinToken::create(
        &root,
        TokenRequest {
            federation: file.federation,
            cluster: arguments.cluster.clone(),
            namespaces,
            address_ranges: arguments.address_ranges.clone(),
            host_names: arguments.host_names.clone(),
            federation_roots: certificates(&directory.join("federation-root.crt"))?,
            trust_bundle_addresses: file.trust_bundle_addresses,
            federator_addresses: file.federator_addresses,
            created: now,
            lifetime: arguments.expires,
        },
    )?)
}

fn describe(token: &JoinToken, arguments: &TokenCreate) -> Result<Created, Failure> {
    let expires = Timestamp::try_from(token.expires())
        .map_err(|error| Failure::Usage(format!("--expires: too far in the future: {error}")))?;
    let mut namespaces: Vec<_> = arguments.namespaces.iter().map(ToString::to_string).collect();
    if namespaces.is_empty() {
        namespaces.push("*".to_owned());
    }
    Ok(Created {
        token: token.to_string(),
        federation: token.federation().to_string(),
        cluster: token.cluster().to_string(),
        generation: token.generation(),
        namespaces,
        address_ranges: arguments.address_ranges.iter().map(ToString::to_string).collect(),
        host_names: arguments.host_names.clone(),
        trust_bundle_addresses: token.trust_bundle_addresses().to_vec(),
        federator_addresses: token.federator_addresses().to_vec(),
        expires,
    })
}

fn summary(created: &Created, lifetime: Duration) -> Vec<String> {
    let or = |list: &[String], empty: &str| if list.is_empty() { empty.to_owned() } else { list.join(", ") };
    let namespaces = if created.namespaces == ["*"] { "all" } else { &created.namespaces.join(", ") };
    vec![
        format!("one-use join token for cluster {} of federation {}", created.cluster, created.federation),
        format!("  exports from     namespaces: {namespaces}"),
        format!("  gateways at      {}", or(&created.address_ranges, "any address outside of reserved ranges")),
        format!("  gateways named   {}", or(&created.host_names, "anything")),
        format!("  trust-bundle     {}", created.trust_bundle_addresses.join(", ")),
        format!("  federator        {}", or(&created.federator_addresses, "none")),
        format!("  usable           until {} (for {})", crate::time::to_the_second(created.expires), brief(lifetime)),
    ]
}

fn federation_file(path: &Path) -> Result<FederationFile, Failure> {
    serde_json::from_str(&read_text(path)?).map_err(|error| unusable(path, &error))
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let certificates = spiffe_identity::pem::certificates_from_pem(read_text(path)?.as_bytes());
    let certificates = certificates.map_err(|error| unusable(path, &error))?;
    Ok(certificates.into_iter().map(|certificate| certificate.to_vec()).collect())
}

/// A directory put together from two federations would make tokens that nobody believes.
fn check_public_half(root: &MembershipRoot, path: &Path) -> Result<(), Failure> {
    if !path.exists() {
        return Ok(());
    }
    let public = PublicKey::from_pem(&read_text(path)?).map_err(|error| unusable(path, &error))?;
    if public == root.public() {
        Ok(())
    } else {
        Err(unusable(path, &"is not the public half of membership-root.key beside it"))
    }
}

fn warn_if_shared(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        note(&format!("warning: {} can be read by others; chmod 600 it", path.display()));
    }
}

fn read_text(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> Failure {
    Failure::File { path: path.to_owned(), reason: reason.to_string() }
}
