//! Trust domains outside the federation: which of their bundles the proxies are told.
//!
//! A key that is a root's of two trust domains could speak for both. A member's root counts, whoever was known first: a
//! trust domain outside must not be able to silence a member by showing its key, nor to speak with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe_identity::{Bundle, TrustDomain, owner_of_shared_key};
use tracing::{error, info};

/// The fetched bundles, and whose are not believed.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    fetched: Vec<Bundle>,
    refused: Arc<BTreeMap<TrustDomain, TrustDomain>>,
}

impl Foreign {
    pub(super) fn replace(&mut self, fetched: Vec<Bundle>) {
        self.fetched = fetched;
    }

    /// Judges all of them beside the roots of the federation's members.
    pub(super) fn judge(&mut self, members: &[Bundle]) {
        let shares = |bundle: &Bundle| {
            let owner = owner_of_shared_key(bundle, members)?;
            Some((bundle.trust_domain.clone(), owner.clone()))
        };
        let refused: BTreeMap<_, _> = self.fetched.iter().filter_map(shares).collect();
        if refused == *self.refused {
            return;
        }
        for (trust_domain, owner) in refused.iter().filter(|(name, owner)| self.refused.get(name) != Some(owner)) {
            error!(%trust_domain, %owner, "a foreign bundle holds a root's key of a member: it is not believed");
        }
        for trust_domain in self.refused.keys().filter(|name| !refused.contains_key(name)) {
            info!(%trust_domain, "a foreign bundle shares no key with a member any more");
        }
        self.refused = Arc::new(refused);
    }

    /// Those that are told to proxies.
    pub(super) fn believed(&self) -> impl Iterator<Item = &Bundle> {
        self.fetched.iter().filter(|bundle| !self.refused.contains_key(&bundle.trust_domain))
    }

    /// Those that are not, with the member that each shares a root's key with.
    pub(super) fn refused(&self) -> Arc<BTreeMap<TrustDomain, TrustDomain>> {
        Arc::clone(&self.refused)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    fn bundle(name: &str, keys: &[&KeyPair]) -> Bundle {
        let root = |key: &&KeyPair| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names = vec![SanType::URI(format!("spiffe://{name}").try_into().unwrap())];
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.self_signed(key).unwrap().der().clone()
        };
        let x509_authorities = keys.iter().map(root).collect();
        Bundle { trust_domain: name.parse().unwrap(), x509_authorities, sequence: 1, refresh_hint: None }
    }

    #[test]
    fn a_foreign_trust_domain_with_a_member_s_root_key_is_not_believed_and_others_are() {
        let [east, own, other] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let members = [bundle("east.mesh.example", &[&east])];
        let good = bundle("spire.example", &[&own]);
        let mut foreign = Foreign::default();
        foreign.replace(vec![good.clone(), bundle("captured.example", &[&other, &east])]);
        foreign.judge(&members);
        assert_eq!(foreign.believed().collect::<Vec<_>>(), [&good]);
        let refused = [("captured.example".parse().unwrap(), "east.mesh.example".parse().unwrap())];
        assert_eq!(*foreign.refused(), BTreeMap::from(refused));
        // The twin: without that one key.
        foreign.replace(vec![good, bundle("captured.example", &[&other])]);
        foreign.judge(&members);
        assert_eq!((foreign.believed().count(), foreign.refused().len()), (2, 0));
    }

    #[test]
    fn a_member_that_joins_later_keeps_its_key() {
        let key = KeyPair::generate().unwrap();
        let mut foreign = Foreign::default();
        foreign.replace(vec![bundle("spire.example", &[&key])]);
        foreign.judge(&[]);
        assert_eq!(foreign.believed().count(), 1);
        foreign.judge(&[bundle("west.mesh.example", &[&key])]);
        assert_eq!(foreign.believed().count(), 0);
    }
}
