//! What a captured hub, or a captured member, cannot make a cluster believe. Each refusal has a twin beside it that differs in
//! one thing and is believed.

use std::time::{Duration, SystemTime};

use control_plane::peers::Peers;
use federation::{Export, Gateway, GatewayAddress, Locality, RecordKey};
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, PublishKeyGrant, Signed, Statement};
use federation_api::signing::{MembershipRoot, PublishKey, Speaker};
use federation_api::token::rotate;
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{DenyList, verify_member};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use spiffe_identity::Bundle;

use crate::member::{Peer, cluster, export, federation, token};

const CART: &str = "shop/cart";

struct East {
    root: MembershipRoot,
    peers: Peers,
    epoch: u64,
}

impl East {
    fn new() -> Self {
        let root = MembershipRoot::generate().unwrap();
        let mut peers = Peers::new(cluster("east"), federation(), 0.0);
        let ((), _) = peers.change_trust(SystemTime::now(), |trust| trust.pin(root.public()));
        Self { root, peers, epoch: 0 }
    }

    /// A step of the trust state; what of it is refused.
    fn hear(&mut self, update: WatchResponse) -> Vec<String> {
        self.epoch += 1;
        let update = WatchResponse { incarnation: "one".to_owned(), epoch: self.epoch, ..update };
        let (refusals, _) = self.peers.change_trust(SystemTime::now(), |trust| trust.apply(&update));
        refusals.iter().map(ToString::to_string).collect()
    }

    fn meet(&mut self, name: &str) -> Peer {
        let mut peer = Peer::new(&self.root, name);
        let bundle = peer.bundle();
        let update =
            WatchResponse { members: vec![peer.member.clone()], bundles: vec![bundle], ..WatchResponse::default() };
        assert_eq!(self.hear(update), Vec::<String>::new());
        peer
    }

    fn take(&mut self, records: Vec<Signed>) {
        self.peers.apply(records, SystemTime::now());
    }

    fn cart(&self) -> Option<Export> {
        self.peers.exports(&CART.parse().unwrap()).next().map(|(_, export)| export.clone())
    }
}

/// The same envelope around another statement.
fn changed(signed: &Signed, change: impl FnOnce(&mut Statement)) -> Signed {
    let mut statement = Statement::decode(signed.message.as_ref()).unwrap();
    change(&mut statement);
    Signed { message: statement.encode_to_vec().into(), signature: signed.signature.clone() }
}

#[test]
fn a_hub_that_changes_an_export_an_identity_list_or_a_gateway_is_not_believed() {
    use federation_api::record::v1::statement::Payload as Wire;
    let mut east = East::new();
    let mut west = east.meet("west");
    let (told, gateways) = (west.export(CART, |_| {}), west.gateway("127.9.0.9", 15443));
    let port = changed(&told, |it| {
        if let Some(Wire::Export(export)) = &mut it.payload {
            export.ports[0].port = 1
        }
    });
    let account = changed(&told, |it| {
        if let Some(Wire::Export(export)) = &mut it.payload {
            export.service_accounts.push("admin".to_owned());
        }
    });
    let redirected = changed(&gateways, |it| {
        if let Some(Wire::Gateways(gateways)) = &mut it.payload {
            gateways.gateways[0].address = "127.6.6.6".to_owned();
        }
    });
    let later = changed(&told, |it| it.sequence += 1);
    east.take(vec![port, account, redirected, later]);
    assert!(east.cart().is_none() && east.peers.gateways(&cluster("west")).is_empty());
    east.take(vec![told, gateways]);
    assert_eq!(east.cart().unwrap().service_accounts, ["cart"]);
    assert_eq!(east.peers.gateways(&cluster("west")).len(), 1);
}

#[test]
fn a_hub_that_goes_back_to_an_old_store_brings_nothing_back() {
    let mut east = East::new();
    let mut west = east.meet("west");
    let (old, withdrawn) = (west.export(CART, |_| {}), RecordKey::Export(CART.parse().unwrap()));
    east.take(vec![old.clone()]);
    assert!(east.cart().is_some());
    east.take(vec![west.say(&withdrawn, &Payload::Withdrawal)]);
    east.take(vec![old]);
    assert!(east.cart().is_none(), "a withdrawn export came back");
    let news = west.export(CART, |_| {});
    east.take(vec![news]);
    assert!(east.cart().is_some());

    // The deny-list, and a membership from before it was replaced.
    let mut list = DenyList::empty(federation());
    list.epoch = 2;
    list.clusters.insert(cluster("west"));
    let deny = |east: &East, list: &DenyList| WatchResponse {
        deny_list: Some(east.root.deny(&list.to_wire())),
        full: true,
        ..WatchResponse::default()
    };
    let quarantine = deny(&east, &list);
    assert_eq!(east.hear(quarantine), Vec::<String>::new());
    assert!(east.cart().is_none());
    list.epoch = 1;
    list.clusters.clear();
    let older = deny(&east, &list);
    assert!(east.hear(older)[0].contains("older"), "a quarantine was lifted by an old list");
    assert!(east.cart().is_none());
    list.epoch = 3;
    let release = deny(&east, &list);
    assert_eq!(east.hear(release), Vec::<String>::new());
    assert!(east.cart().is_some());
    let before = west.member.clone();
    let roots = |east: &East| east.peers.trust().bundle(&cluster("west")).unwrap().x509_authorities.clone();
    let old_roots = roots(&east);
    let successor = east.meet("west");
    assert_ne!(roots(&east), old_roots, "another membership comes with roots of its own");
    let replaced = WatchResponse { members: vec![before], ..WatchResponse::default() };
    assert!(east.hear(replaced)[0].contains("newer"));
    assert_eq!(east.peers.trust().member(&cluster("west")).unwrap().generation(), successor.verified.generation());
}

#[test]
fn a_hub_that_has_two_deny_lists_of_one_epoch_cannot_change_from_one_to_the_other() {
    let mut east = East::new();
    let mut west = east.meet("west");
    let export = west.export(CART, |_| {});
    east.take(vec![export]);
    let mut list = DenyList::empty(federation());
    list.epoch = 2;
    list.clusters.insert(cluster("west"));
    let deny = |east: &East, list: &DenyList| WatchResponse {
        deny_list: Some(east.root.deny(&list.to_wire())),
        ..WatchResponse::default()
    };
    for _ in 0..2 {
        let quarantine = deny(&east, &list);
        assert_eq!(east.hear(quarantine), Vec::<String>::new(), "the same again is no other list");
    }
    list.clusters.clear();
    let other = deny(&east, &list);
    assert!(east.hear(other)[0].contains("another list of epoch 2"), "a quarantine was lifted without a later list");
    assert!(east.cart().is_none());
    list.epoch = 3;
    let release = deny(&east, &list);
    assert_eq!(east.hear(release), Vec::<String>::new());
    assert!(east.cart().is_some());
}

#[test]
fn a_hub_that_invents_a_member_or_a_quarantine_is_not_believed() {
    let mut east = East::new();
    let other = MembershipRoot::generate().unwrap();
    let mut invented = Peer::new(&other, "west");
    let mut list = DenyList::empty(federation());
    list.epoch = 9;
    list.clusters.insert(cluster("north"));
    let north = east.meet("north");
    let update = WatchResponse {
        members: vec![invented.member.clone()],
        bundles: vec![invented.bundle()],
        deny_list: Some(other.deny(&list.to_wire())),
        ..WatchResponse::default()
    };
    assert_eq!(east.hear(update).len(), 3);
    east.take(vec![invented.export(CART, |_| {})]);
    assert!(east.cart().is_none());
    assert!(east.peers.trust().bundle(north.verified.cluster()).is_some(), "nobody is shut out by a stranger's word");
    let mut genuine = east.meet("west");
    east.take(vec![genuine.export(CART, |_| {})]);
    assert!(east.cart().is_some());
}

#[test]
fn a_publish_key_that_was_replaced_speaks_no_longer_whatever_order_things_come_in() {
    let mut east = East::new();
    let mut west = east.meet("west");
    let before = west.export(CART, |_| {});
    let sequence = Statement::decode(before.message.as_ref()).unwrap().sequence;
    let old = PublishKey::from_pkcs8(&west.joined(&east.root).speaker.key.to_pkcs8().unwrap()).unwrap();
    let key = PublishKey::generate().unwrap();
    let grant = old.grant(&PublishKeyGrant {
        federation: federation().to_string(),
        cluster: "west".to_owned(),
        generation: west.verified.generation(),
        publish_public_key: key.public().as_bytes().to_vec(),
        joined_at_ms: 0,
        after_sequence: sequence,
    });
    let member = Member { grants: [west.member.grants.clone(), vec![grant]].concat(), ..west.member.clone() };
    verify_member(&east.root.public(), &federation(), &member, None).unwrap();
    let speaker = |key| Speaker {
        federation: federation(),
        cluster: cluster("west"),
        generation: west.verified.generation(),
        key,
    };
    let say = |speaker: &Speaker, sequence, accounts: &str| {
        let said = Export { service_accounts: vec![accounts.to_owned()], ..export(CART) };
        let record = RecordKey::Export(CART.parse().unwrap());
        speaker.sign(sequence, SystemTime::now(), &record, &Payload::Export(Box::new(said))).unwrap()
    };
    let (thief, owner) = (speaker(old), speaker(key));
    east.take(vec![before]);
    // The record of the next key is here before its grant is: it waits.
    east.take(vec![say(&owner, sequence + 1, "next")]);
    assert_eq!(east.cart().unwrap().service_accounts, ["cart"]);
    assert_eq!(east.hear(WatchResponse { members: vec![member], ..WatchResponse::default() }), Vec::<String>::new());
    assert_eq!(east.cart().unwrap().service_accounts, ["next"]);
    east.take(vec![say(&thief, sequence + 2, "thief")]);
    assert_eq!(east.cart().unwrap().service_accounts, ["next"]);
    east.take(vec![say(&owner, sequence + 2, "owner")]);
    assert_eq!(east.cart().unwrap().service_accounts, ["owner"]);
    // Nor does a grant that the old key makes now, for whoever holds it, however many follow it.
    let stolen = |after_sequence| {
        let next = PublishKey::generate().unwrap();
        let grant = PublishKeyGrant {
            federation: federation().to_string(),
            cluster: "west".to_owned(),
            generation: west.verified.generation(),
            publish_public_key: next.public().as_bytes().to_vec(),
            joined_at_ms: 0,
            after_sequence,
        };
        (grant, next)
    };
    let (first, next) = stolen(sequence + 1);
    let grants = [thief.key.grant(&first), next.grant(&stolen(sequence + 2).0)];
    for taken in 1..=grants.len() {
        let grants = [west.member.grants.as_slice(), &grants[..taken]].concat();
        let member = Member { grants, ..west.member.clone() };
        verify_member(&east.root.public(), &federation(), &member, None).unwrap();
        let refused = east.hear(WatchResponse { members: vec![member], ..WatchResponse::default() });
        assert!(refused.len() == 1 && refused[0].contains("other keys are known"), "{refused:?}");
    }
    // The membership without the grant does not bring the old key back.
    let earlier = WatchResponse { members: vec![west.member.clone()], ..WatchResponse::default() };
    assert_eq!(east.hear(earlier).len(), 1);
    east.take(vec![say(&thief, sequence + 3, "thief")]);
    assert_eq!(east.cart().unwrap().service_accounts, ["owner"]);
}

#[test]
fn a_member_cannot_claim_age_capacity_identities_or_addresses_that_are_not_its_own() {
    let mut east = East::new();
    let mut west = east.meet("west");
    let bold = west.export(CART, |export| {
        export.created = SystemTime::UNIX_EPOCH;
        export.zones[0].total = u32::MAX;
        export.zones[0].ready = u32::MAX;
    });
    east.take(vec![bold]);
    let held = east.cart().unwrap();
    assert!(held.created + Duration::from_secs(1) >= west.verified.joined(), "older than its membership");
    assert!(held.zones[0].total < u32::MAX && held.zones[0].ready <= held.zones[0].total);
    let modest = west.export(CART, |_| {});
    east.take(vec![modest]);
    assert_eq!(east.cart().unwrap().zones[0].total, 2);

    // An account that would reach into another trust domain or namespace.
    for smuggled in ["../../ns/kube-system/sa/admin", "cart/../../sa/admin", "spiffe://east.mesh.example/ns/shop/sa/x"]
    {
        let record = west.export(CART, |export| export.service_accounts = vec![smuggled.to_owned(), "cart".to_owned()]);
        east.take(vec![record]);
        let accounts = east.cart().unwrap().service_accounts;
        let ids = accounts.iter().filter_map(|it| control_plane::resources::identity("west.mesh.example", "shop", it));
        let foreign: Vec<_> = ids.filter(|id| !id.starts_with("spiffe://west.mesh.example/ns/shop/sa/")).collect();
        assert!(foreign.is_empty(), "{smuggled}: {foreign:?}");
    }

    // Its token allows loopback here; link-local and metadata addresses were never delegated.
    let gateway = |name: &str, address: &str| Gateway {
        name: name.to_owned(),
        address: GatewayAddress::Ip(address.parse().unwrap()),
        port: 15443,
        locality: Locality::default(),
        draining: false,
    };
    let claimed = [gateway("a", "127.0.0.7"), gateway("b", "169.254.169.254"), gateway("c", "fe80::1")].to_vec();
    east.take(vec![west.say(&RecordKey::Gateways, &Payload::Gateways(claimed))]);
    let names: Vec<_> = east.peers.gateways(&cluster("west")).iter().map(|it| it.name.clone()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn who_has_a_used_token_replaces_nobody_though_the_hub_says_so() {
    let mut east = East::new();
    let used = token(&east.root, "west", vec![vec![1]], ["a:1".to_owned(), "b:1".to_owned()]);
    let [owner, next, thief] = [(); 3].map(|()| PublishKey::generate().unwrap());
    let tell = |member: &Member| WatchResponse { members: vec![member.clone()], ..WatchResponse::default() };
    let genuine = used.member(&owner.public(), SystemTime::now());
    assert_eq!(east.hear(tell(&genuine)), Vec::<String>::new());
    let mut forged = used.member(&thief.public(), SystemTime::now());
    let verified = verify_member(&east.root.public(), &federation(), &forged, None).unwrap();
    let refused = east.hear(tell(&forged));
    assert!(refused.len() == 1 && refused[0].contains("other keys are known"), "{refused:?}");
    forged.grants.push(rotate(&thief, &verified, &next.public(), 10));
    assert_eq!(east.hear(tell(&forged)).len(), 1, "a longer chain is no better one");
    let known = |east: &East| east.peers.trust().member(&cluster("west")).unwrap().clone();
    assert_eq!(known(&east), verify_member(&east.root.public(), &federation(), &genuine, None).unwrap());
    // The twin: the owner's own next key.
    let mut rotated = genuine;
    let before = known(&east);
    rotated.grants.push(rotate(&owner, &before, &next.public(), 10));
    assert_eq!(east.hear(tell(&rotated)), Vec::<String>::new());
    assert_eq!(known(&east).publish_keys(), 2);
}

/// A member's bundle with a root of this key.
fn bundle_with(peer: &mut Peer, key: &KeyPair, sequence: u64) -> Signed {
    let trust_domain = peer.authority.trust_domain().clone();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, trust_domain.as_str());
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let x509_authorities = vec![params.self_signed(key).unwrap().der().clone()];
    let bundle = Bundle { trust_domain: trust_domain.clone(), x509_authorities, sequence, refresh_hint: None };
    let jwks = bundle.to_jwks().into_bytes();
    peer.say(&RecordKey::Bundle, &Payload::Bundle { trust_domain: trust_domain.to_string(), jwks })
}

#[test]
fn a_member_with_anothers_root_key_silences_nobody() {
    let mut east = East::new();
    let (mut west, mut north) = (Peer::new(&east.root, "west"), Peer::new(&east.root, "north"));
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let told = |bundle: Signed, member: &Peer| WatchResponse {
        members: vec![member.member.clone()],
        bundles: vec![bundle],
        ..WatchResponse::default()
    };
    let first = bundle_with(&mut west, &key, 1);
    assert_eq!(east.hear(told(first, &west)), Vec::<String>::new());
    let captured = bundle_with(&mut north, &key, 1);
    let refused = east.hear(told(captured, &north));
    assert!(refused.len() == 1 && refused[0].contains("a root's key of cluster west"), "{refused:?}");
    assert!(east.peers.trust().bundle(&cluster("north")).is_none());
    let next = bundle_with(&mut west, &key, 2);
    assert_eq!(east.hear(told(next, &west)), Vec::<String>::new(), "whose key it is goes on");
    let own = bundle_with(&mut north, &other, 2);
    assert_eq!(east.hear(told(own, &north)), Vec::<String>::new());
    assert!(east.peers.trust().bundle(&cluster("north")).is_some());
}
