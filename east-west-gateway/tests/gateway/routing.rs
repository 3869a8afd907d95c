//! Which endpoint a session reaches.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use east_west_gateway::routes::{RouteChange, RouteError};
use federation::slot;
use federation_api::discovery::v1 as wire;
use rustls::AlertDescription;
use socket2::{Domain, Socket, Type};

use super::lab::{Authority, Endpoint, HOST, Running, endpoint, name, refusing_address, route};

#[tokio::test]
async fn a_session_goes_end_to_end_by_each_form_of_the_name() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    for subset in ["", "c-east", "c-east.e-0", "c-east.e-65535"] {
        let mut session =
            gateway.session(&authority, &name(subset)).await.unwrap_or_else(|alert| panic!("{subset}: {alert:?}"));
        assert_eq!(session.id, echo.id);
        session.echo("through the gateway").await;
        let (_, tls) = session.stream.get_ref();
        assert_eq!(tls.alpn_protocol(), Some(&b"isthmus-tcp"[..]));
        assert_eq!(mesh_tls::peer_id(tls).unwrap().to_string(), "spiffe://east.mesh.example/ns/shop/sa/echo-1");
    }
    assert_eq!(echo.accepted(), 4);
}

#[tokio::test]
async fn an_endpoint_of_a_headless_service_is_reached_by_its_own_name_and_no_other_takes_its_place() {
    let authority = Authority::new();
    let [first, second] = [Endpoint::start(&authority, "echo-1").await, Endpoint::start(&authority, "echo-2").await];
    let gateway = Running::start(&[first.wire("eu-1"), second.wire("eu-1")]).await;
    let own = |label: &str, endpoint| wire::Route { host: format!("{label}.east.{HOST}"), ..route(&[endpoint]) };
    let routes = [own("echo-1", first.wire("eu-1")), own("echo-2", second.wire("eu-1"))];
    assert_eq!(gateway.routes.apply(routes.iter().map(RouteChange::Set)), []);
    for (label, endpoint) in [("echo-1", &first), ("echo-2", &second)] {
        for subset in ["", "c-east", "c-east.e-1", "c-east.e-2"] {
            let name = format!("outbound_.8080_.{subset}_.{label}.east.{HOST}");
            assert_eq!(gateway.session(&authority, &name).await.unwrap().id, endpoint.id, "{name}");
        }
    }
    let name = |label: &str, cluster: &str| format!("outbound_.8080_.c-east_.{label}.{cluster}.{HOST}");
    let gone = wire::Endpoint { ready: false, ..first.wire("eu-1") };
    assert_eq!(gateway.routes.apply([RouteChange::Set(&own("echo-1", gone))]), []);
    assert_eq!(
        gateway.session(&authority, &name("echo-1", "east")).await.err(),
        Some(Some(AlertDescription::InternalError))
    );
    for unknown in [name("echo-3", "east"), name("echo-1", "west")] {
        let alert = gateway.session(&authority, &unknown).await.err();
        assert_eq!(alert, Some(Some(AlertDescription::UnrecognisedName)), "{unknown}");
    }

    // All of a service's connections count for it, whatever they are called.
    let found = |name: &str| gateway.routes.find(name).unwrap().route;
    let held = gateway.session(&authority, &name_of_second()).await.unwrap();
    let (whole, one) = (found(&format!("outbound_.8080_._.{HOST}")), found(&name_of_second()));
    assert_eq!((whole.connections(), one.connections()), (1, 1));
    drop(held);
}

fn name_of_second() -> String {
    format!("outbound_.8080_.c-east_.echo-2.east.{HOST}")
}

#[tokio::test]
async fn upper_case_in_the_name_is_the_same_name() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let session = gateway.session(&authority, "outbound_.8080_.c-east_.Echo.SHOP.svc.clusterset.local").await.unwrap();
    assert_eq!(session.id, echo.id);
}

#[tokio::test]
async fn the_own_zone_comes_first_then_the_own_region_and_unready_endpoints_never() {
    let authority = Authority::new();
    let zones = ["eu-1", "eu-2", "us-1"];
    let mut endpoints = Vec::new();
    for zone in zones {
        endpoints.push(Endpoint::start(&authority, &format!("echo-{zone}")).await);
    }
    let mut wires: Vec<_> = endpoints.iter().zip(zones).map(|(endpoint, zone)| endpoint.wire(zone)).collect();
    wires[2].locality.as_mut().unwrap().region = "us".to_owned();
    let gateway = Running::start(&wires).await;
    for nearest in 0..3 {
        for _ in 0..5 {
            let session = gateway.session(&authority, &name("c-east")).await.unwrap();
            assert_eq!(session.id, endpoints[nearest].id);
        }
        wires[nearest].ready = false;
        assert_eq!(gateway.routes.apply([RouteChange::Set(&route(&wires))]), []);
    }
    assert_eq!(
        gateway.session(&authority, &name("c-east")).await.err(),
        Some(Some(AlertDescription::InternalError)),
        "none is ready"
    );
}

#[tokio::test]
async fn among_equals_the_one_with_the_fewest_connections_is_taken() {
    let authority = Authority::new();
    let (one, other) = (Endpoint::start(&authority, "echo-1").await, Endpoint::start(&authority, "echo-2").await);
    let gateway = Running::start(&[one.wire("eu-1"), other.wire("eu-1")]).await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(gateway.session(&authority, &name("")).await.unwrap());
        // A new state of the route, such as another endpoint's readiness, does not forget the counts.
        assert_eq!(gateway.routes.apply([RouteChange::Set(&route(&[one.wire("eu-1"), other.wire("eu-1")]))]), []);
    }
    assert_eq!((one.accepted(), other.accepted()), (5, 5));
    // Those of one endpoint end: it gets the next ones.
    sessions.retain(|session| session.id == other.id);
    gateway.metric("connections 5").await;
    for _ in 0..5 {
        let session = gateway.session(&authority, &name("")).await.unwrap();
        assert_eq!(session.id, one.id);
        sessions.push(session);
    }
}

#[tokio::test]
async fn a_slot_goes_where_it_hashes_to_whatever_the_zone() {
    let authority = Authority::new();
    let mut endpoints = Vec::new();
    for pod in 0..4 {
        endpoints.push(Endpoint::start(&authority, &format!("echo-{pod}")).await);
    }
    let zones = ["eu-1", "eu-2", "eu-3", "eu-1"];
    let wires: Vec<_> = endpoints.iter().zip(zones).map(|(endpoint, zone)| endpoint.wire(zone)).collect();
    let gateway = Running::start(&wires).await;
    let mut reached = BTreeSet::new();
    for slot in 0..12 {
        let expected = slot::choose(slot, endpoints.iter().map(|endpoint| (&endpoint.id, 1))).unwrap();
        for _ in 0..2 {
            let session = gateway.session(&authority, &name(&format!("c-east.e-{slot}"))).await.unwrap();
            assert_eq!(session.id, endpoints[expected].id, "slot {slot}");
        }
        reached.insert(expected);
    }
    assert!(reached.len() >= 3, "12 slots reach only {reached:?}");
}

#[tokio::test]
async fn an_endpoint_that_refuses_costs_no_session_and_is_then_avoided() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-2").await;
    // The one that refuses is nearer.
    let gone = endpoint("east/shop/echo-1", refusing_address().await, "eu-1");
    let gateway = Running::start(&[gone, echo.wire("eu-2")]).await;
    for _ in 0..5 {
        let session = gateway.session(&authority, &name("c-east")).await.unwrap();
        assert_eq!(session.id, echo.id);
    }
    gateway.metric("connect_failures_total{kind=\"refused\"} 1").await;
}

#[tokio::test]
async fn a_slot_whose_endpoint_refuses_goes_to_the_next_one() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-2").await;
    let gone = endpoint("east/shop/echo-1", refusing_address().await, "eu-1");
    let gateway = Running::start(&[gone, echo.wire("eu-1")]).await;
    let mut failures = BTreeMap::new();
    for slot in 0..8 {
        let session = gateway.session(&authority, &name(&format!("c-east.e-{slot}"))).await.unwrap();
        *failures.entry(session.id).or_insert(0) += 1;
    }
    assert_eq!(failures, BTreeMap::from([(echo.id.clone(), 8)]));
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_costs_one_attempt() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-2").await;
    let (silent, _kept) = silent_address();
    let gateway = Running::start(&[endpoint("east/shop/echo-1", silent, "eu-1"), echo.wire("eu-2")]).await;
    let started = Instant::now();
    let session = gateway.session(&authority, &name("c-east")).await.unwrap();
    assert_eq!(session.id, echo.id);
    assert!(started.elapsed() >= Duration::from_millis(250), "it was tried");
    gateway.metric("connect_failures_total{kind=\"timed_out\"} 1").await;
}

#[tokio::test]
async fn when_no_endpoint_can_be_reached_the_client_is_told_within_the_budget() {
    let authority = Authority::new();
    let (silent, _kept) = silent_address();
    let gone = endpoint("east/shop/echo-1", refusing_address().await, "eu-1");
    let gateway = Running::start_with(&[gone, endpoint("east/shop/echo-2", silent, "eu-1")], |config| {
        config.connect.budget = Duration::from_millis(400);
    })
    .await;
    let started = Instant::now();
    let refused = gateway.session(&authority, &name("c-east")).await.err();
    assert_eq!(refused, Some(Some(AlertDescription::InternalError)));
    assert!(started.elapsed() >= Duration::from_millis(250), "the silent one was tried");
    gateway.metric("connections_closed_total{reason=\"unreachable\"} 1").await;
}

/// An address whose listener's queue is full: the kernel drops what else wants to connect.
fn silent_address() -> (std::net::SocketAddr, Vec<Socket>) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut kept = vec![listener];
    while kept.len() < 10 {
        let client = socket();
        let connected = client.connect_timeout(&address, Duration::from_millis(100)).is_ok();
        kept.push(client);
        if !connected {
            return (address.as_socket().unwrap(), kept);
        }
    }
    panic!("the queue never fills");
}

#[tokio::test]
async fn a_removed_route_refuses_new_sessions_and_leaves_live_ones() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let mut live = gateway.session(&authority, &name("")).await.unwrap();
    assert_eq!(gateway.routes.apply([RouteChange::Remove(&HOST.parse().unwrap())]), []);
    assert_eq!(gateway.session(&authority, &name("")).await.err(), Some(Some(AlertDescription::UnrecognisedName)));
    live.echo("still here").await;
}

#[tokio::test]
async fn a_bad_resource_leaves_the_last_good_route() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let gateway = Running::start(&[echo.wire("eu-1")]).await;
    let id = || "east/shop/echo-1".to_owned();
    let mut table = Vec::new();
    let mut bad = route(&[echo.wire("eu-1")]);
    bad.endpoints[0].address = "echo-1.local".to_owned();
    table.push((bad, RouteError::Address { id: id(), address: "echo-1.local".to_owned() }));
    let mut bad = route(&[echo.wire("eu-1")]);
    bad.endpoints[0].mesh_port = 65_536;
    table.push((bad, RouteError::MeshPort { id: id(), port: 65_536 }));
    let mut bad = route(&[]);
    bad.ports = vec![0];
    table.push((bad, RouteError::Port(0)));
    for (bad, error) in table {
        assert_eq!(gateway.routes.apply([RouteChange::Set(&bad)]), [(HOST.to_owned(), error)]);
    }
    let mut bad = route(&[]);
    bad.host = "echo.shop.svc.cluster.local".to_owned();
    assert!(matches!(gateway.routes.apply([RouteChange::Set(&bad)]).as_slice(), [(_, RouteError::Host(_))]));
    assert_eq!(gateway.session(&authority, &name("")).await.unwrap().id, echo.id);
}
