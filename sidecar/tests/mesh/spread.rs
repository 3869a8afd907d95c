//! Load over the endpoints behind a passthrough gateway, which pins a session to one of them.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::applications::Application;
use crate::client::Client;
use crate::cluster::{Cluster, HTTP, PATIENCE, host};
use crate::gateway::Gateway;

const ENDPOINTS: usize = 10;
const CLIENTS: usize = 100;
const REQUESTS: usize = 4_000;
/// What a request takes at its endpoint: what a busy machine adds now and then is little beside it, and endpoints are alike.
const WORK: Duration = Duration::from_millis(200);

async fn calls(client: &mut Client, count: usize) {
    for _ in 0..count {
        assert_eq!(client.get(&format!("http://{}/", host("cart"))).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_clients_load_is_even_over_the_endpoints_behind_a_gateway() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    east.trusts(&west);
    west.trusts(&east);
    let (mut applications, mut pods, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..ENDPOINTS {
        let application = Application::taking(WORK).await;
        let name = format!("cart-{number}");
        let pod = west.pod(&name, "cart", &[(HTTP, application.port())]).await;
        behind.push((format!("west/shop/{name}"), pod.mesh()));
        pods.push(pod);
        applications.push(application);
    }
    let gateway = Gateway::start(behind).await;
    let ready = u32::try_from(ENDPOINTS).unwrap();
    east.imports(&[HTTP], vec![west.remote(ready, &[("gw-1", gateway.address)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(client.proxy()).await);
    }
    let counts = || applications.iter().map(Application::requests).collect::<Vec<_>>();
    // Slots lead where a hash says; paths that share an endpoint are led elsewhere until every endpoint has one.
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        let before = counts();
        futures_util::future::join_all(clients.iter_mut().map(|client| calls(client, 4))).await;
        if counts().iter().zip(before).all(|(after, before)| *after > before) {
            break;
        }
        assert!(Instant::now() < deadline, "never all of them: {:?}", counts());
    }
    let before = counts();
    let calling = clients.iter_mut().map(|client| calls(client, REQUESTS / CLIENTS));
    futures_util::future::join_all(calling).await;
    let shares: Vec<usize> = counts().iter().zip(before).map(|(after, before)| after - before).collect();
    let even = REQUESTS / ENDPOINTS;
    let within = |share: &usize| (even * 85 / 100..=even * 115 / 100).contains(share);
    assert!(shares.iter().all(within), "of {even} each: {shares:?}");
}
