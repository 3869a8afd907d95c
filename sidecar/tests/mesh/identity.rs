//! Getting and keeping an identity and a state.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::applications::Application;
use crate::client;
use crate::cluster::{Cluster, HTTP, PATIENCE, eventually, host, ready};
use crate::control_plane::ControlPlane;

#[tokio::test]
async fn a_token_is_shown_once_and_the_svid_renews_itself() {
    let east = Cluster::start_with_lifetime("east", Duration::from_secs(3)).await;
    let state = Arc::clone(east.state());
    let pod = east.pod("frontend-1", "frontend", &[]).await;
    eventually("renewed twice", || state.issued_by_svid.load(Ordering::SeqCst) >= 2).await;
    assert_eq!(state.issued_by_token.load(Ordering::SeqCst), 1);
    let file = pod.config.state_directory.join("svid.pem");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&pod.config.state_directory).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(pod.process.metrics_text().unwrap().contains("isthmus_test_svid_issues_total{result=\"ok\"}"));
}

#[tokio::test]
async fn a_restarted_sidecar_serves_from_disk_with_the_control_plane_dead() {
    let mut east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let uri = format!("http://{}/", host("cart"));
    assert_eq!(client::get(client.proxy(), &uri).await.status, StatusCode::OK);
    let file = client.config.state_directory.join("state");
    eventually("the service is written down", || {
        std::fs::read(&file).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&host("cart")))
    })
    .await;
    let (mut server_config, client_config) = (server.config.clone(), client.config.clone());
    server_config.listeners.inbound = vec![server.mesh()];
    server.sidecar.stop().await;
    client.sidecar.stop().await;
    east.control_plane.stop().await;
    let started = Instant::now();
    let server = east.pod_with(server_config, "cart").await;
    let client = east.pod_with(client_config, "frontend").await;
    ready(&server.process).await;
    ready(&client.process).await;
    let answer = client::get(client.proxy(), &uri).await;
    assert_eq!(answer.body, "cart-1 GET / ");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    // What was never asked for cannot be known.
    let answer = client::get(client.proxy(), &format!("http://{}/", host("other"))).await;
    assert_eq!((answer.status, answer.header("isthmus-error")), (StatusCode::SERVICE_UNAVAILABLE, "lookup-timed-out"));
}

#[tokio::test]
async fn a_control_plane_with_another_identity_is_told_nothing() {
    let east = Cluster::start("east").await;
    let impostor = ControlPlane::start_as(Arc::clone(east.state()), "shop", "cart").await;
    east.workload("frontend-1", "frontend", &[]);
    let mut config = east.config("frontend-1", "frontend");
    config.discovery.addresses = vec![impostor.address.to_string()];
    let pod = east.pod_with(config, "frontend").await;
    eventually("it has tried", || {
        pod.process.metrics_text().unwrap().contains("isthmus_test_svid_issues_total{result=\"failed\"} ")
    })
    .await;
    assert_eq!(east.state().issued_by_token.load(Ordering::SeqCst), 0, "the token never left");
    assert!(!pod.process.readiness().is_ready());
}

#[tokio::test]
async fn calls_go_on_when_the_control_plane_dies_and_changes_follow_when_it_returns() {
    let mut east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    let client = east.pod("frontend-1", "frontend", &[]).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    let uri = format!("http://{}/", host("cart"));
    assert_eq!(client::get(client.proxy(), &uri).await.status, StatusCode::OK);
    east.control_plane.stop().await;
    for _ in 0..20 {
        assert_eq!(client::get(client.proxy(), &uri).await.status, StatusCode::OK);
    }
    east.imports(&[HTTP], vec![]);
    east.control_plane.restart().await;
    let deadline = Instant::now() + PATIENCE;
    while client::get(client.proxy(), &uri).await.header("isthmus-error") != "no-endpoint" {
        assert!(Instant::now() < deadline, "the change never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
