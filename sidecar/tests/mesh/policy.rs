//! A failover policy, as callers see it.

use std::time::{Duration, Instant};

use federation_api::discovery::v1::failover_policy::{Mode, Target};
use federation_api::discovery::v1::{self as wire, FailoverPolicy, resource::Resource as Kind};
use http::{Method, StatusCode};

use crate::applications::Application;
use crate::client::Client;
use crate::cluster::{Cluster, HTTP, PATIENCE, Pod, host};
use crate::gateway::Gateway;

/// `cart` at home in east, and in west and north behind a gateway each.
struct Shop {
    east: Cluster,
    client: Pod,
    clusters: Vec<wire::Cluster>,
    _others: Vec<(Cluster, Pod, Gateway)>,
    _home: Pod,
    _applications: Vec<Application>,
}

async fn shop() -> Shop {
    let east = Cluster::start("east").await;
    let mut applications = vec![Application::http1("east").await];
    let home = east.pod("cart-1", "cart", &[(HTTP, applications[0].port())]).await;
    let mut clusters = vec![east.local(vec![east.endpoint(&home)], &[HTTP])];
    let mut others = Vec::new();
    for name in ["west", "north"] {
        let other = Cluster::start(name).await;
        east.trusts(&other);
        other.trusts(&east);
        applications.push(Application::http1(name).await);
        let pod = other.pod("cart-1", "cart", &[(HTTP, applications.last().unwrap().port())]).await;
        let gateway = Gateway::start(vec![(format!("{name}/shop/cart-1"), pod.mesh())]).await;
        clusters.push(other.remote(1, &[("gw-1", gateway.address)], &[HTTP]));
        others.push((other, pod, gateway));
    }
    let client = east.pod("frontend-1", "frontend", &[]).await;
    Shop { east, client, clusters, _others: others, _home: home, _applications: applications }
}

impl Shop {
    /// Publishes the service with these clusters and a policy.
    fn say(&self, clusters: &[usize], failover: FailoverPolicy) {
        let clusters = clusters.iter().map(|place| self.clusters[*place].clone()).collect();
        let mut service = self.east.service(&[HTTP], clusters);
        service.failover = Some(failover);
        self.east.state().set(&format!("service/{}", host("cart")), Kind::Service(service));
    }

    /// Waits until 20 requests in a row are answered as expected.
    async fn until(&self, what: &str, expected: impl Fn(&str) -> bool) {
        let mut client = Client::connect(self.client.proxy()).await;
        let deadline = Instant::now() + PATIENCE;
        let mut in_a_row = 0;
        while in_a_row < 20 {
            let answer = client.get(&format!("http://{}/", host("cart"))).await;
            let said = if answer.status == StatusCode::OK { answer.body.split(' ').next().unwrap() } else { "" };
            in_a_row = if expected(said) { in_a_row + 1 } else { 0 };
            assert!(Instant::now() < deadline, "never {what}: {} {}", answer.status, answer.body);
        }
    }
}

#[tokio::test]
async fn a_policy_decides_which_clusters_are_used_and_in_which_order() {
    let shop = shop().await;
    let only = |to: &[&str]| FailoverPolicy {
        targets: vec![Target {
            mode: Mode::Only.into(),
            to: to.iter().map(ToString::to_string).collect(),
            from: vec![],
        }],
        ..FailoverPolicy::default()
    };
    shop.say(&[0, 1, 2], FailoverPolicy::default());
    shop.until("at home", |name| name == "east").await;
    shop.say(&[1, 2], only(&["north", "west"]));
    shop.until("in the order named", |name| name == "north").await;
    shop.say(&[1, 2], only(&["west"]));
    shop.until("only the one named", |name| name == "west").await;
    shop.say(&[1, 2], FailoverPolicy { local_only: true, ..FailoverPolicy::default() });
    shop.until("nowhere else", str::is_empty).await;
    let share = |cluster: &str, weight| wire::failover_policy::Share { cluster: cluster.to_owned(), weight };
    let shares = vec![share("north", 1), share("east", 0)];
    shop.say(&[0, 1, 2], FailoverPolicy { distribute: shares, ..FailoverPolicy::default() });
    shop.until("by shares", |name| name == "north").await;
}

#[tokio::test]
async fn a_limit_for_one_try_ends_a_slow_one_and_only_where_a_policy_sets_it() {
    let shop = shop().await;
    let policy = FailoverPolicy { per_try_timeout_ms: Some(300), ..FailoverPolicy::default() };
    shop.say(&[0], policy);
    shop.until("at home", |name| name == "east").await;
    let mut client = Client::connect(shop.client.proxy()).await;
    let begun = Instant::now();
    let answer = client.call(Method::POST, &format!("http://{}/slow", host("cart")), "", &[]).await;
    assert_eq!((answer.status, answer.header("isthmus-error")), (StatusCode::GATEWAY_TIMEOUT, "per-try-timeout"));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    shop.say(&[0], FailoverPolicy::default());
    let deadline = Instant::now() + PATIENCE;
    while client.call(Method::POST, &format!("http://{}/slow", host("cart")), "", &[]).await.status != StatusCode::OK {
        assert!(Instant::now() < deadline, "slow calls are right without a policy");
    }
}
