//! Who is shut out.

use std::time::{Duration, UNIX_EPOCH};

use federation_api::record::v1 as wire;
use federation_api::signing::MembershipRoot;
use federation_api::verify::{DenyList, DenyListError, NoSuccessor, verify_deny_list};

use crate::fixture::{East, east, federation};

const HOUR: Duration = Duration::from_secs(3_600);

fn list() -> DenyList {
    let mut list = DenyList::empty(federation());
    list.epoch = 3;
    list.clusters.insert(east());
    list.spiffe_ids.insert("spiffe://west.mesh.example/ns/shop/sa/cart".to_owned());
    list.evictions.insert("north".parse().unwrap(), 7);
    list
}

#[test]
fn a_signed_list_comes_back() {
    let root = MembershipRoot::generate().unwrap();
    let signed = root.deny(&list().to_wire());
    assert_eq!(verify_deny_list(&root.public(), &federation(), &signed).unwrap(), list());
}

#[test]
fn it_names_clusters_with_all_their_identities_and_single_identities() {
    let list = list();
    for (id, denied) in [
        ("spiffe://east.mesh.example/ns/shop/sa/cart", true),
        ("spiffe://mesh.example/cluster/east/control-plane", true),
        ("spiffe://west.mesh.example/ns/shop/sa/cart", true),
        ("spiffe://west.mesh.example/ns/shop/sa/other", false),
        ("spiffe://mesh.example/cluster/west/control-plane", false),
        ("spiffe://mesh.example/service/federator", false),
        ("spiffe://northeast.mesh.example/ns/shop/sa/cart", false),
        ("spiffe://east.mesh.example.org/ns/shop/sa/cart", false),
        ("east", false),
    ] {
        assert_eq!(list.denies(id), denied, "{id}");
    }
    assert!(list.quarantines(&east()) && !list.quarantines(&"west".parse().unwrap()));
    let north = "north".parse().unwrap();
    assert!(list.evicts(&north, 6) && list.evicts(&north, 7) && !list.evicts(&north, 8));
    assert!(!list.evicts(&east(), 0));
}

#[test]
fn it_follows_an_older_one_and_itself_but_no_other_of_its_epoch() {
    let changed = |change: fn(&mut DenyList)| {
        let mut list = list();
        change(&mut list);
        list
    };
    let (list, older) = (list(), changed(|it| it.epoch = 2));
    assert_eq!((list.follows(&older), list.follows(&list)), (Ok(()), Ok(())));
    assert_eq!(older.follows(&list), Err(NoSuccessor::Older { offered: 2, in_force: 3 }));
    assert_eq!(changed(|it| it.issued += HOUR).follows(&list), Ok(()), "signed again later");
    let others: [fn(&mut DenyList); 3] =
        [|it| it.clusters.clear(), |it| it.spiffe_ids.clear(), |it| it.evictions.clear()];
    for mut other in others.map(changed) {
        assert_eq!(other.follows(&list), Err(NoSuccessor::Equivocation(3)));
        other.epoch = 4;
        assert_eq!(other.follows(&list), Ok(()));
    }
}

#[test]
fn a_list_that_is_not_the_roots_or_not_of_this_federation_is_refused() {
    let east = East::new();
    let root = east.root.public();
    let verify = |signed| verify_deny_list(&root, &federation(), &signed).unwrap_err();
    let stranger = MembershipRoot::generate().unwrap();
    assert_eq!(verify(stranger.deny(&list().to_wire())), DenyListError::Signature);
    // The root's own signature, made for a delegation.
    assert_eq!(verify(east.member.delegation.clone().unwrap()), DenyListError::Signature);
    let foreign = wire::DenyList { federation: "other.example".to_owned(), ..list().to_wire() };
    assert!(matches!(verify(east.root.deny(&foreign)), DenyListError::Federation(_)));
    for (field, bad) in [
        ("clusters", wire::DenyList { clusters: vec!["East".to_owned()], ..list().to_wire() }),
        ("spiffe_ids", wire::DenyList { spiffe_ids: vec!["east".to_owned()], ..list().to_wire() }),
        ("evictions.cluster", wire::DenyList { evictions: vec![wire::Eviction::default()], ..list().to_wire() }),
    ] {
        assert!(matches!(verify(east.root.deny(&bad)), DenyListError::Field(error) if error.field == field));
    }
}

#[test]
fn of_two_evictions_the_later_counts() {
    let root = MembershipRoot::generate().unwrap();
    let eviction = |generation| wire::Eviction { cluster: "north".to_owned(), generation };
    let message = wire::DenyList { evictions: vec![eviction(9), eviction(4)], ..list().to_wire() };
    let list = verify_deny_list(&root.public(), &federation(), &root.deny(&message)).unwrap();
    assert!(list.evicts(&"north".parse().unwrap(), 9));
    assert_eq!(list.issued, UNIX_EPOCH);
}
