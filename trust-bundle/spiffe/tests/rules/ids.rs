use proptest::prelude::*;
use spiffe_identity::{IdError, PlaneRole, SpiffeId, TrustDomain, TrustDomainError};

fn parse(id: &str) -> Result<SpiffeId, IdError> {
    id.parse()
}

/// An ID of exactly `bytes` bytes.
fn long_id(bytes: usize) -> String {
    let id = "spiffe://east.mesh.example/";
    format!("{id}{}", "a".repeat(bytes - id.len()))
}

#[test]
fn each_rule_of_an_id_refuses_what_breaks_it_and_accepts_its_twin() {
    let character = |c| IdError::Character(c);
    let in_domain = |c| IdError::TrustDomain(TrustDomainError::Character(c));
    let table: Vec<(&str, &str, IdError)> = vec![
        ("spiffe://td/a", "SPIFFE://td/a", IdError::Scheme),
        ("spiffe://td/a", "spiffe:/td/a", IdError::Scheme),
        ("spiffe://td/a", "https://td/a", IdError::Scheme),
        ("spiffe://td/a", "td/a", IdError::Scheme),
        ("spiffe://td/a", " spiffe://td/a", IdError::Scheme),
        ("spiffe://td/a", "", IdError::Scheme),
        ("spiffe://td/a", "spiffe:///a", IdError::TrustDomain(TrustDomainError::Empty)),
        ("spiffe://td", "spiffe://", IdError::TrustDomain(TrustDomainError::Empty)),
        ("spiffe://td/a", "spiffe://Td/a", in_domain('T')),
        ("spiffe://td/a", "spiffe://td:8443/a", in_domain(':')),
        ("spiffe://td/a", "spiffe://user@td/a", in_domain('@')),
        ("spiffe://td/a", "spiffe://t%64/a", in_domain('%')),
        ("spiffe://td/a", "spiffe://tď/a", in_domain('ď')),
        ("spiffe://t-d_1.x/a", "spiffe://t d/a", in_domain(' ')),
        ("spiffe://td", "spiffe://td?q", in_domain('?')),
        ("spiffe://td", "spiffe://td#f", in_domain('#')),
        ("spiffe://td/a", "spiffe://td/a?q=1", character('?')),
        ("spiffe://td/a", "spiffe://td/a#f", character('#')),
        ("spiffe://td/a/b", "spiffe://td/a%2fb", character('%')),
        ("spiffe://td/a", "spiffe://td/a\0", character('\0')),
        ("spiffe://td/a", "spiffe://td/a\n", character('\n')),
        ("spiffe://td/a", "spiffe://td/ä", character('ä')),
        ("spiffe://td/A.b-c_9", "spiffe://td/a:b", character(':')),
        ("spiffe://td/a", "spiffe://td/a/", IdError::TrailingSlash),
        ("spiffe://td", "spiffe://td/", IdError::TrailingSlash),
        ("spiffe://td/a/b", "spiffe://td/a//b", IdError::EmptySegment),
        ("spiffe://td/a/b", "spiffe://td//a", IdError::EmptySegment),
        ("spiffe://td/.a", "spiffe://td/./a", IdError::DotSegment(".".into())),
        ("spiffe://td/.../a", "spiffe://td/../a", IdError::DotSegment("..".into())),
        ("spiffe://td/a/b..", "spiffe://td/a/..", IdError::DotSegment("..".into())),
    ];
    for (twin, id, error) in table {
        assert_eq!(parse(id), Err(error), "{id:?}");
        assert_eq!(parse(twin).map(|id| id.to_string()), Ok(twin.to_owned()));
    }
}

#[test]
fn lengths_end_at_2048_bytes_and_255_of_trust_domain() {
    assert!(parse(&long_id(2048)).is_ok());
    assert_eq!(parse(&long_id(2049)), Err(IdError::TooLong(2049)));
    assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
    assert_eq!("a".repeat(256).parse::<TrustDomain>(), Err(TrustDomainError::TooLong(256)));
    let domain: TrustDomain = "east.mesh.example".parse().unwrap();
    assert!(SpiffeId::from_segments(&domain, &[&"a".repeat(2021)]).is_ok());
    assert_eq!(SpiffeId::from_segments(&domain, &[&"a".repeat(2022)]), Err(IdError::TooLong(2049)));
}

#[test]
fn a_name_cannot_smuggle_a_segment_into_an_id() {
    let domain: TrustDomain = "east.mesh.example".parse().unwrap();
    let built = SpiffeId::workload(&domain, "shop", "cart").unwrap();
    assert_eq!(built.to_string(), "spiffe://east.mesh.example/ns/shop/sa/cart");
    assert_eq!(SpiffeId::workload(&domain, "shop/sa/root", "cart"), Err(IdError::Character('/')));
    assert_eq!(SpiffeId::workload(&domain, "..", "cart"), Err(IdError::DotSegment("..".into())));
    assert_eq!(SpiffeId::control_plane(&domain, ""), Err(IdError::EmptySegment));
}

#[test]
fn roles_are_read_from_whole_paths_only() {
    let role = |path: &str| {
        let id = parse(&format!("spiffe://mesh.example{path}")).unwrap();
        id.role().map(|role| match role {
            PlaneRole::ControlPlane { cluster } => format!("control-plane {cluster}"),
            PlaneRole::Service { name } => format!("service {name}"),
            PlaneRole::Operator { name } => format!("operator {name}"),
        })
    };
    assert_eq!(role("/cluster/east/control-plane").as_deref(), Some("control-plane east"));
    assert_eq!(role("/service/federator").as_deref(), Some("service federator"));
    assert_eq!(role("/operator/ada").as_deref(), Some("operator ada"));
    for path in ["", "/cluster/east", "/cluster/east/control-plane/x", "/service/a/b", "/operator", "/ns/a/sa/b"] {
        assert_eq!(role(path), None, "{path}");
    }
}

#[test]
fn a_role_counts_in_the_federation_s_own_trust_domain_only() {
    let federation: TrustDomain = "mesh.example".parse().unwrap();
    let own = parse("spiffe://mesh.example/operator/ada").unwrap();
    let foreign = parse("spiffe://east.mesh.example/operator/ada").unwrap();
    assert_eq!(own.role_in(&federation), Some(PlaneRole::Operator { name: "ada" }));
    assert_eq!(foreign.role_in(&federation), None);
}

#[test]
fn a_workload_is_four_segments() {
    let id = parse("spiffe://td/ns/shop/sa/cart").unwrap();
    assert_eq!(id.as_workload(), Some(("shop", "cart")));
    for path in ["/ns/shop/sa", "/ns/shop/sa/cart/x", "/ns/shop/sb/cart", "/cluster/east/control-plane"] {
        assert_eq!(parse(&format!("spiffe://td{path}")).unwrap().as_workload(), None, "{path}");
    }
}

proptest! {
    #[test]
    fn any_text_parses_to_itself_or_to_an_error(text in "\\PC{0,80}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn texts_near_an_id_parse_to_themselves_or_to_an_error(text in "spiffe://[a-zA-Z0-9._%@:?#/-]{0,40}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn valid_ids_round_trip(domain in "[a-z0-9._-]{1,60}", path in "(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}){0,6}") {
        let text = format!("spiffe://{domain}{path}");
        let id: SpiffeId = text.parse().unwrap();
        prop_assert_eq!(id.trust_domain().as_str(), domain);
        prop_assert_eq!(id.path(), path);
        let segments: Vec<&str> = id.segments().collect();
        prop_assert_eq!(SpiffeId::from_segments(id.trust_domain(), &segments).unwrap(), id.clone());
        prop_assert_eq!(id.to_string(), text);
    }
}
