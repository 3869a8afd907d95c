//! A cluster as the service sees it: its keys, its membership, its words.

use std::time::SystemTime;

use federation::{ClusterName, RecordKey};
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, Signed};
use federation_api::signing::{PublicKey, PublishKey, Speaker};
use federation_api::token::{JoinToken, rotate};
use federation_api::trust::v1::JoinResponse;
use federation_api::verify::verify_member;
use mesh_tls::{Identity, new_key_and_csr};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;

use crate::plane::{domain, trust_domain};

/// A request to join, to be spoilt at will.
pub(crate) struct Attempt {
    pub(crate) member: Member,
    pub(crate) csr: Vec<u8>,
    pub(crate) bundle: Signed,
    pub(crate) speaker: Speaker,
    root: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Attempt {
    /// What a control-plane makes of a token. Its first bundle has sequence 10 and `spiffe_sequence` 1.
    pub(crate) fn new(token: &JoinToken) -> Self {
        let publish_key = PublishKey::generate().unwrap();
        let member = token.member(&publish_key.public(), SystemTime::now());
        let cluster = token.cluster().clone();
        let (key, csr) = new_key_and_csr().unwrap();
        let speaker = Speaker { federation: domain(), generation: token.generation(), key: publish_key, cluster };
        let root = new_root(&own_trust_domain(&speaker));
        let bundle = sign_bundle(&speaker, &root, 10, 1);
        Self { member, csr, bundle, speaker, root, key }
    }

    pub(crate) fn sign(&self, key: &RecordKey, payload: &Payload) -> Signed {
        self.speaker.sign(10, SystemTime::now(), key, payload).unwrap()
    }
}

/// A member.
pub(crate) struct Cluster {
    pub(crate) identity: Identity,
    pub(crate) federation_roots: Vec<Vec<u8>>,
    pub(crate) member: Member,
    pub(crate) bundle: Signed,
    speaker: Speaker,
    root: CertificateDer<'static>,
}

impl Cluster {
    /// The answer must fit the request's key.
    pub(crate) fn joined(attempt: Attempt, response: JoinResponse) -> Self {
        let chain = response.certificate_chain.into_iter().map(CertificateDer::from).collect();
        Self {
            identity: Identity::from_der(chain, attempt.key).unwrap(),
            federation_roots: response.federation_roots,
            member: attempt.member,
            bundle: attempt.bundle,
            speaker: attempt.speaker,
            root: attempt.root,
        }
    }

    pub(crate) fn name(&self) -> ClusterName {
        self.speaker.cluster.clone()
    }

    pub(crate) fn id(&self) -> SpiffeId {
        self.identity.spiffe_id().unwrap()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.speaker.generation
    }

    /// Its farewell.
    pub(crate) fn departure(&self) -> Signed {
        self.say(100, &RecordKey::Membership, &Payload::Withdrawal)
    }

    /// Its membership with the grant of another publish key, and itself when it speaks with that key.
    pub(crate) fn with_next_key(self, after: u64, root: &PublicKey) -> Self {
        let verified = verify_member(root, &domain(), &self.member, None).unwrap();
        let next = PublishKey::generate().unwrap();
        let mut member = self.member.clone();
        member.grants.push(rotate(&self.speaker.key, &verified, &next.public(), after));
        Self { member, speaker: Speaker { key: next, ..self.speaker }, ..self }
    }

    /// The cluster's bundle, said again.
    pub(crate) fn bundle(&self, sequence: u64, spiffe_sequence: u64) -> Signed {
        sign_bundle(&self.speaker, &self.root, sequence, spiffe_sequence)
    }

    pub(crate) fn say(&self, sequence: u64, key: &RecordKey, payload: &Payload) -> Signed {
        self.speaker.sign(sequence, SystemTime::now(), key, payload).unwrap()
    }
}

/// The name a control-plane has in the federation's plane.
pub(crate) fn control_plane(cluster: &str) -> SpiffeId {
    SpiffeId::control_plane(&trust_domain(), cluster).unwrap()
}

pub(crate) fn new_root(trust_domain: &TrustDomain) -> CertificateDer<'static> {
    let directory = tempfile::tempdir().unwrap();
    Authority::open_or_create(directory.path(), trust_domain, SystemTime::now()).unwrap().root()
}

pub(crate) fn bundle_payload(root: &CertificateDer<'static>, trust_domain: &TrustDomain, sequence: u64) -> Payload {
    let (trust_domain, x509_authorities) = (trust_domain.clone(), vec![root.clone()]);
    let bundle = Bundle { trust_domain: trust_domain.clone(), x509_authorities, sequence, refresh_hint: None };
    Payload::Bundle { trust_domain: trust_domain.to_string(), jwks: bundle.to_jwks().into_bytes() }
}

fn own_trust_domain(speaker: &Speaker) -> TrustDomain {
    domain().trust_domain(&speaker.cluster).parse().unwrap()
}

fn sign_bundle(speaker: &Speaker, root: &CertificateDer<'static>, sequence: u64, spiffe_sequence: u64) -> Signed {
    let payload = bundle_payload(root, &own_trust_domain(speaker), spiffe_sequence);
    speaker.sign(sequence, SystemTime::now(), &RecordKey::Bundle, &payload).unwrap()
}
