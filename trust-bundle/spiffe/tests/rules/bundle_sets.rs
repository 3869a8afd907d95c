use proptest::prelude::*;
use rcgen::KeyPair;
use spiffe_identity::{
    Accepted, AuthorityError, Bundle, BundleSet, CertificateDer, MAX_TRUST_DOMAINS, OfferError, TrustDomain,
    owner_of_shared_key,
};

use crate::certificates::{leaf, root, signed, uri};

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn east() -> TrustDomain {
    domain("east.mesh.example")
}

fn root_of(trust_domain: &TrustDomain, key: &KeyPair) -> CertificateDer<'static> {
    let mut params = root();
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
    params.self_signed(key).unwrap().der().clone()
}

fn new_root(trust_domain: &TrustDomain) -> CertificateDer<'static> {
    root_of(trust_domain, &KeyPair::generate().unwrap())
}

fn bundle(trust_domain: &TrustDomain, sequence: u64, roots: &[&CertificateDer<'static>]) -> Bundle {
    let x509_authorities = roots.iter().map(|root| (*root).clone()).collect();
    Bundle { trust_domain: trust_domain.clone(), x509_authorities, sequence, refresh_hint: None }
}

#[test]
fn a_lower_sequence_is_refused_and_a_higher_one_taken() {
    let (one, two) = (new_root(&east()), new_root(&east()));
    let mut set = BundleSet::new();
    assert_eq!(set.offer(bundle(&east(), 7, &[&one])), Ok(Accepted::New));
    let older = Err(OfferError::Older { trust_domain: east(), highest: 7, offered: 6 });
    assert_eq!(set.offer(bundle(&east(), 6, &[&two])), older);
    assert_eq!(set.offer(bundle(&east(), 6, &[&one])), older, "the same roots are an older bundle too");
    assert_eq!(set.bundle(&east()), Some(&bundle(&east(), 7, &[&one])), "what is refused changes nothing");
    assert_eq!(set.offer(bundle(&east(), 8, &[&two])), Ok(Accepted::Changed));
    assert_eq!(set.highest(&east()), Some(8));
}

#[test]
fn the_same_sequence_is_taken_with_the_same_roots_only() {
    let (one, two) = (new_root(&east()), new_root(&east()));
    let mut set = BundleSet::new();
    set.offer(bundle(&east(), 7, &[&one, &two])).unwrap();
    assert_eq!(set.offer(bundle(&east(), 7, &[&two, &one])), Ok(Accepted::Unchanged), "their order means nothing");
    let refused = Err(OfferError::Equivocation { trust_domain: east(), sequence: 7 });
    assert_eq!(set.offer(bundle(&east(), 7, &[&one])), refused);
    assert_eq!(set.offer(bundle(&east(), 7, &[])), refused);
    assert_eq!(set.check(&bundle(&east(), 8, &[&one])), Ok(Accepted::Changed));
}

#[test]
fn a_sequence_that_nothing_could_follow_is_refused() {
    let one = new_root(&east());
    let mut set = BundleSet::new();
    assert_eq!(set.offer(bundle(&east(), u64::MAX, &[&one])), Err(OfferError::LastSequence(east())));
    assert_eq!(set.offer(bundle(&east(), u64::MAX - 1, &[&one])), Ok(Accepted::New));
    set.reset(&east());
    assert_eq!(set.offer(bundle(&east(), 1, &[&one])), Ok(Accepted::New), "the operator let it start again");
}

#[test]
fn uncounted_bundles_replace_each_other_until_the_first_counted_one() {
    let (one, two) = (new_root(&east()), new_root(&east()));
    let mut set = BundleSet::new();
    assert_eq!(set.offer(bundle(&east(), 0, &[&one])), Ok(Accepted::New));
    assert_eq!(set.offer(bundle(&east(), 0, &[&two])), Ok(Accepted::Changed));
    assert_eq!(set.offer(bundle(&east(), 1, &[&two])), Ok(Accepted::Unchanged));
    assert!(matches!(set.offer(bundle(&east(), 0, &[&two])), Err(OfferError::Older { .. })));
}

#[test]
fn one_key_is_a_root_of_one_trust_domain_only() {
    let west = domain("west.mesh.example");
    let (shared, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut set = BundleSet::new();
    set.offer(bundle(&east(), 1, &[&root_of(&east(), &shared)])).unwrap();
    // West's own certificate of east's key, beside a good one.
    let (stolen, good) = (root_of(&west, &shared), root_of(&west, &own));
    let refused = Err(OfferError::SharedKey { trust_domain: west.clone(), owner: east() });
    assert_eq!(set.offer(bundle(&west, 1, &[&good, &stolen])), refused);
    assert_eq!(set.offer(bundle(&west, 1, &[&good])), Ok(Accepted::New));
    assert_eq!(set.offer(bundle(&west, 2, &[&good, &stolen])), refused, "nor later");
    set.forget(&east());
    assert_eq!(set.offer(bundle(&west, 2, &[&good, &stolen])), Ok(Accepted::Changed), "east has left");
    let reversed = OfferError::SharedKey { trust_domain: east(), owner: west };
    assert_eq!(set.offer(bundle(&east(), 2, &[&root_of(&east(), &shared)])), Err(reversed));
}

#[test]
fn the_owner_of_a_shared_key_is_found_among_others_only() {
    let west = domain("west.mesh.example");
    let (shared, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let members = [bundle(&east(), 1, &[&root_of(&east(), &shared)])];
    let captured = bundle(&west, 1, &[&root_of(&west, &own), &root_of(&west, &shared)]);
    assert_eq!(owner_of_shared_key(&captured, &members), Some(&east()));
    assert_eq!(owner_of_shared_key(&bundle(&west, 1, &[&root_of(&west, &own)]), &members), None);
    assert_eq!(owner_of_shared_key(&members[0], &members), None, "one's own key is no shared one");
}

#[test]
fn a_thousand_trust_domains_are_the_most() {
    let mut set = BundleSet::new();
    let name = |index: usize| domain(&format!("c{index}.mesh.example"));
    for index in 0..MAX_TRUST_DOMAINS {
        assert_eq!(set.offer(bundle(&name(index), 1, &[])), Ok(Accepted::New));
    }
    let one_more = name(MAX_TRUST_DOMAINS);
    let refused = Err(OfferError::TooManyTrustDomains(one_more.clone()));
    assert_eq!(set.offer(bundle(&one_more, 1, &[])), refused);
    assert_eq!(set.offer(bundle(&name(3), 2, &[])), Ok(Accepted::Unchanged), "those that are known go on");
    set.forget(&name(3));
    assert_eq!(set.offer(bundle(&one_more, 1, &[])), refused, "a forgotten one still counts");
    set.reset(&name(3));
    assert_eq!(set.offer(bundle(&one_more, 1, &[])), Ok(Accepted::New));
}

#[test]
fn what_no_reader_would_accept_is_refused_here_too() {
    let west_root = new_root(&domain("west.mesh.example"));
    let mut set = BundleSet::new();
    let foreign = set.offer(bundle(&east(), 1, &[&west_root]));
    assert!(matches!(foreign, Err(OfferError::Authority { source: AuthorityError::TrustDomain { .. }, .. })));
    let no_root = set.offer(bundle(&east(), 1, &[&signed(&leaf()).der().clone()]));
    assert!(matches!(no_root, Err(OfferError::Authority { source: AuthorityError::NotAuthority, .. })));
    let roots: Vec<_> = (0..17).map(|_| new_root(&east())).collect();
    let roots: Vec<_> = roots.iter().collect();
    let refused = Err(OfferError::TooManyAuthorities { trust_domain: east(), roots: 17 });
    assert_eq!(set.offer(bundle(&east(), 1, &roots)), refused);
    assert_eq!(set.offer(bundle(&east(), 1, &roots[..16])), Ok(Accepted::New));
}

#[test]
fn a_stored_set_comes_back_with_its_highest_sequences() {
    let west = domain("west.mesh.example");
    let (one, two) = (new_root(&east()), new_root(&west));
    let mut set = BundleSet::new();
    set.offer(bundle(&east(), 7, &[&one])).unwrap();
    set.offer(bundle(&west, 9, &[&two])).unwrap();
    set.forget(&west);
    let mut again: BundleSet = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
    assert_eq!(again.bundles().map(|bundle| bundle.trust_domain.clone()).collect::<Vec<_>>(), [east()]);
    assert!(matches!(again.offer(bundle(&east(), 6, &[&one])), Err(OfferError::Older { highest: 7, .. })));
    assert!(matches!(again.offer(bundle(&west, 8, &[&two])), Err(OfferError::Older { highest: 9, .. })));
    let other = new_root(&west);
    assert!(matches!(again.offer(bundle(&west, 9, &[&other])), Err(OfferError::Equivocation { .. })));
    assert_eq!(again.offer(bundle(&west, 9, &[&two])), Ok(Accepted::New));
}

#[test]
fn a_stored_set_that_somebody_changed_is_refused() {
    let west = domain("west.mesh.example");
    let shared = KeyPair::generate().unwrap();
    let mut set = BundleSet::new();
    set.offer(bundle(&east(), 7, &[&root_of(&east(), &shared)])).unwrap();
    let good = serde_json::to_value(&set).unwrap();
    let read = |value: serde_json::Value| serde_json::from_value::<BundleSet>(value).map_err(|error| error.to_string());
    assert_eq!(read(good.clone()).unwrap().highest(&east()), Some(7));
    let mut twice = good.clone();
    twice.as_array_mut().unwrap().push(good[0].clone());
    assert!(read(twice).unwrap_err().contains("occurs twice"));
    let mut stolen = good.clone();
    let jwks = bundle(&west, 1, &[&root_of(&west, &shared)]).to_jwks();
    stolen.as_array_mut().unwrap().push(serde_json::json!({"trustDomain": west, "jwks": jwks}));
    assert!(read(stolen).unwrap_err().contains("holds a key that is a root's of east.mesh.example"));
    let mut broken = good;
    broken[0]["jwks"] = "{}".into();
    assert!(read(broken).unwrap_err().contains("has no \"keys\""));
}

proptest! {
    /// Whatever is offered in whatever order, with restarts in between: what is in force never goes back.
    #[test]
    fn sequences_never_go_back(offers in proptest::collection::vec((0..6u64, 0..3usize, any::<bool>()), 1..30)) {
        let roots: Vec<_> = (0..3).map(|_| new_root(&east())).collect();
        let mut set = BundleSet::new();
        for (sequence, root, restart) in offers {
            let before = set.bundle(&east()).cloned();
            let offered = bundle(&east(), sequence, &[&roots[root]]);
            let accepted = set.offer(offered.clone());
            let after = set.bundle(&east()).cloned();
            match (before, accepted) {
                (None, accepted) => prop_assert_eq!(accepted, Ok(Accepted::New)),
                (Some(before), Ok(_)) => {
                    prop_assert!(sequence >= before.sequence);
                    prop_assert!(sequence > before.sequence || sequence == 0
                        || before.x509_authorities == offered.x509_authorities);
                    prop_assert_eq!(after, Some(offered));
                }
                (before, Err(_)) => prop_assert_eq!(after, before),
            }
            if restart {
                set = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
                if let Some(bundle) = set.bundle(&east()) {
                    // A stored bundle spells out the default hint.
                    let plain = Bundle { refresh_hint: None, ..bundle.clone() };
                    set.offer(plain).unwrap();
                }
            }
        }
    }

    /// Whoever offers whose key in whatever order, with some leaving in between: no key is ever in force twice.
    #[test]
    fn no_key_is_ever_in_force_for_two(offers in proptest::collection::vec((0..3usize, 0..3usize, any::<bool>()), 1..25)) {
        let domains = [east(), domain("west.mesh.example"), domain("north.mesh.example")];
        let keys: Vec<_> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
        let mut set = BundleSet::new();
        let mut holders: [Option<usize>; 3] = [None; 3];
        for (sequence, (holder, key, leaves)) in (1..).zip(offers) {
            let offered = bundle(&domains[holder], sequence, &[&root_of(&domains[holder], &keys[key])]);
            let taken = (0..3).any(|other| other != holder && holders[other] == Some(key));
            match set.offer(offered) {
                Err(OfferError::SharedKey { .. }) => prop_assert!(taken),
                accepted => {
                    prop_assert!(accepted.is_ok() && !taken);
                    holders[holder] = Some(key);
                }
            }
            if leaves {
                set.forget(&domains[holder]);
                holders[holder] = None;
            }
        }
    }
}
