//! The whole state, as the standard's messages.

use std::collections::HashMap;
use std::time::SystemTime;

use mesh_tls::{Identity, TrustStore};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use spiffe_identity::{SpiffeId, TrustDomain};
use tonic::Status;

use super::generated::{X509BundlesResponse, X509svid, X509svidResponse};
use super::standing::Standing;

/// What answers are made of.
pub(super) struct Source {
    /// The workload's own.
    pub(super) trust_domain: TrustDomain,
    pub(super) identity: Identity,
    pub(super) trust: TrustStore,
    pub(super) standing: Standing,
}

impl Source {
    /// The SVID with its key, and all bundles.
    pub(super) fn svids(&self) -> Result<X509svidResponse, Status> {
        let id = self.entitled()?;
        let (chain, key) = self.identity.chain_and_key().ok_or_else(not_ready)?;
        let PrivateKeyDer::Pkcs8(key) = key else {
            return Err(Status::internal("the SVID's key is not in the PKCS#8 form"));
        };
        let mut bundles = self.all_bundles();
        let own = bundles.remove(&self.trust_domain.to_string()).ok_or_else(not_ready)?;
        let svid = X509svid {
            spiffe_id: id.to_string(),
            x509_svid: concatenated(&chain),
            x509_svid_key: key.secret_pkcs8_der().to_vec(),
            bundle: own,
            hint: String::new(),
        };
        Ok(X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: by_id(bundles) })
    }

    /// All bundles.
    pub(super) fn bundles(&self) -> Result<X509BundlesResponse, Status> {
        self.entitled()?;
        Ok(X509BundlesResponse { crl: Vec::new(), bundles: by_id(self.all_bundles()) })
    }

    /// Who the workload is, if it may be that now.
    fn entitled(&self) -> Result<SpiffeId, Status> {
        let learnt = self.standing.learnt();
        let now = SystemTime::now();
        let id = self.identity.spiffe_id().filter(|_| self.identity.not_after().is_some_and(|end| end > now));
        let Some(id) = id else {
            return Err(if learnt.refused {
                Status::permission_denied("the control-plane refuses this workload an identity")
            } else {
                not_ready()
            });
        };
        if self.trust.denied().denies(&id) {
            return Err(Status::permission_denied(format!("{id} is quarantined")));
        }
        if learnt.complete { Ok(id) } else { Err(not_ready()) }
    }

    /// By trust domain: its roots in DER, one after the other. A trust domain that is quarantined, or has no roots left, is
    /// left out: no message could say so otherwise.
    fn all_bundles(&self) -> HashMap<String, Vec<u8>> {
        let denied = self.trust.denied();
        let known = self.trust.trust_domains().into_iter().filter(|name| !denied.trust_domains.contains(name));
        let bundles = known.filter_map(|name| self.trust.bundle(&name));
        let useful = bundles.filter(|bundle| !bundle.x509_authorities.is_empty());
        useful.map(|bundle| (bundle.trust_domain.to_string(), concatenated(&bundle.x509_authorities))).collect()
    }
}

fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|der| der.iter().copied()).collect()
}

fn by_id(bundles: HashMap<String, Vec<u8>>) -> HashMap<String, Vec<u8>> {
    bundles.into_iter().map(|(trust_domain, roots)| (format!("spiffe://{trust_domain}"), roots)).collect()
}

fn not_ready() -> Status {
    Status::unavailable("the sidecar has no identity or no whole state yet")
}
