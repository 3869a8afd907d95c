//! Memberships and verified records, made once a process: signatures are what a simulation would spend its time on.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use federation::delegation::NamespaceSet;
use federation::{ClusterName, FederationDomain};
use federation_api::record::v1::{Member, Signed, Statement};
use federation_api::signing::{MembershipRoot, PublishKey, Speaker};
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{DenyList, VerifiedMember, VerifiedStatement, verify_member};
use federator::members::Members;
use prost::Message as _;

/// Clusters of a world.
pub(crate) const CLUSTERS: usize = 3;
/// Memberships that each may have, one after the other.
pub(crate) const GENERATIONS: usize = 3;

/// One membership.
pub(crate) struct Membership {
    pub(crate) member: VerifiedMember,
    /// As trust-bundle tells it.
    pub(crate) source: Member,
    key: Vec<u8>,
    generation: u64,
}

impl Membership {
    pub(crate) fn speaker(&self, cluster: usize) -> Speaker {
        Speaker {
            federation: domain(),
            cluster: name(cluster),
            generation: self.generation,
            key: PublishKey::from_pkcs8(&self.key).unwrap(),
        }
    }
}

pub(crate) fn name(cluster: usize) -> ClusterName {
    ["east", "north", "west"][cluster].parse().unwrap()
}

pub(crate) fn number(cluster: &ClusterName) -> usize {
    (0..CLUSTERS).find(|number| name(*number) == *cluster).unwrap()
}

fn domain() -> FederationDomain {
    "mesh.example".parse().unwrap()
}

/// The clock at the beginning of every world.
pub(crate) fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn federation() -> &'static (MembershipRoot, Vec<Membership>) {
    static FEDERATION: OnceLock<(MembershipRoot, Vec<Membership>)> = OnceLock::new();
    FEDERATION.get_or_init(|| {
        let root = MembershipRoot::generate().unwrap();
        let pairs = (0..CLUSTERS).flat_map(|cluster| (0..GENERATIONS).map(move |generation| (cluster, generation)));
        let memberships = pairs.map(|(cluster, generation)| make(&root, cluster, generation)).collect();
        (root, memberships)
    })
}

pub(crate) fn membership(cluster: usize, generation: usize) -> &'static Membership {
    &federation().1[cluster * GENERATIONS + generation]
}

/// What a replica knows in the beginning: everybody's first membership.
pub(crate) fn members() -> Members {
    static MEMBERS: OnceLock<Members> = OnceLock::new();
    let first = || {
        let mut members = Members::new(federation().0.public(), domain());
        let sources = (0..CLUSTERS).map(|cluster| membership(cluster, 0).source.clone()).collect();
        members.apply(&WatchResponse { members: sources, ..WatchResponse::default() });
        members
    };
    MEMBERS.get_or_init(first).clone()
}

/// Nobody is shut out.
pub(crate) fn nobody() -> DenyList {
    DenyList::empty(domain())
}

/// As the operator signs it.
pub(crate) fn signed(list: &DenyList) -> Signed {
    federation().0.deny(&list.to_wire())
}

fn make(root: &MembershipRoot, cluster: usize, generation: usize) -> Membership {
    let created = epoch() - Duration::from_secs(1_000 - generation as u64);
    let request = TokenRequest {
        federation: domain(),
        cluster: name(cluster),
        namespaces: NamespaceSet::All,
        address_ranges: Vec::new(),
        host_names: Vec::new(),
        federation_roots: vec![vec![1]],
        trust_bundle_addresses: vec!["127.0.0.1:1".to_owned()],
        federator_addresses: vec!["127.0.0.1:1".to_owned()],
        created,
        lifetime: Duration::from_secs(60),
    };
    let token = JoinToken::create(root, request).unwrap();
    let key = PublishKey::generate().unwrap();
    let member = token.member(&key.public(), created);
    let (member, source) = (verify_member(&root.public(), &domain(), &member, None).unwrap(), member);
    Membership { generation: member.generation(), member, source, key: key.to_pkcs8().unwrap() }
}

type Verified = HashMap<Vec<u8>, Option<Rc<VerifiedStatement>>>;

/// What a receiver that knows these memberships makes of a record; each is verified once.
pub(crate) fn verify(signed: &Signed, generations: &[usize; CLUSTERS]) -> Option<Rc<VerifiedStatement>> {
    thread_local! { static VERIFIED: RefCell<BTreeMap<usize, Verified>> = RefCell::default(); }
    let cluster = number(&Statement::decode(signed.message.clone()).ok()?.cluster.parse().ok()?);
    let slot = cluster * GENERATIONS + generations[cluster];
    VERIFIED.with_borrow_mut(|verified| {
        let known = verified.entry(slot).or_default();
        if known.len() > 10_000 {
            known.clear();
        }
        let bytes = [signed.message.as_ref(), signed.signature.as_ref()].concat();
        let judge = || membership(cluster, generations[cluster]).member.verify(signed).ok().map(Rc::new);
        known.entry(bytes).or_insert_with(judge).clone()
    })
}
