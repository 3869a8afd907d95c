//! What callers see when things die: nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::applications::Application;
use crate::client::{self, Answer, Client};
use crate::cluster::{Cluster, HTTP, LOOPBACK, PATIENCE, Pod, RAW, eventually, host};
use crate::gateway::Gateway;

/// Requests one after another, GET and POST in turn, until stopped: all answers, GETs at even places.
struct Load {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Vec<Answer>>,
}

impl Load {
    fn start(proxy: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let running = tokio::spawn(async move {
            let mut connection = Client::connect(proxy).await;
            let uri = format!("http://{}/", host("cart"));
            let mut answers = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let method = if answers.len() % 2 == 0 { Method::GET } else { Method::POST };
                answers.push(connection.call(method, &uri, "x", &[]).await);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            answers
        });
        Self { stop, running }
    }

    async fn end(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::SeqCst);
        self.running.await.unwrap()
    }
}

fn assert_none_failed(answers: &[Answer]) {
    let failed: Vec<_> = answers.iter().filter(|answer| answer.status != StatusCode::OK).collect();
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), answers.len(), failed[0]);
}

/// A POST that was under way when its server died was acted upon or not, nobody can say, and is not repeated: one at
/// most, since requests come one after another. Everything else succeeds.
fn assert_at_most_one_interrupted(answers: &[Answer]) {
    let failed: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| answer.status != StatusCode::OK).collect();
    let interrupted = |(place, answer): &(usize, &Answer)| {
        place % 2 == 1 && ["application-broken", "interrupted"].contains(&answer.header("isthmus-error"))
    };
    assert!(failed.len() <= 1 && failed.iter().all(interrupted), "of {}: {failed:?}", answers.len());
}

fn last_from(answers: &[Answer]) -> &str {
    answers.last().unwrap().body.split(' ').next().unwrap()
}

/// Two endpoints at home.
async fn two_at_home() -> (Cluster, Vec<Application>, Vec<Pod>, Pod) {
    let east = Cluster::start("east").await;
    let (mut applications, mut pods) = (Vec::new(), Vec::new());
    for name in ["cart-1", "cart-2"] {
        let application = Application::http1(name).await;
        pods.push(east.pod(name, "cart", &[(HTTP, application.port())]).await);
        applications.push(application);
    }
    let endpoints = pods.iter().map(|pod| east.endpoint(pod)).collect();
    east.imports(&[HTTP], vec![east.local(endpoints, &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    (east, applications, pods, client)
}

#[tokio::test]
async fn an_application_that_is_killed_costs_at_most_the_post_it_was_at() {
    let (_east, mut applications, _pods, client) = two_at_home().await;
    let load = Load::start(client.proxy());
    let counts: Vec<_> = applications.iter().map(|application| Arc::clone(&application.requests)).collect();
    eventually("both are used", || counts.iter().all(|count| count.load(Ordering::SeqCst) > 10)).await;
    // Its sidecar lives and finds the port closed.
    applications.remove(0).kill().await;
    let before = counts[1].load(Ordering::SeqCst);
    eventually("the other one takes all", || counts[1].load(Ordering::SeqCst) > before + 50).await;
    assert_at_most_one_interrupted(&load.end().await);
}

#[tokio::test]
async fn a_sidecar_that_is_killed_costs_at_most_the_post_it_was_at() {
    let (_east, applications, mut pods, client) = two_at_home().await;
    let load = Load::start(client.proxy());
    eventually("both are used", || applications.iter().all(|application| application.requests() > 10)).await;
    let before = applications[1].requests();
    pods.remove(0).sidecar.stop().await;
    eventually("the other one takes all", || applications[1].requests() > before + 50).await;
    assert_at_most_one_interrupted(&load.end().await);
}

#[tokio::test]
async fn a_returning_application_is_probed_and_used_again() {
    let east = Cluster::start("east").await;
    let home = Application::echo("home").await;
    let away = Application::http1("unused").await;
    let one = east.pod("cart-1", "cart", &[(RAW, home.port())]).await;
    // Nobody listens at the second endpoint's sidecar.
    let free = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = free.local_addr().unwrap();
    drop((free, away));
    let endpoints = vec![east.endpoint(&one), east.endpoint_at("cart-2", address, "cart")];
    east.imports(&[RAW], vec![east.local(endpoints, &[RAW])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let authority = format!("{}:6379", host("cart"));
    for _ in 0..40 {
        let (code, _) = client::connect(client.proxy(), &authority).await;
        assert_eq!(code, 200);
    }
    let back = Application::echo("back").await;
    let mut config = east.config("cart-2", "cart");
    config.listeners.inbound = vec![address];
    east.workload("cart-2", "cart", &[(RAW, back.port())]);
    let _two = east.pod_with(config, "cart").await;
    let deadline = Instant::now() + PATIENCE;
    while back.requests() < 3 {
        assert!(Instant::now() < deadline, "the returned endpoint is not used");
        let (code, _) = client::connect(client.proxy(), &authority).await;
        assert_eq!(code, 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One endpoint at home, two behind two gateways in the west.
struct Federation {
    east: Cluster,
    west: Cluster,
    home: Application,
    home_pod: Pod,
    away: Vec<Application>,
    _away_pods: Vec<Pod>,
    gateways: Vec<Gateway>,
    client: Pod,
}

impl Federation {
    async fn start() -> Self {
        let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
        east.trusts(&west);
        west.trusts(&east);
        let home = Application::http1("home").await;
        let home_pod = east.pod("cart-1", "cart", &[(HTTP, home.port())]).await;
        let (mut away, mut away_pods) = (Vec::new(), Vec::new());
        for name in ["away-1", "away-2"] {
            let application = Application::http1(name).await;
            away_pods.push(west.pod(name, "cart", &[(HTTP, application.port())]).await);
            away.push(application);
        }
        let endpoints: Vec<_> =
            away_pods.iter().map(|pod| (format!("west/shop/{}", pod.config.workload.name), pod.mesh())).collect();
        let mut gateways = Vec::new();
        for _ in 0..2 {
            gateways.push(Gateway::start(endpoints.clone()).await);
        }
        let names = ["gw-1", "gw-2"];
        let addresses: Vec<_> = names.into_iter().zip(gateways.iter().map(|gateway| gateway.address)).collect();
        east.imports(
            &[HTTP],
            vec![east.local(vec![east.endpoint(&home_pod)], &[HTTP]), west.remote(2, &addresses, &[HTTP])],
        );
        let client = east.pod("frontend-1", "frontend", &[]).await;
        Self { east, west, home, home_pod, away, _away_pods: away_pods, gateways, client }
    }

    fn away_requests(&self) -> usize {
        self.away.iter().map(Application::requests).sum()
    }
}

#[tokio::test]
async fn home_is_preferred_and_the_remote_cluster_takes_over_when_home_is_dead() {
    let federation = Federation::start().await;
    let load = Load::start(federation.client.proxy());
    eventually("home answers", || federation.home.requests() > 20).await;
    assert_eq!(federation.away_requests(), 0);
    federation.home.kill().await;
    let away = federation.away;
    eventually("the west takes over", || away.iter().map(Application::requests).sum::<usize>() > 50).await;
    let answers = load.end().await;
    assert_at_most_one_interrupted(&answers);
    assert!(last_from(&answers).starts_with("away"), "{:?}", answers.last());
}

#[tokio::test]
async fn a_gateway_that_is_killed_costs_no_idempotent_request() {
    let mut federation = Federation::start().await;
    federation.east.imports(&[HTTP], {
        let names = ["gw-1", "gw-2"];
        let addresses: Vec<_> =
            names.into_iter().zip(federation.gateways.iter().map(|gateway| gateway.address)).collect();
        vec![federation.west.remote(2, &addresses, &[HTTP])]
    });
    let proxy = federation.client.proxy();
    let uri = format!("http://{}/", host("cart"));
    let mut connection = Client::connect(proxy).await;
    let deadline = Instant::now() + PATIENCE;
    let (mut seen, mut killed, mut after) = (std::collections::BTreeSet::new(), false, 0);
    while after < 50 {
        assert!(Instant::now() < deadline, "both gateways were never used: {seen:?}");
        let answer = connection.call(Method::GET, &uri, "", &[("isthmus-trace", "1")]).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        seen.insert(answer.header("isthmus-path").split("; ").nth(3).unwrap_or_default().to_owned());
        if killed {
            after += 1;
        } else if seen.contains("gateway=gw-1") && seen.contains("gateway=gw-2") {
            federation.gateways.remove(0).kill().await;
            killed = true;
        }
    }
}

#[tokio::test]
async fn unready_endpoints_are_left_at_once() {
    let federation = Federation::start().await;
    let uri = format!("http://{}/", host("cart"));
    let mut connection = Client::connect(federation.client.proxy()).await;
    assert!(connection.get(&uri).await.body.starts_with("home"));
    let mut endpoint = federation.east.endpoint(&federation.home_pod);
    endpoint.ready = false;
    let addresses = [("gw-1", federation.gateways[0].address)];
    federation.east.imports(
        &[HTTP],
        vec![federation.east.local(vec![endpoint], &[HTTP]), federation.west.remote(2, &addresses, &[HTTP])],
    );
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = connection.get(&uri).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        if answer.body.starts_with("away") {
            break;
        }
        assert!(Instant::now() < deadline, "still at home");
    }
}

#[tokio::test]
async fn an_endpoint_that_swallows_connections_is_raced_by_the_next() {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let good = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    // Accepted by the kernel, answered by nobody.
    let silent = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let silent_endpoint = east.endpoint_at("cart-2", silent.local_addr().unwrap(), "cart");
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&good), silent_endpoint], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let uri = format!("http://{}/", host("cart"));
    let mut slowest = Duration::ZERO;
    for _ in 0..30 {
        let started = Instant::now();
        let answer = client::get(client.proxy(), &uri).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test]
async fn a_server_with_a_wrong_identity_gets_nothing() {
    let east = Cluster::start("east").await;
    let application = Application::http1("evil").await;
    let impostor = east.pod("evil-1", "evil", &[(HTTP, application.port())]).await;
    let claimed = east.endpoint_at("cart-1", impostor.mesh(), "cart");
    east.imports(&[HTTP], vec![east.local(vec![claimed], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let answer = client::get(client.proxy(), &format!("http://{}/", host("cart"))).await;
    assert_eq!((answer.status, answer.header("isthmus-error")), (StatusCode::SERVICE_UNAVAILABLE, "unreachable"));
    assert!(answer.body.contains("TLS"), "{}", answer.body);
    assert_eq!(application.requests(), 0);
}

#[tokio::test]
async fn a_small_answer_that_breaks_off_is_asked_for_elsewhere_when_repeating_is_harmless() {
    let east = Cluster::start("east").await;
    let (breaking, well) = (Application::breaking_off("cart-1").await, Application::http1("cart-2").await);
    let first = east.pod("cart-1", "cart", &[(HTTP, breaking.port())]).await;
    let second = east.pod("cart-2", "cart", &[(HTTP, well.port())]).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&first), east.endpoint(&second)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let mut connection = Client::connect(client.proxy()).await;
    let uri = format!("http://{}/", host("cart"));
    let mut asked = 0;
    while breaking.requests() < 3 && asked < 200 {
        let answer = connection.call(Method::GET, &uri, "", &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        asked += 1;
    }
    assert!(breaking.requests() > 0, "nothing broke off in {asked} requests");
}

#[tokio::test]
async fn an_unavailable_answer_is_retried_only_when_repeating_is_harmless() {
    let (_east, applications, _pods, client) = two_at_home().await;
    let mut connection = Client::connect(client.proxy()).await;
    let uri = format!("http://{}/unavailable", host("cart"));
    let total = || applications.iter().map(Application::requests).sum::<usize>();
    let answer = connection.call(Method::POST, &uri, "", &[]).await;
    assert_eq!((answer.status, total()), (StatusCode::SERVICE_UNAVAILABLE, 1));
    let answer = connection.call(Method::GET, &uri, "", &[]).await;
    assert_eq!((answer.status, total()), (StatusCode::SERVICE_UNAVAILABLE, 3), "both were asked");
    assert!(answer.body.contains("/unavailable"), "the application's own answer comes back: {}", answer.body);
}

#[tokio::test]
async fn a_network_that_drops_everything_is_left_within_a_second() {
    let federation = Federation::start().await;
    // The home endpoint's sidecar is reached through something that can drop its packets.
    let way = Gateway::start(vec![("east/shop/cart-1".to_owned(), federation.home_pod.mesh())]).await;
    let addresses = [("gw-1", federation.gateways[0].address)];
    let home = federation.east.endpoint_at("cart-1", way.address, "cart");
    federation.east.imports(
        &[HTTP],
        vec![federation.east.local(vec![home], &[HTTP]), federation.west.remote(2, &addresses, &[HTTP])],
    );
    let uri = format!("http://{}/", host("cart"));
    let mut connection = Client::connect(federation.client.proxy()).await;
    let deadline = Instant::now() + PATIENCE;
    let mut at_home = 0;
    while at_home < 20 {
        assert!(Instant::now() < deadline, "home is not used");
        at_home += usize::from(connection.get(&uri).await.body.starts_with("home"));
    }
    way.freeze();
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let started = Instant::now();
        let answer = connection.get(&uri).await;
        slowest = slowest.max(started.elapsed());
        assert!(answer.body.starts_with("away"), "{answer:?}");
    }
    // 250 ms of silence, 500 ms for the PING, 250 ms for the race; the rest is a busy machine's.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test]
async fn a_sidecar_that_drains_costs_no_request() {
    let (_east, applications, pods, client) = two_at_home().await;
    let load = Load::start(client.proxy());
    eventually("both are used", || applications.iter().all(|application| application.requests() > 10)).await;
    let before = applications[1].requests();
    pods[0].process.trigger_drain();
    eventually("the other one takes all", || applications[1].requests() > before + 50).await;
    assert_none_failed(&load.end().await);
}

#[tokio::test]
async fn many_endpoints_that_die_at_once_do_not_use_a_requests_attempts_up() {
    let federation = Federation::start().await;
    let mut endpoints = Vec::new();
    for number in 0..30 {
        // Bound for a moment, so that nobody listens there.
        let free = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        endpoints.push(federation.east.endpoint_at(&format!("cart-{number}"), free.local_addr().unwrap(), "cart"));
    }
    let addresses = [("gw-1", federation.gateways[0].address)];
    let remote = federation.west.remote(2, &addresses, &[HTTP]);
    federation.east.imports(&[HTTP], vec![federation.east.local(endpoints, &[HTTP]), remote]);
    let uri = format!("http://{}/", host("cart"));
    let answer = client::get(federation.client.proxy(), &uri).await;
    assert!(answer.body.starts_with("away"), "{answer:?}");
}

/// The connections kept to an application that died are closed in the kernel before any task of its sidecar knows.
#[tokio::test]
async fn a_post_in_the_instant_an_application_dies_alone_is_answered_elsewhere() {
    for _ in 0..5 {
        let (_east, mut applications, _pods, client) = two_at_home().await;
        let mut connection = Client::connect(client.proxy()).await;
        let uri = format!("http://{}/", host("cart"));
        let both = |applications: &[Application]| applications.iter().all(|application| application.requests() > 0);
        while !both(&applications) {
            assert_eq!(connection.call(Method::POST, &uri, "x", &[]).await.status, StatusCode::OK);
        }
        applications.remove(0).kill().await;
        for _ in 0..20 {
            let answer = connection.call(Method::POST, &uri, "x", &[]).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        }
    }
}
