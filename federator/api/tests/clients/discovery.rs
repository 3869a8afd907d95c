//! The proxies' watch.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use federation::MeshHost;
use federation_api::client::discovery::{Discovery, DiscoveryEvent, Ticket, WatchOptions, issue_svid};
use federation_api::client::{Disconnect, Events};
use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::discovery::v1::watch_request::Request;
use federation_api::discovery::v1::{
    Absent, Advertise, KnownResource, ProxyKind, Resource, Service, Subscribe, WatchAck, WatchRequest, WatchResponse,
    WatchStart,
};
use tonic::Code;

use crate::server::{self, IMPATIENT, RECONNECT, Server, accept, channel, next, until, within};

type Call = server::Call<WatchRequest, WatchResponse>;

const CART: &str = "service/cart.shop.svc.clusterset.local";
const PAY: &str = "service/pay.shop.svc.clusterset.local";

fn host(name: &str) -> MeshHost {
    format!("{name}.shop.svc.clusterset.local").parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn sidecar(hosts: &[&str], state_file: Option<PathBuf>) -> WatchOptions {
    WatchOptions {
        kind: ProxyKind::Sidecar,
        proxy: "cart-0".to_owned(),
        workload_addresses: vec![address("127.0.0.9")],
        hosts: hosts.iter().map(|name| host(name)).collect(),
        advertise: None,
        state_file,
        reconnect: RECONNECT,
    }
}

fn gateway(advertise: Advertise) -> WatchOptions {
    WatchOptions { kind: ProxyKind::Gateway, advertise: Some(advertise), ..sidecar(&[], None) }
}

fn resource(name: &str, version: u8) -> Resource {
    Resource { name: name.to_owned(), version: vec![version], resource: Some(Kind::Absent(Absent {})) }
}

fn service(name: &str, version: u8, vip: &str) -> Resource {
    let service = Service { vips: vec![vip.to_owned()], ..Service::default() };
    Resource { resource: Some(Kind::Service(service)), ..resource(name, version) }
}

fn update(revision: u64, resources: &[Resource], removed: &[&str]) -> WatchResponse {
    WatchResponse {
        version: 1,
        revision,
        resources: resources.to_vec(),
        removed: removed.iter().map(|name| (*name).to_owned()).collect(),
        initial_state_complete: revision == 1,
    }
}

async fn start(call: &mut Call) -> WatchStart {
    match call.receive().await.request {
        Some(Request::Start(start)) => start,
        other => panic!("{other:?}"),
    }
}

async fn subscription(call: &mut Call) -> Subscribe {
    match call.receive().await.request {
        Some(Request::Subscribe(subscribe)) => subscribe,
        other => panic!("{other:?}"),
    }
}

async fn ack(call: &mut Call) -> WatchAck {
    match call.receive().await.request {
        Some(Request::Ack(ack)) => ack,
        other => panic!("{other:?}"),
    }
}

fn add(hosts: &[&str], addresses: &[&str]) -> Subscribe {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Subscribe { add_hosts: texts(hosts), remove_hosts: Vec::new(), add_addresses: texts(addresses) }
}

fn known(start: &WatchStart) -> Vec<(&str, &[u8])> {
    start.known.iter().map(|KnownResource { name, version }| (name.as_str(), version.as_slice())).collect()
}

fn names(resources: &[Arc<Resource>]) -> Vec<(&str, u8)> {
    resources.iter().map(|resource| (resource.name.as_str(), resource.version[0])).collect()
}

async fn from_disk(events: &mut Events<DiscoveryEvent>) -> Vec<Arc<Resource>> {
    match next(events).await {
        DiscoveryEvent::FromDisk(resources) => resources,
        other => panic!("{other:?}"),
    }
}

async fn step(events: &mut Events<DiscoveryEvent>) -> (Ticket, Vec<Arc<Resource>>, bool) {
    until(events, |event| match event {
        DiscoveryEvent::Update { ticket, resources, initial_state_complete, .. } => {
            Some((ticket, resources, initial_state_complete))
        }
        _ => None,
    })
    .await
}

async fn disconnect(events: &mut Events<DiscoveryEvent>) -> Disconnect {
    until(events, |event| match event {
        DiscoveryEvent::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

async fn opened(options: WatchOptions) -> (Server, Discovery, Events<DiscoveryEvent>, Call, WatchStart) {
    let mut server = Server::start().await;
    let (discovery, mut events) = Discovery::watch(server.channel(), options);
    assert!(from_disk(&mut events).await.is_empty());
    let mut call = accept(&mut server.discovery).await;
    let start = start(&mut call).await;
    assert!(matches!(next(&mut events).await, DiscoveryEvent::Connected));
    (server, discovery, events, call, start)
}

#[tokio::test]
async fn a_sidecar_starts_with_who_it_is_and_what_it_wants() {
    let (_server, _discovery, _events, _call, start) = opened(sidecar(&["cart"], None)).await;
    let expected = WatchStart {
        versions: vec![1],
        kind: ProxyKind::Sidecar.into(),
        proxy: "cart-0".to_owned(),
        workload_addresses: vec!["127.0.0.9".to_owned()],
        subscribe: Some(add(&["cart.shop.svc.clusterset.local"], &[])),
        ..WatchStart::default()
    };
    assert_eq!(start, expected);
}

#[tokio::test]
async fn an_update_is_acknowledged_when_it_is_applied() {
    let (_server, discovery, mut events, mut call, _) = opened(sidecar(&["cart"], None)).await;
    call.send(update(1, &[resource(CART, 1)], &[])).await;
    let (ticket, resources, complete) = step(&mut events).await;
    assert_eq!((names(&resources), complete), (vec![(CART, 1)], true));
    assert!(discovery.resources().is_empty());
    discovery.subscribe([host("pay")], []).unwrap();
    assert_eq!(
        subscription(&mut call).await,
        add(&["pay.shop.svc.clusterset.local"], &[]),
        "and no word of the update"
    );
    discovery.applied(ticket);
    assert_eq!(ack(&mut call).await, WatchAck { revision: 1, ..WatchAck::default() });
    assert_eq!(names(&discovery.resources()), [(CART, 1)]);
}

#[tokio::test]
async fn a_new_connection_goes_on_from_what_was_applied() {
    let (mut server, discovery, mut events, call, _) = opened(sidecar(&["cart", "pay"], None)).await;
    call.send(update(1, &[resource(CART, 1), resource("mesh", 1)], &[])).await;
    discovery.applied(step(&mut events).await.0);
    call.send(update(2, &[resource(CART, 2)], &[])).await;
    let (late, _, _) = step(&mut events).await;
    server.stop();
    assert!(matches!(disconnect(&mut events).await, Disconnect::Failed(_)));
    server.restart().await;
    let mut call = accept(&mut server.discovery).await;
    let again = start(&mut call).await;
    assert_eq!(known(&again), [("mesh", &[1][..]), (CART, &[1])]);
    // Applied after all: known, but not acknowledged to a server that never sent it.
    discovery.applied(late);
    call.send(update(1, &[resource(PAY, 1)], &["mesh"])).await;
    let (ticket, _, _) = step(&mut events).await;
    assert!(ticket > late);
    discovery.applied(ticket);
    assert_eq!(ack(&mut call).await, WatchAck { revision: 1, ..WatchAck::default() });
    assert_eq!(names(&discovery.resources()), [(CART, 2), (PAY, 1)]);
}

#[tokio::test]
async fn what_was_applied_is_there_after_a_restart_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    let (server, discovery, mut events, call, _) = opened(sidecar(&["cart"], Some(file.clone()))).await;
    call.send(update(1, &[resource(CART, 1), resource("mesh", 1), resource("workload", 1)], &[])).await;
    discovery.applied(step(&mut events).await.0);
    call.send(update(2, &[resource(CART, 2)], &["workload"])).await;
    discovery.applied(step(&mut events).await.0);
    call.send(update(3, &[resource("mesh", 9)], &[])).await;
    step(&mut events).await;
    within(discovery.flush()).await;
    let nowhere = server.address;
    drop((events, discovery, server));

    let (discovery, mut events) = Discovery::watch(channel(nowhere), sidecar(&[], Some(file.clone())));
    assert_eq!(names(&from_disk(&mut events).await), [("mesh", 1), (CART, 2)]);
    assert!(matches!(disconnect(&mut events).await, Disconnect::Failed(_)));
    within(discovery.flush()).await;

    let mut server = Server::start().await;
    let (_discovery, mut events) = Discovery::watch(server.channel(), sidecar(&[], Some(file)));
    from_disk(&mut events).await;
    let start = start(&mut accept(&mut server.discovery).await).await;
    assert_eq!(known(&start), [("mesh", &[1][..]), (CART, &[2])]);
    assert_eq!(start.subscribe, Some(add(&["cart.shop.svc.clusterset.local"], &[])), "remembered");
}

#[tokio::test]
async fn a_damaged_state_file_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    std::fs::write(&file, b"isthmus discovery state 1\nnot at all").unwrap();
    let (_server, discovery, mut events, call, _) = opened(sidecar(&[], Some(file.clone()))).await;
    call.send(update(1, &[resource("mesh", 1)], &[])).await;
    discovery.applied(step(&mut events).await.0);
    within(discovery.flush()).await;
    let (_discovery, mut events) = Discovery::watch(channel(address_of_nobody()), sidecar(&[], Some(file)));
    assert_eq!(names(&from_disk(&mut events).await), [("mesh", 1)]);
}

fn address_of_nobody() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], 1))
}

#[tokio::test]
async fn a_rejected_resource_stays_as_it_was_and_the_error_is_told() {
    let (mut server, discovery, mut events, mut call, _) = opened(sidecar(&["cart"], None)).await;
    call.send(update(1, &[resource(CART, 1)], &[])).await;
    discovery.applied(step(&mut events).await.0);
    assert_eq!(ack(&mut call).await.error, "");
    call.send(update(2, &[resource(CART, 2), resource("mesh", 1)], &[])).await;
    discovery.rejected(step(&mut events).await.0, &[CART], "ports[0]: not understood");
    let said = ack(&mut call).await;
    assert_eq!((said.revision, said.error.as_str()), (2, "ports[0]: not understood"));
    assert_eq!(names(&discovery.resources()), [("mesh", 1), (CART, 1)]);
    drop(call);
    let again = start(&mut accept(&mut server.discovery).await).await;
    assert_eq!(known(&again), [("mesh", &[1][..]), (CART, &[1])]);
}

#[tokio::test]
async fn what_is_no_longer_wanted_is_forgotten_even_when_it_comes_late() {
    let (_server, discovery, mut events, mut call, _) = opened(sidecar(&["cart", "pay"], None)).await;
    call.send(update(1, &[resource(CART, 1), resource(PAY, 1)], &[])).await;
    discovery.applied(step(&mut events).await.0);
    assert_eq!(ack(&mut call).await.revision, 1);
    call.send(update(2, &[resource(PAY, 2)], &[])).await;
    let (on_its_way, resources, _) = step(&mut events).await;
    assert_eq!(names(&resources), [(PAY, 2)]);
    discovery.unsubscribe([host("pay")]);
    let change = subscription(&mut call).await;
    assert_eq!(change.remove_hosts, ["pay.shop.svc.clusterset.local"]);
    call.send(update(3, &[resource(PAY, 3), resource(CART, 3)], &[])).await;
    let (ticket, resources, _) = step(&mut events).await;
    assert_eq!(names(&resources), [(CART, 3)]);
    discovery.applied(on_its_way);
    discovery.applied(ticket);
    assert_eq!(names(&discovery.resources()), [(CART, 3)]);
}

#[tokio::test]
async fn a_service_found_by_its_address_is_subscribed_by_its_host() {
    let (mut server, discovery, mut events, mut call, _) = opened(sidecar(&[], None)).await;
    discovery.subscribe([], [address("241.0.0.7"), address("241.0.0.8")]).unwrap();
    assert_eq!(subscription(&mut call).await, add(&[], &["241.0.0.7", "241.0.0.8"]));
    call.send(update(1, &[service(CART, 1, "241.0.0.7"), service(PAY, 1, "241.0.0.99")], &[])).await;
    let (ticket, resources, _) = step(&mut events).await;
    assert_eq!(names(&resources), [(CART, 1)], "nobody asked for the other");
    discovery.applied(ticket);
    assert_eq!(ack(&mut call).await.revision, 1);
    // Known by now: no question follows.
    discovery.subscribe([], [address("241.0.0.7")]).unwrap();
    discovery.subscribe([host("pay")], []).unwrap();
    assert_eq!(subscription(&mut call).await, add(&["pay.shop.svc.clusterset.local"], &[]));
    drop(call);
    let again = start(&mut accept(&mut server.discovery).await).await;
    let hosts = ["cart.shop.svc.clusterset.local", "pay.shop.svc.clusterset.local"];
    assert_eq!(again.subscribe, Some(add(&hosts, &["241.0.0.8"])), "the unanswered question is asked again");
}

#[tokio::test]
async fn a_gateway_advertises_itself_and_its_draining() {
    let here = Advertise { address: "192.0.2.1".to_owned(), port: 15443, ..Advertise::default() };
    let (mut server, discovery, mut events, mut call, start_) = opened(gateway(here.clone())).await;
    assert_eq!((start_.advertise, start_.subscribe), (Some(here.clone()), None));
    call.send(update(1, &[resource("route/cart.shop.svc.clusterset.local", 1)], &[])).await;
    discovery.applied(step(&mut events).await.0);
    assert_eq!(ack(&mut call).await, WatchAck { revision: 1, ..WatchAck::default() });
    let draining = Advertise { draining: true, ..here };
    discovery.advertise(draining.clone());
    let said = ack(&mut call).await;
    assert_eq!((said.revision, said.advertise.as_ref()), (1, Some(&draining)));
    drop(call);
    assert_eq!(start(&mut accept(&mut server.discovery).await).await.advertise, Some(draining));
}

#[tokio::test]
async fn a_server_that_never_begins_is_given_up() {
    let impatient = WatchOptions { reconnect: IMPATIENT, ..sidecar(&[], None) };
    let (_server, _discovery, mut events, call, _) = opened(impatient).await;
    let reason = disconnect(&mut events).await;
    assert!(matches!(reason, Disconnect::Silent(after) if after == IMPATIENT.opening_deadline), "{reason}");
    call.ended().await;
}

#[tokio::test]
async fn a_server_of_another_version_is_left() {
    let (_server, _discovery, mut events, call, _) = opened(sidecar(&[], None)).await;
    call.send(WatchResponse { version: 3, ..update(1, &[], &[]) }).await;
    assert!(matches!(disconnect(&mut events).await, Disconnect::Version(3)));
}

#[tokio::test]
async fn dropping_the_events_ends_the_watch() {
    let (_server, _discovery, events, call, _) = opened(sidecar(&[], None)).await;
    drop(events);
    call.ended().await;
}

#[tokio::test]
async fn an_svid_is_asked_for_with_a_token() {
    let server = Server::start().await;
    let issued = issue_svid(server.channel(), vec![1], Some("right".to_owned())).await.unwrap();
    assert_eq!((issued.certificate_chain, issued.not_after_ms), (vec![vec![1]], 7));
    let refused = issue_svid(server.channel(), vec![1], Some("wrong".to_owned())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "token: of another audience"));
}
