//! The operator's directory, as `trust-bundle init` wrote it: the membership root, addresses and pins, and the certificate
//! with which the trust-bundle knows an operator.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use federation::FederationDomain;
use federation_api::client::trust::renew;
use federation_api::signing::{MembershipRoot, PublicKey};
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, new_key_and_csr, pem};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::failure::Failure;
use crate::output::note;

/// How long one attempt to reach a replica of the trust-bundle takes at most.
const CONNECT: Duration = Duration::from_secs(2);

/// The key of a renewed certificate, before the certificate is there.
const NEXT_KEY: &str = "operator.key.next";

/// What `trust-bundle init` wrote about the federation; what is not needed here is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FederationFile {
    pub(crate) federation: FederationDomain,
    pub(crate) trust_bundle_addresses: Vec<String>,
    pub(crate) federator_addresses: Vec<String>,
}

/// The directory, of which each command reads what it needs.
#[derive(Debug)]
pub(crate) struct OperatorDirectory {
    path: PathBuf,
    pub(crate) file: FederationFile,
}

impl OperatorDirectory {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let file = path.join("federation.json");
        let text = read_text(&file)?;
        let file = serde_json::from_str(&text).map_err(|error| unusable(&file, &error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The key that makes members and shuts them out.
    pub(crate) fn membership_root(&self) -> Result<MembershipRoot, Failure> {
        let path = self.join("membership-root.key");
        let root = MembershipRoot::from_pem(&read_text(&path)?).map_err(|error| unusable(&path, &error))?;
        warn_if_shared(&path);
        // A directory put together from two federations would make tokens that nobody believes.
        let public = self.join("membership-root.pub");
        if public.exists() && self.membership_root_public()? != root.public() {
            return Err(unusable(&public, &"is not the public half of membership-root.key beside it"));
        }
        Ok(root)
    }

    /// Its public half, by which what the services say is judged.
    pub(crate) fn membership_root_public(&self) -> Result<PublicKey, Failure> {
        let path = self.join("membership-root.pub");
        PublicKey::from_pem(&read_text(&path)?).map_err(|error| unusable(&path, &error))
    }

    /// The roots of the federation's own authority.
    pub(crate) fn federation_roots(&self) -> Result<Vec<CertificateDer<'static>>, Failure> {
        let path = self.join("federation-root.crt");
        pem::certificates_from_pem(read_text(&path)?.as_bytes()).map_err(|error| unusable(&path, &error))
    }

    fn trust_domain(&self) -> Result<TrustDomain, Failure> {
        let path = self.join("federation.json");
        self.file.federation.as_str().parse().map_err(|error| unusable(&path, &error))
    }

    fn identity(&self) -> Result<Identity, Failure> {
        let (certificate, key) = (self.join("operator.crt"), self.join("operator.key"));
        let chain = read_text(&certificate)?;
        let identity = match Identity::from_pem(chain.as_bytes(), read_text(&key)?.as_bytes()) {
            Ok(identity) => identity,
            Err(error) => self.finish_renewal(&chain).ok_or_else(|| unusable(&certificate, &error))?,
        };
        warn_if_shared(&key);
        Ok(identity)
    }

    /// A renewal that was cut off between its two files left the new key beside the old one: it is put in its place.
    fn finish_renewal(&self, chain: &str) -> Option<Identity> {
        let next = self.join(NEXT_KEY);
        let identity = Identity::from_pem(chain.as_bytes(), fs::read(&next).ok()?.as_slice()).ok()?;
        // Where the directory cannot be written the next command finds the same and does the same.
        if fs::rename(&next, self.join("operator.key")).is_ok() {
            note("a renewal of the operator's certificate that was cut off is finished");
        }
        Some(identity)
    }

    /// Whom the trust-bundle takes this operator for.
    pub(crate) fn operator(&self) -> Result<Option<SpiffeId>, Failure> {
        Ok(self.identity()?.spiffe_id())
    }

    /// To any replica of the trust-bundle. Must be called within a runtime.
    pub(crate) fn channel(&self) -> Result<Channel, Failure> {
        let (identity, trust_domain) = (self.identity()?, self.trust_domain()?);
        let service = SpiffeId::service(&trust_domain, "trust-bundle");
        let service = service.map_err(|error| unusable(&self.join("federation.json"), &error))?;
        let trust = TrustStore::new();
        trust.insert(Bundle {
            trust_domain,
            x509_authorities: self.federation_roots()?,
            sequence: 0,
            refresh_hint: None,
        });
        let config = client_config(Some(&identity), &trust, ExpectedPeer::exactly(service), &[rpc::ALPN]);
        let options = ChannelOptions { connect_timeout: CONNECT, ..ChannelOptions::default() };
        Ok(rpc::channel(&self.file.trust_bundle_addresses, config, options))
    }

    /// What to tell when a call failed.
    pub(crate) fn failed(&self, status: Status) -> Failure {
        let addresses = self.file.trust_bundle_addresses.join(", ");
        let mut reason = status.message().to_owned();
        if ["signed by no root", "fatal alert"].iter().any(|sign| reason.contains(sign)) {
            reason.push_str(
                "; if the federation's authority was replaced since this directory was last used, `trust-bundle issue` \
                 writes its certificate and the roots anew",
            );
        }
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => Failure::NoTrustBundle { addresses, reason },
            _ => Failure::RefusedByTrustBundle { reason },
        }
    }

    /// A new certificate for this operator, and the roots that the federation has now; returns how many they are.
    pub(crate) async fn renew(&self) -> Result<usize, Failure> {
        let made = new_key_and_csr().map_err(|error| unusable(&self.join("operator.key"), &error));
        let (key, csr) = made?;
        let renewed = renew(self.channel()?, csr).await.map_err(|status| self.failed(status))?;
        let certificates = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
        let (chain, roots) = (certificates(renewed.certificate_chain), certificates(renewed.federation_roots));
        // One that cannot be used must not replace one that can.
        Identity::from_der(chain.clone(), key.clone_key())
            .map_err(|error| unusable(&self.join("operator.crt"), &error))?;
        if !roots.is_empty() {
            self.write("federation-root.crt", pem::certificates_to_pem(&roots), 0o644)?;
        }
        // Two files change as one: the new key waits beside the old one until the certificate is there, see `identity`.
        self.write(NEXT_KEY, pem::private_key_to_pem(&key), 0o600)?;
        self.write("operator.crt", pem::certificates_to_pem(&chain), 0o644)?;
        let (next, key) = (self.join(NEXT_KEY), self.join("operator.key"));
        fs::rename(next, &key).map_err(|error| unusable(&key, &error))?;
        Ok(roots.len())
    }

    /// Replaces a file, whole or not at all.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) -> Result<(), Failure> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let (path, beside) = (self.join(name), self.join(&format!(".{name}.new")));
        let write = || {
            let _ = fs::remove_file(&beside);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
            file.write_all(text.as_ref())?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            fs::File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| unusable(&path, &error))
    }
}

fn warn_if_shared(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        note(&format!("warning: {} can be read by others; chmod 600 it", path.display()));
    }
}

pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| unusable(path, &error))
}

pub(crate) fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> Failure {
    Failure::File { path: path.to_owned(), reason: reason.to_string() }
}
