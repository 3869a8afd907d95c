//! A federation with one member, `east`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use federation::delegation::NamespaceSet;
use federation::{ClusterName, Export, FederationDomain, RecordKey, ServiceId, ServiceType};
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, Signed};
use federation_api::signing::{MembershipRoot, PublishKey, Speaker};
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::verify::{VerifiedMember, VerifiedStatement, verify_member};

pub(crate) struct East {
    pub(crate) root: MembershipRoot,
    pub(crate) token: JoinToken,
    pub(crate) member: Member,
    pub(crate) speaker: Speaker,
    pub(crate) verified: VerifiedMember,
}

pub(crate) fn federation() -> FederationDomain {
    "mesh.example".parse().unwrap()
}

pub(crate) fn east() -> ClusterName {
    "east".parse().unwrap()
}

pub(crate) fn service(namespace: &str, name: &str) -> ServiceId {
    ServiceId::parse_parts(namespace, name).unwrap()
}

/// Whole seconds, as the wire has them.
pub(crate) fn created() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn request() -> TokenRequest {
    TokenRequest {
        federation: federation(),
        cluster: east(),
        namespaces: NamespaceSet::All,
        address_ranges: Vec::new(),
        host_names: Vec::new(),
        federation_roots: vec![vec![1, 2, 3]],
        trust_bundle_addresses: vec!["trust.example:15012".to_owned()],
        federator_addresses: vec!["federator.example:15012".to_owned()],
        created: created(),
        lifetime: Duration::from_secs(900),
    }
}

impl East {
    pub(crate) fn new() -> Self {
        Self::delegated(request())
    }

    pub(crate) fn delegated(request: TokenRequest) -> Self {
        let root = MembershipRoot::generate().unwrap();
        let token = JoinToken::create(&root, request).unwrap();
        let key = PublishKey::generate().unwrap();
        let member = token.member(&key.public(), created());
        let verified = verify_member(&root.public(), &federation(), &member, None).unwrap();
        let speaker = Speaker { federation: federation(), cluster: east(), generation: token.generation(), key };
        Self { root, token, member, speaker, verified }
    }

    pub(crate) fn sign(&self, sequence: u64, key: &RecordKey, payload: &Payload) -> Signed {
        self.speaker.sign(sequence, created(), key, payload).unwrap()
    }

    pub(crate) fn say(&self, sequence: u64, key: &RecordKey, payload: &Payload) -> VerifiedStatement {
        self.verified.verify(&self.sign(sequence, key, payload)).unwrap()
    }
}

pub(crate) fn export(service: &ServiceId) -> Export {
    Export {
        service: service.clone(),
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        client_ip_affinity: None,
        ip_families: Vec::new(),
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: Default::default(),
        annotations: Default::default(),
        created: created(),
        service_accounts: vec!["shop".to_owned()],
        zones: Vec::new(),
    }
}

pub(crate) fn export_of(namespace: &str, name: &str) -> (RecordKey, Payload) {
    let service = service(namespace, name);
    (RecordKey::Export(service.clone()), Payload::Export(Box::new(export(&service))))
}
