//! A trust domain made to order: its root, and certificates below it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use mesh_tls::{Identity, TrustStore};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Domain {
    pub(crate) name: TrustDomain,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

/// A leaf or intermediate with its key.
pub(crate) struct Issued {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

/// A subject that no other certificate has.
fn fresh_name(params: &mut CertificateParams) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    params.distinguished_name.push(DnType::CommonName, format!("authority {}", NEXT.fetch_add(1, Ordering::Relaxed)));
}

pub(crate) fn authority_params(trust_domain: &TrustDomain) -> CertificateParams {
    let mut params = CertificateParams::default();
    fresh_name(&mut params);
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + 24 * HOUR).into();
    params.subject_alt_names = vec![uri(&SpiffeId::of_trust_domain(trust_domain).to_string())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

pub(crate) fn leaf_params(id: &SpiffeId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    params.subject_alt_names = vec![uri(&id.to_string())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Domain {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_root(name, |_| {})
    }

    pub(crate) fn with_root(name: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let name: TrustDomain = name.parse().unwrap();
        let mut params = authority_params(&name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { name, root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn id(&self, service_account: &str) -> SpiffeId {
        SpiffeId::workload(&self.name, "shop", service_account).unwrap()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        self.bundle_of([self.root.clone()])
    }

    pub(crate) fn bundle_of(&self, roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Bundle {
        Bundle {
            trust_domain: self.name.clone(),
            x509_authorities: roots.into_iter().collect(),
            sequence: 1,
            refresh_hint: None,
        }
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Issued {
        sign(params, &self.issuer)
    }

    pub(crate) fn leaf(&self, service_account: &str) -> Issued {
        self.sign(&leaf_params(&self.id(service_account)))
    }

    pub(crate) fn identity(&self, service_account: &str) -> Identity {
        let leaf = self.leaf(service_account);
        Identity::from_der(vec![leaf.der.clone()], leaf.private_key()).unwrap()
    }

    /// An intermediate below the root, and what signs with it.
    pub(crate) fn intermediate(
        &self,
        change: impl Fn(&mut CertificateParams),
    ) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let mut params = authority_params(&self.name);
        change(&mut params);
        let issued = self.sign(&params);
        (issued.der, Issuer::new(params, issued.key))
    }
}

pub(crate) fn sign(params: &CertificateParams, issuer: &Issuer<'static, KeyPair>) -> Issued {
    let key = KeyPair::generate().unwrap();
    Issued { der: params.signed_by(&key, issuer).unwrap().der().clone(), key }
}

impl Issued {
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }
}

pub(crate) fn trusting<'a>(domains: impl IntoIterator<Item = &'a Domain>) -> TrustStore {
    let store = TrustStore::new();
    store.replace(domains.into_iter().map(Domain::bundle));
    store
}
