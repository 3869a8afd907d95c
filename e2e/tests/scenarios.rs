//! What the demo shows, each as a test of its own: real processes, real sockets, one fault at a time under load.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "scenarios/etcd.rs"]
mod etcd;
#[path = "scenarios/headless.rs"]
mod headless;
#[path = "scenarios/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::client;
use e2e::demo::faults::{Faults, LOADED};
use e2e::demo::story::{FirstRecord, UNRECOGNIZED_NAME, first_record};
use e2e::lab::operator::Operator;
use e2e::lab::shop_federation::shop_federation;
use e2e::lab::{NAMESPACE, READY, wait};
use e2e::shop::proxy::Others;
use http::{HeaderMap, Method};
use stage::{Stage, assert_unharmed};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_view_crosses_clusters_and_applications_see_who_calls() {
    let mut stage = Stage::set().await;
    let proxy = stage.lab.cluster("east").unwrap().client_proxy();
    let url = format!("http://frontend.{NAMESPACE}.svc.clusterset.local/");
    let page = client::by_proxy(proxy, Method::GET, &url, &HeaderMap::new()).await.unwrap();
    assert!(page.status.is_success(), "{}: {}", page.status, page.body);
    assert!(
        page.body.contains("served by east/frontend-0 to spiffe://east.mesh.example/ns/shop/sa/client"),
        "{}",
        page.body
    );
    let cart = page.body.lines().find(|line| line.contains("/cartservice-")).unwrap();
    assert!(cart.ends_with("to spiffe://east.mesh.example/ns/shop/sa/frontend</p>"), "{cart}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_resolver_gets_the_clusterset_address() {
    let mut stage = Stage::set().await;
    for cluster in ["east", "north"] {
        let dns = stage.lab.cluster(cluster).unwrap().dns();
        let (server, port) = (format!("@{}", dns.ip()), dns.port().to_string());
        let ask = |name: &str, kind: &str| {
            let arguments = [&server, "-p", &port, "+time=2", "+short", name, kind].map(ToOwned::to_owned);
            async move {
                let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                Operator::run("dig".as_ref(), &arguments).await.unwrap().trim().to_owned()
            }
        };
        let host = format!("redis-cart.{NAMESPACE}.svc.clusterset.local");
        assert!(ask(&host, "A").await.starts_with("241."), "{cluster}");
        assert_eq!(ask(&format!("_tcp-redis._tcp.{host}"), "SRV").await, format!("0 100 6379 {host}."), "{cluster}");
        assert_eq!(ask(&format!("nobody.{NAMESPACE}.svc.clusterset.local"), "A").await, "");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_do_not_notice_that_every_local_endpoint_dies_and_come_home_when_they_return() {
    let mut stage = Stage::set().await;
    let mut faults = stage.faults();
    faults.warm_up().await.unwrap();
    faults.local_endpoints().await.unwrap();
    faults.local_endpoints_return().await.unwrap();
    assert_unharmed(&faults.rows);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_do_not_notice_that_a_gateway_or_a_whole_cluster_dies() {
    let mut stage = Stage::set().await;
    let mut faults = stage.faults();
    away_from_home(&mut faults).await;
    faults.gateway().await.unwrap();
    faults.cluster().await.unwrap();
    assert_unharmed(&faults.rows);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_sidecars_may_not_dial_out_lives_by_its_own_gateways() {
    let mut clusters = shop_federation();
    clusters[0].egress_restricted = true;
    let mut stage = Stage::set_with(clusters).await;
    let mut faults = stage.faults();
    away_from_home(&mut faults).await;
    let ways_out = [0, 1].map(|gateway| faults.lab.cluster("east").unwrap().gateway_address(gateway).ip());
    let mut connections = 0;
    for way_out in ways_out {
        let remotes = client::get((way_out, 15020).into(), "/debug/remotes").await.unwrap().body;
        let remotes: Vec<serde_json::Value> = serde_json::from_str(&remotes).unwrap();
        let west = remotes.iter().find(|remote| remote["cluster"] == "west").unwrap();
        connections += west["connections"].as_u64().unwrap();
    }
    assert!(connections > 0, "the load is answered by west, and not through here");

    faults.lab.cluster("east").unwrap().gateways[0].kill().await.unwrap();
    let fault = Instant::now();
    wait::until("400 requests by the gateway that is left", READY, || async {
        let samples = faults.load.since(fault);
        ensure!(samples.len() > 400, "{}", samples.len());
        Ok(())
    })
    .await
    .unwrap();
    let samples = faults.load.since(fault);
    let failed: Vec<_> = samples.iter().filter_map(|sample| sample.outcome.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), samples.len(), failed.first());

    // West's gateways are there, and nobody goes to them directly.
    faults.lab.cluster("east").unwrap().gateways[1].kill().await.unwrap();
    wait::until("nothing is answered any more", READY, || async {
        let recent = Instant::now().checked_sub(Duration::from_millis(500)).unwrap();
        let samples = faults.load.since(recent);
        let answered = samples.iter().filter(|sample| sample.outcome.is_ok()).count();
        ensure!(samples.len() > 10 && answered == 0, "{answered} of {} were answered", samples.len());
        Ok(())
    })
    .await
    .unwrap();
    for gateway in &mut faults.lab.cluster("east").unwrap().gateways {
        gateway.restart().unwrap();
    }
    wait::until("west answers again", READY, || async {
        let recent = Instant::now().checked_sub(Duration::from_millis(500)).unwrap();
        let west = faults.load.since(recent).iter().filter(|sample| sample.cluster() == Some("west")).count();
        ensure!(west > 10, "{west}");
        Ok(())
    })
    .await
    .unwrap();
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_do_not_notice_that_the_federation_and_every_control_plane_die() {
    let mut stage = Stage::set().await;
    let mut faults = stage.faults();
    faults.warm_up().await.unwrap();
    faults.lab.federation.kill().await.unwrap();
    for cluster in &mut faults.lab.clusters {
        cluster.control_plane.kill().await.unwrap();
    }
    // Failover, and a gateway and a sidecar that start with nobody to ask.
    faults.local_endpoints().await.unwrap();
    let restarted = Instant::now();
    let west = faults.lab.cluster("west").unwrap();
    west.gateways[0].kill().await.unwrap();
    west.gateways[0].restart().unwrap();
    west.gateways[0].ready(READY).await.unwrap();
    let pod = &mut west.pods_of("frontend").unwrap()[0];
    let sidecar = pod.sidecar.as_mut().unwrap();
    sidecar.kill().await.unwrap();
    sidecar.restart().unwrap();
    sidecar.ready(READY).await.unwrap();
    wait::until("the restarted sidecar serves", READY, || async {
        let served =
            faults.load.since(restarted).iter().any(|sample| sample.outcome.as_deref() == Ok("west/frontend-0"));
        ensure!(served, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    assert_unharmed(&faults.rows);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unexported_service_is_unreachable_whatever_a_client_makes_up() {
    let mut stage = Stage::set().await;
    let north = stage.lab.cluster("north").unwrap();
    let gateway = north.gateway_address(0);
    let name = |subset: &str, service: &str, port: u16| {
        format!("outbound_.{port}_.{subset}_.{service}.{NAMESPACE}.svc.clusterset.local")
    };
    let exported = name("c-north", "checkoutservice", 5050);
    assert_eq!(first_record(gateway, &exported).await.unwrap(), FirstRecord::Handshake);
    assert_eq!(first_record(gateway, &name("", "checkoutservice", 5050)).await.unwrap(), FirstRecord::Handshake);
    let refused = FirstRecord::Alert(UNRECOGNIZED_NAME);
    for (subset, service, port) in [
        ("c-west", "checkoutservice", 5050),
        ("c-north", "checkoutservice", 5051),
        ("c-north", "nobody", 5050),
        ("v1", "checkoutservice", 5050),
    ] {
        assert_eq!(
            first_record(gateway, &name(subset, service, port)).await.unwrap(),
            refused,
            "{subset} {service} {port}"
        );
    }
    north.operator().isthmus(&["unexport", "shop/checkoutservice"]).await.unwrap();
    wait::until("the gateway refuses the name", READY, || async {
        ensure!(first_record(gateway, &exported).await? == refused, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let east = stage.lab.cluster("east").unwrap();
    wait::until("the import is gone everywhere", READY, || async {
        let imports = east.operator().isthmus(&["get", "imports", "-o", "json"]).await?;
        ensure!(!imports.contains("checkoutservice"), "not yet");
        Ok(())
    })
    .await
    .unwrap();
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_good_once_and_for_its_own_cluster_only() {
    let mut stage = Stage::bare().await;
    let token = stage.lab.federation.token("east", "127.0.0.0/8").await.unwrap();
    stage.lab.add_unjoined(stage::small("west")).await.unwrap();
    let west = stage.lab.cluster("west").unwrap().operator();
    let refused = west.isthmus(&["join", &token]).await.unwrap_err().to_string();
    assert!(refused.contains("east"), "{refused}");
    stage.lab.add_unjoined(stage::small("east")).await.unwrap();
    let east = stage.lab.cluster("east").unwrap().operator();
    east.isthmus(&["join", &token]).await.unwrap();
    stage.lab.add_unjoined(stage::small("east")).await.unwrap();
    let impostor = stage.lab.clusters.last().unwrap().operator();
    let refused = impostor.isthmus(&["join", &token]).await.unwrap_err().to_string();
    assert!(refused.contains("used"), "{refused}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_manifest_keeps_the_last_good_one_and_says_where_it_is_broken() {
    let mut stage = Stage::set().await;
    let west = stage.lab.cluster("west").unwrap();
    let path = west.directory().join("manifests/service-cartservice.yaml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("port: 7070", "port: many")).unwrap();
    let log = west.control_plane.log().to_owned();
    wait::until("the control-plane says so", READY, || async {
        let text = std::fs::read_to_string(&log)?;
        let line = text.lines().rfind(|line| line.contains("service-cartservice.yaml") && line.contains("port"));
        ensure!(line.is_some(), "nothing was logged");
        anyhow::Ok(())
    })
    .await
    .unwrap();
    let proxy = west.client_proxy();
    let others = Others { proxy: Some(proxy), namespace: NAMESPACE.to_owned() };
    let mut cart = e2e::shop::v1::cart_client::CartClient::new(others.channel("cartservice", 7070).unwrap());
    let request = e2e::shop::v1::GetCartRequest { user_id: "somebody".to_owned() };
    let answer = tokio::time::timeout(Duration::from_secs(10), cart.get_cart(request)).await.unwrap().unwrap();
    assert!(answer.into_inner().served[0].instance.starts_with("west/"));
    stage.end().await;
}

/// Takes the local pods away and waits until the load is answered elsewhere.
async fn away_from_home(faults: &mut Faults<'_>) {
    faults.lab.cluster("east").unwrap().kill_pods(&LOADED).await.unwrap();
    let start = Instant::now();
    wait::until("the load has moved", READY, || async {
        let moved = faults.load.since(start).iter().filter(|sample| sample.cluster() == Some("west")).count();
        ensure!(moved > 20, "{moved} requests were answered by west");
        Ok(())
    })
    .await
    .unwrap();
}
