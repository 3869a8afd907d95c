//! Names and server names: what parses, what does not, and that what parses prints as it was.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use federation::sni::Subset;
use federation::{ClusterName, FederationDomain, MeshHost, Namespace, RecordKey, ServiceHost, ServiceId, Sni};
use proptest::prelude::*;

#[test]
fn labels_follow_rfc_1123() {
    let longest = "a".repeat(63);
    for good in ["a", "east", "e-1", "0", longest.as_str()] {
        assert!(ClusterName::parse(good).is_ok(), "{good}");
    }
    let too_long = "a".repeat(64);
    for bad in ["", "-a", "a-", "A", "a.b", "a_b", "é", "a b", "a/b", too_long.as_str()] {
        assert!(ClusterName::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn hosts_compare_without_case_and_trailing_dot() {
    let host: ServiceHost = "Shop.Default.svc.ClusterSet.local.".parse().unwrap();
    assert_eq!(host.to_string(), "shop.default.svc.clusterset.local");
    for bad in ["shop.default.svc.cluster.local", "shop.svc.clusterset.local", "a.b.c.svc.clusterset.local", "", "."] {
        assert!(bad.parse::<ServiceHost>().is_err(), "{bad}");
    }
}

#[test]
fn hosts_of_the_own_cluster_are_told_from_those_of_the_clusterset() {
    let host = |text: &str| text.parse::<MeshHost>();
    let local = host("Cart.Shop.svc.Cluster.local.").unwrap();
    assert_eq!((local.is_local(), local.to_string().as_str()), (true, "cart.shop.svc.cluster.local"));
    let clusterset = host("cart.shop.svc.clusterset.local").unwrap();
    assert_eq!((clusterset.is_local(), clusterset.service()), (false, local.service()));
    assert_ne!(clusterset, local);
    assert_eq!((clusterset.label().as_str(), local.label().as_str()), ("shop/cart", "cart.shop.svc.cluster.local"));
    for bad in ["cart.shop.svc", "shop.svc.cluster.local", "a.b.c.svc.cluster.local", "cart.shop.svc.clusterlocal", ""]
    {
        assert!(host(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_trust_domain_names_its_cluster_of_this_federation_only() {
    let domain: FederationDomain = "mesh.example".parse().unwrap();
    let east: ClusterName = "east".parse().unwrap();
    assert_eq!(domain.trust_domain(&east), "east.mesh.example");
    assert_eq!(domain.cluster_of("east.mesh.example"), Some(east));
    for foreign in ["mesh.example", "east.other.example", "a.east.mesh.example", "eastmesh.example", ".mesh.example"] {
        assert_eq!(domain.cluster_of(foreign), None, "{foreign}");
    }
}

#[test]
fn server_names_read_as_istio_writes_them() {
    let host = "shop.default.svc.clusterset.local";
    let table = [
        (format!("outbound_.80_._.{host}"), Subset::Any),
        (format!("outbound_.80_.c-west_.{host}"), Subset::Cluster("west".parse().unwrap())),
        (format!("outbound_.80_.c-west.e-7_.{host}"), Subset::Slot("west".parse().unwrap(), 7)),
    ];
    for (text, subset) in table {
        let sni: Sni = text.parse().unwrap();
        assert_eq!((sni.port, &sni.subset, sni.to_string()), (80, &subset, text));
    }
}

#[test]
fn server_names_that_route_nowhere_are_refused() {
    let host = "shop.default.svc.clusterset.local";
    for bad in [
        format!("inbound_.80_._.{host}"),
        format!("outbound_.0_._.{host}"),
        format!("outbound_.080_._.{host}"),
        format!("outbound_.+80_._.{host}"),
        format!("outbound_.65536_._.{host}"),
        format!("outbound_.80_.v1_.{host}"),
        format!("outbound_.80_.c-_.{host}"),
        format!("outbound_.80_.c-west.e-_.{host}"),
        format!("outbound_.80_.c-west.e-65536_.{host}"),
        host.to_owned(),
        String::new(),
    ] {
        assert!(bad.parse::<Sni>().is_err(), "{bad}");
    }
}

#[test]
fn record_keys_read_as_they_print() {
    for text in ["gateways", "bundle", "heads", "exports/default/shop", "slices/default/shop/shop-x7.a"] {
        assert_eq!(text.parse::<RecordKey>().unwrap().to_string(), text);
    }
    for bad in ["", "exports/default", "exports//shop", "exports/a/b/c", "slices/a/b", "slices/a/b/", "members/x"] {
        assert!(bad.parse::<RecordKey>().is_err(), "{bad}");
    }
}

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
}

proptest! {
    #[test]
    fn every_server_name_survives_a_round_trip(
        name in label(), namespace in label(), cluster in label(), port in 1u16.., slot in any::<Option<u16>>(),
    ) {
        let service = ServiceId::parse_parts(&namespace, &name).unwrap();
        let cluster = ClusterName::parse(&cluster).unwrap();
        let subset = slot.map_or(Subset::Cluster(cluster.clone()), |slot| Subset::Slot(cluster, slot));
        let host = if port % 2 == 0 { service.host().into() } else { service.local_host() };
        let sni = Sni { port, subset, host };
        prop_assert_eq!(sni.to_string().parse::<Sni>().unwrap(), sni.clone());
        prop_assert_eq!(sni.to_string().to_ascii_uppercase().parse::<Sni>().unwrap(), sni);
    }

    #[test]
    fn no_text_panics(text in ".*") {
        let _ = text.parse::<Sni>();
        let _ = text.parse::<ServiceHost>();
        let _ = text.parse::<MeshHost>();
        let _ = text.parse::<RecordKey>();
        let _ = text.parse::<ServiceId>();
        let _ = Namespace::parse(&text);
    }
}
