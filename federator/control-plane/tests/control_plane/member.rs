//! Another member of the federation, and its keys: it says what a test makes it say.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use federation::delegation::NamespaceSet;
use federation::{
    ClusterName, Export, FederationDomain, Gateway, GatewayAddress, Locality, Port, Protocol, RecordKey, ServiceType,
    ZoneCapacity,
};
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, Signed};
use federation_api::records::{Head, HeadScope};
use federation_api::signing::{MembershipRoot, PublishKey, SequenceClock, Speaker};
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::verify::{VerifiedMember, verify_member};
use spiffe_identity::Bundle;
use svid_issuer::Authority;

pub(crate) const FEDERATION: &str = "mesh.example";

pub(crate) fn federation() -> FederationDomain {
    FEDERATION.parse().unwrap()
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

/// A token for a cluster; `roots` and addresses matter only to who joins over the wire.
pub(crate) fn token(root: &MembershipRoot, name: &str, roots: Vec<Vec<u8>>, addresses: [String; 2]) -> JoinToken {
    let [trust_bundle, federator] = addresses;
    let request = TokenRequest {
        federation: federation(),
        cluster: cluster(name),
        namespaces: NamespaceSet::All,
        address_ranges: vec!["127.0.0.0/8".parse().unwrap()],
        host_names: Vec::new(),
        federation_roots: roots,
        trust_bundle_addresses: vec![trust_bundle],
        federator_addresses: vec![federator],
        created: SystemTime::now(),
        lifetime: Duration::from_secs(900),
    };
    JoinToken::create(root, request).unwrap()
}

/// A member with its keys.
pub(crate) struct Peer {
    pub(crate) member: Member,
    pub(crate) verified: VerifiedMember,
    speaker: Speaker,
    clock: SequenceClock,
    pub(crate) authority: Authority,
    live: BTreeMap<RecordKey, u64>,
    _directory: tempfile::TempDir,
}

impl Peer {
    pub(crate) fn new(root: &MembershipRoot, name: &str) -> Self {
        let token = token(root, name, vec![vec![1]], ["a:1".to_owned(), "b:1".to_owned()]);
        let key = PublishKey::generate().unwrap();
        let member = token.member(&key.public(), SystemTime::now());
        let verified = verify_member(&root.public(), &federation(), &member, None).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let trust_domain = federation().trust_domain(&cluster(name)).parse().unwrap();
        let authority = Authority::open_or_create(directory.path(), &trust_domain, SystemTime::now()).unwrap();
        Self {
            speaker: Speaker { federation: federation(), cluster: cluster(name), generation: token.generation(), key },
            member,
            verified,
            clock: SequenceClock::after(0),
            authority,
            live: BTreeMap::new(),
            _directory: directory,
        }
    }

    pub(crate) fn joined(&self, root: &MembershipRoot) -> control_plane::reconciler::Joined {
        let key = PublishKey::from_pkcs8(&self.speaker.key.to_pkcs8().unwrap()).unwrap();
        control_plane::reconciler::Joined {
            speaker: Speaker {
                federation: federation(),
                cluster: self.speaker.cluster.clone(),
                generation: self.speaker.generation,
                key,
            },
            successor: None,
            member: self.verified.clone(),
            root: root.public(),
        }
    }

    pub(crate) fn say(&mut self, key: &RecordKey, payload: &Payload) -> Signed {
        let now = SystemTime::now();
        let sequence = self.clock.next(now);
        if *payload == Payload::Withdrawal {
            self.live.remove(key);
        } else {
            self.live.insert(key.clone(), sequence);
        }
        self.speaker.sign(sequence, now, key, payload).unwrap()
    }

    /// It was set back to this word, and holds it for its newest.
    pub(crate) fn forget(&mut self, key: &RecordKey, back_to: &Signed) {
        self.live.insert(key.clone(), self.verified.verify(back_to).unwrap().sequence);
    }

    /// A second, different record with the sequence of the last one.
    pub(crate) fn equivocate(&self, key: &RecordKey, payload: &Payload) -> Signed {
        self.speaker.sign(self.clock.last(), SystemTime::now(), key, payload).unwrap()
    }

    pub(crate) fn heads(&mut self) -> Signed {
        let mut scopes: BTreeMap<HeadScope, Vec<(&RecordKey, u64)>> = BTreeMap::new();
        for (key, sequence) in &self.live {
            if let Some(scope) = HeadScope::of(key) {
                scopes.entry(scope).or_default().push((key, *sequence));
            }
        }
        let heads = scopes.into_iter().map(|(scope, lines)| Head::of(scope, lines)).collect();
        let now = SystemTime::now();
        let sequence = self.clock.next(now);
        self.speaker.sign(sequence, now, &RecordKey::Heads, &Payload::Heads(heads)).unwrap()
    }

    pub(crate) fn export(&mut self, service: &str, change: impl FnOnce(&mut Export)) -> Signed {
        let mut export = export(service);
        change(&mut export);
        self.say(&RecordKey::Export(export.service.clone()), &Payload::Export(Box::new(export)))
    }

    pub(crate) fn gateway(&mut self, address: &str, port: u16) -> Signed {
        let gateway = Gateway {
            name: "gw-0".to_owned(),
            address: GatewayAddress::Ip(address.parse().unwrap()),
            port,
            locality: Locality::new("eu", "eu-b"),
            draining: false,
        };
        self.say(&RecordKey::Gateways, &Payload::Gateways(vec![gateway]))
    }

    pub(crate) fn bundle(&mut self) -> Signed {
        let bundle = Bundle {
            trust_domain: self.authority.trust_domain().clone(),
            x509_authorities: vec![self.authority.root()],
            sequence: 1,
            refresh_hint: None,
        };
        let jwks = bundle.to_jwks().into_bytes();
        self.say(&RecordKey::Bundle, &Payload::Bundle { trust_domain: bundle.trust_domain.to_string(), jwks })
    }
}

pub(crate) fn export(service: &str) -> Export {
    Export {
        service: service.parse().unwrap(),
        service_type: ServiceType::ClusterSetIP,
        ports: vec![port("grpc", 7070)],
        client_ip_affinity: None,
        ip_families: Vec::new(),
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created: SystemTime::now(),
        service_accounts: vec!["cart".to_owned()],
        zones: vec![ZoneCapacity { locality: Locality::new("eu", "eu-b"), total: 2, ready: 2 }],
    }
}

pub(crate) fn port(name: &str, port: u16) -> Port {
    Port { name: name.to_owned(), port, protocol: Protocol::Tcp, app_protocol: String::new() }
}
