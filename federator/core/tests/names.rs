//! Names and server names: what parses, what does not, and that what parses prints as it was.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use federation::name::NameError;
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
fn endpoints_of_headless_services_have_hosts_below_their_services() {
    let host: ServiceHost = "DB-0.West.db.shop.svc.clusterset.local.".parse().unwrap();
    assert_eq!(host.to_string(), "db-0.west.db.shop.svc.clusterset.local");
    let service: ServiceId = "shop/db".parse().unwrap();
    assert_eq!((host.service(), host.endpoint().unwrap().0.as_str()), (&service, "west"));
    assert_eq!(service.endpoint_host("west".parse().unwrap(), "db-0".parse().unwrap()), Ok(host.clone()));
    assert!(service.host() < host && service.host().endpoint().is_none());
    let sni: Sni = format!("outbound_.5432_.c-west.e-3_.{host}").parse().unwrap();
    assert_eq!(sni.host, host.clone().into());
    for bad in ["west.db.shop", "a.b.west.db.shop", "-a.west.db.shop", "a..db.shop", ".west.db.shop", "a.w_t.db.shop"] {
        assert!(format!("{bad}.svc.clusterset.local").parse::<ServiceHost>().is_err(), "{bad}");
    }
    assert!("db-0.west.db.shop.svc.cluster.local".parse::<MeshHost>().is_err());

    let [endpoint, whole]: [MeshHost; 2] = [host.into(), service.host().into()];
    let other: MeshHost = "db-1.west.db.shop.svc.clusterset.local".parse().unwrap();
    assert!(
        endpoint.answers_to(&endpoint) && endpoint.answers_to(&whole),
        "the service's name stands for each of them"
    );
    assert!(
        !endpoint.answers_to(&other) && !whole.answers_to(&endpoint) && !endpoint.answers_to(&service.local_host())
    );
    assert_eq!((endpoint.label(), endpoint.service()), (whole.label(), whole.service()));
}

#[test]
fn an_endpoints_host_fits_into_every_server_name() {
    let (label, cluster) = ("a".repeat(63), ClusterName::parse("eu-central").unwrap());
    let service: ServiceId = format!("{label}/{label}").parse().unwrap();
    let host = |bytes: usize| service.endpoint_host(cluster.clone(), "b".repeat(bytes).parse().unwrap());
    let longest = host(54).unwrap();
    assert_eq!(longest.to_string().parse(), Ok(longest.clone()));
    let subset = Subset::Slot(cluster.clone(), u16::MAX);
    assert_eq!(Sni { port: u16::MAX, subset, host: longest.into() }.to_string().len(), 253);
    let error = host(55).unwrap_err();
    let NameError::Length { name, limit: 214 } = &error else { panic!("{error:?}") };
    assert_eq!(name.parse::<ServiceHost>(), Err(NameError::Host(name.clone())));
}

#[test]
fn an_endpoint_is_called_by_its_host_name_or_its_dashed_address() {
    let endpoint = |hostname: Option<&str>, addresses: &[&str]| federation::HeadlessEndpoint {
        hostname: hostname.map(|hostname| hostname.parse().unwrap()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        locality: federation::Locality::default(),
        ready: true,
        service_account: String::new(),
    };
    let label = |hostname, addresses: &[&str]| endpoint(hostname, addresses).label().map(|label| label.to_string());
    assert_eq!(label(Some("db-0"), &["10.0.0.1"]).as_deref(), Some("db-0"));
    assert_eq!(label(None, &["10.244.0.52", "10.0.0.1"]).as_deref(), Some("10-244-0-52"));
    assert_eq!(label(None, &["fd00::1"]).as_deref(), Some("fd00--1"));
    assert_eq!((label(None, &[]), label(None, &["::1"])), (None, None));
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
        let host = match port % 3 {
            0 => service.host().into(),
            1 => service.local_host(),
            _ => service
                .endpoint_host(ClusterName::parse(&name).unwrap(), namespace.parse().unwrap())
                .map_or_else(|_too_long| service.host().into(), MeshHost::from),
        };
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
