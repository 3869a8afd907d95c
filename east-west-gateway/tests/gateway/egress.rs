//! The way out: from the cluster's own sidecars to gateways of other clusters, and from nobody else to nowhere else.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use east_west_gateway::{
    Config, Side,
    config::EgressConfig,
    remotes::{RemoteChange, RemoteError},
};
use federation_api::{discovery::v1 as wire, record::v1 as record};
use mesh_runtime::resolver::Resolver;
use rustls::AlertDescription;
use tokio::{net::UdpSocket, time::Instant};

use super::lab::{Authority, Endpoint, PATIENCE, Running, Session, name, refusing_address, session_at};

fn from_inside(allowed: &'static str) -> impl FnOnce(&mut Config) {
    move |config| {
        config.egress = Some(EgressConfig {
            listen: Vec::new(),
            address: "127.0.0.1".to_owned(),
            port: 15444,
            allowed_sources: vec![allowed.parse().unwrap()],
        });
    }
}

/// East's gateway, its inner side.
async fn way_out() -> Running {
    Running::start_as("east", Side::Inside, &[], from_inside("127.0.0.0/8")).await
}

/// A gateway of west with one endpoint behind it.
async fn west(authority: &Authority, pod: &str) -> (Running, Endpoint) {
    let echo = Endpoint::start(authority, pod).await;
    let gateway = Running::start_as("west", Side::Outside, &[echo.wire("us-1")], |_| {}).await;
    (gateway, echo)
}

#[tokio::test]
async fn a_session_goes_end_to_end_through_a_gateway_of_the_cluster_that_is_named() {
    let authority = Authority::new();
    let (west, echo) = west(&authority, "echo-1").await;
    let out = way_out().await;
    out.announce("west", &[west.address]);
    for subset in ["c-west", "c-west.e-0", "c-west.e-4711"] {
        let mut session = out.session(&authority, &name(subset)).await.unwrap();
        assert_eq!(session.id, echo.id);
        session.echo("through two gateways").await;
        let (_, tls) = session.stream.get_ref();
        assert_eq!(mesh_tls::peer_id(tls).unwrap().to_string(), "spiffe://east.mesh.example/ns/shop/sa/echo-1");
    }
}

#[tokio::test]
async fn a_name_without_another_cluster_leads_nowhere_from_inside() {
    let authority = Authority::new();
    let (west, echo) = west(&authority, "echo-1").await;
    let out = way_out().await;
    out.announce("west", &[west.address]);
    let refused = Some(Some(AlertDescription::UnrecognisedName));
    for (subset, reason) in
        [("", "no_cluster"), ("c-east", "own_cluster"), ("c-east.e-1", "own_cluster"), ("c-north", "unknown_cluster")]
    {
        assert_eq!(out.session(&authority, &name(subset)).await.err(), refused, "{subset}");
        let line = format!("connections_closed_total{{reason=\"{reason}\"}} ");
        out.metric(&format!("{line}{}", if subset.contains(".e-") { 2 } else { 1 })).await;
    }
    assert_eq!(out.session(&authority, "echo.shop.svc.clusterset.local").await.err(), refused);
    let local = name("c-west").replace("clusterset.local", "cluster.local");
    assert_eq!(out.session(&authority, &local).await.err(), refused, "a cluster's own names stay in it");
    assert_eq!(out.remotes.apply([RemoteChange::Remove("west")]), []);
    assert_eq!(out.session(&authority, &name("c-west")).await.err(), refused, "it is gone");
    assert_eq!(echo.accepted(), 0);
}

#[tokio::test]
async fn from_outside_a_gateway_is_no_relay_to_another_cluster() {
    let authority = Authority::new();
    let (west, echo) = west(&authority, "echo-1").await;
    let east = Running::start_as("east", Side::Outside, &[], from_inside("127.0.0.0/8")).await;
    east.announce("west", &[west.address]);
    for subset in ["c-west", "c-west.e-1"] {
        let refused = east.session(&authority, &name(subset)).await.err();
        assert_eq!(refused, Some(Some(AlertDescription::UnrecognisedName)));
    }
    east.metric("connections_closed_total{reason=\"other_cluster\"} 2").await;
    assert_eq!(echo.accepted(), 0);
}

#[tokio::test]
async fn from_a_network_that_is_not_the_clusters_a_connection_is_reset() {
    let authority = Authority::new();
    let (west, echo) = west(&authority, "echo-1").await;
    let out = Running::start_as("east", Side::Inside, &[], from_inside("10.0.0.0/8")).await;
    out.announce("west", &[west.address]);
    assert_eq!(out.session(&authority, &name("c-west")).await.err(), Some(None), "without an alert");
    out.metric("connections_shed_total{limit=\"outsider\"} 1").await;
    assert_eq!(echo.accepted(), 0);
}

#[tokio::test]
async fn a_gateway_that_refuses_costs_no_session_and_none_left_is_told_at_once() {
    let authority = Authority::new();
    let (west, echo) = west(&authority, "echo-1").await;
    let out = way_out().await;
    out.announce("west", &[refusing_address().await, west.address]);
    for _ in 0..5 {
        assert_eq!(out.session(&authority, &name("c-west")).await.unwrap().id, echo.id);
    }
    out.announce("west", &[refusing_address().await, refusing_address().await]);
    let refused = out.session(&authority, &name("c-west")).await.err();
    assert_eq!(refused, Some(Some(AlertDescription::InternalError)));
    out.announce("west", &[]);
    let refused = out.session(&authority, &name("c-west")).await.err();
    assert_eq!(refused, Some(Some(AlertDescription::InternalError)), "no gateway at all");
}

#[tokio::test]
async fn sessions_spread_over_the_gateways_and_leave_out_those_that_drain() {
    let authority = Authority::new();
    let (one, first) = west(&authority, "echo-1").await;
    let (other, second) = west(&authority, "echo-2").await;
    let out = way_out().await;
    out.announce("west", &[one.address, other.address]);
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(out.session(&authority, &name("c-west")).await.unwrap());
    }
    assert_eq!((first.accepted(), second.accepted()), (5, 5));
    let gateway = |address: SocketAddr, draining| record::Gateway {
        name: format!("gw-{}", address.port()),
        address: address.ip().to_string(),
        port: address.port().into(),
        draining,
        ..record::Gateway::default()
    };
    let gateways = vec![gateway(one.address, true), gateway(other.address, false)];
    let remote = wire::Remote { cluster: "west".to_owned(), gateways };
    assert_eq!(out.remotes.apply([RemoteChange::Set(&remote)]), []);
    for _ in 0..4 {
        sessions.push(out.session(&authority, &name("c-west")).await.unwrap());
    }
    assert_eq!((first.accepted(), second.accepted()), (5, 9));
    let remote = wire::Remote { cluster: "west".to_owned(), gateways: vec![gateway(one.address, true)] };
    assert_eq!(out.remotes.apply([RemoteChange::Set(&remote)]), []);
    assert_eq!(out.session(&authority, &name("c-west")).await.unwrap().id, first.id, "better than none");
}

#[tokio::test]
async fn one_cluster_cannot_take_the_connections_of_the_others() {
    let authority = Authority::new();
    let (west, first) = west(&authority, "echo-1").await;
    let second = Endpoint::start(&authority, "echo-2").await;
    let north = Running::start_as("north", Side::Outside, &[second.wire("us-2")], |_| {}).await;
    let out = Running::start_as("east", Side::Inside, &[], |config| {
        from_inside("127.0.0.0/8")(config);
        config.limits.max_connections_per_service = 1;
    })
    .await;
    out.announce("west", &[west.address]);
    out.announce("north", &[north.address]);
    let held = out.session(&authority, &name("c-west")).await.unwrap();
    let refused = out.session(&authority, &name("c-west")).await.err();
    assert_eq!(refused, Some(Some(AlertDescription::InternalError)));
    out.metric("connections_closed_total{reason=\"service_full\"} 1").await;
    assert_eq!(out.session(&authority, &name("c-north")).await.unwrap().id, second.id);
    assert_eq!((held.id, first.accepted()), (first.id.clone(), 1));
}

#[tokio::test]
async fn a_cluster_that_announces_our_own_way_out_makes_no_circle() {
    let authority = Authority::new();
    let out = way_out().await;
    out.remotes.set_own_egress([out.address]);
    out.announce("west", &[out.address]);
    let refused = out.session(&authority, &name("c-west")).await.err();
    assert_eq!(refused, Some(Some(AlertDescription::InternalError)));
    out.metric("connections_closed_total{reason=\"no_ready_endpoint\"} 1").await;
}

#[tokio::test]
async fn our_own_way_out_is_known_as_an_ipv4_address_in_ipv6_too() {
    let authority = Authority::new();
    let out = way_out().await;
    let IpAddr::V4(plain) = out.address.ip() else { panic!("{} is not IPv4", out.address) };
    let mapped = SocketAddr::new(plain.to_ipv6_mapped().into(), out.address.port());
    for (own, announced) in [(out.address, mapped), (mapped, out.address), (mapped, mapped)] {
        out.remotes.set_own_egress([own]);
        out.announce("west", &[announced]);
        let all = out.remotes.all();
        assert!(all.len() == 1 && all[0].gateways.is_empty(), "own {own}, announced {announced}: {all:?}");
        let refused = out.session(&authority, &name("c-west")).await.err();
        assert_eq!(refused, Some(Some(AlertDescription::InternalError)), "own {own}, announced {announced}");
    }
    out.metric("connections_closed_total{reason=\"no_ready_endpoint\"} 3").await;
}

#[tokio::test]
async fn a_bad_resource_leaves_the_last_good_gateways() {
    let authority = Authority::new();
    let (west, echo) = west(&authority, "echo-1").await;
    let out = way_out().await;
    out.announce("west", &[west.address]);
    let bad = record::Gateway { name: "gw".to_owned(), address: "not a name".to_owned(), ..record::Gateway::default() };
    let bad = wire::Remote { cluster: "west".to_owned(), gateways: vec![bad] };
    let refused = out.remotes.apply([RemoteChange::Set(&bad)]);
    assert!(matches!(refused.as_slice(), [(_, RemoteError::Gateway(_))]), "{refused:?}");
    let own = wire::Remote { cluster: "east".to_owned(), gateways: Vec::new() };
    let refused = out.remotes.apply([RemoteChange::Set(&own)]);
    assert!(matches!(refused.as_slice(), [(_, RemoteError::OwnCluster(_))]), "{refused:?}");
    assert_eq!(out.session(&authority, &name("c-west")).await.unwrap().id, echo.id);
}

/// A name server whose answer lives for a second: 127.0.0.x for whatever A is asked.
async fn name_server(last: Arc<AtomicU8>) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        loop {
            let (_, client) = socket.recv_from(&mut query).await.unwrap();
            let labels_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
            let is_a = query[labels_end..labels_end + 2] == [0, 1];
            // The question again, as an answer; recursion available; one record or none.
            let mut answer = query[..labels_end + 4].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, last.load(SeqCst)]);
            }
            socket.send_to(&answer, client).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_name_is_asked_for_again_when_its_ttl_ends() {
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let west = Running::start_as("west", Side::Outside, &[echo.wire("us-1")], |config| {
        config.listen = vec![(Ipv4Addr::new(127, 0, 0, 2), 0).into()];
    })
    .await;
    let last = Arc::new(AtomicU8::new(1));
    let resolver = Resolver::asking(name_server(Arc::clone(&last)).await, true);
    let out = way_out().await;
    let remotes = Arc::clone(&out.remotes);
    let resolving = tokio::spawn(async move { remotes.keep_resolved(&resolver).await });
    let gateway = record::Gateway {
        name: "gw-1".to_owned(),
        address: "gateways.west.example".to_owned(),
        port: west.address.port().into(),
        ..record::Gateway::default()
    };
    let remote = wire::Remote { cluster: "west".to_owned(), gateways: vec![gateway] };
    assert_eq!(out.remotes.apply([RemoteChange::Set(&remote)]), []);
    let until = Instant::now() + PATIENCE;
    let address = || out.remotes.all().first().and_then(|west| Some(west.gateways.first()?.address));
    while address() != Some((Ipv4Addr::LOCALHOST, west.address.port()).into()) {
        assert!(Instant::now() < until, "{:?}", out.remotes.all());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Nobody listens there: the name's owner moves it.
    assert!(out.session(&authority, &name("c-west")).await.is_err());
    last.store(2, SeqCst);
    let session: Session = loop {
        assert!(Instant::now() < until, "{:?}", out.remotes.all());
        match session_at(out.address, &authority, &name("c-west")).await {
            Ok(session) => break session,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(session.id, echo.id);
    resolving.abort();
}
