//! Who is told no, and how.

use std::sync::Arc;

use federation_api::discovery::v1::resource::Resource as Kind;
use tonic::{Code, Request};

use crate::client::v1::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use crate::client::{asked, bundles, connect, next, pod, svids};
use crate::cluster::{Cluster, eventually, ready};

/// More than one connection may open.
const STREAMS: usize = 256;
const STREAMS_PER_CONNECTION: usize = 32;

#[tokio::test]
async fn a_request_without_the_standard_metadata_is_refused() {
    let east = Cluster::start("east").await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut client = connect(&socket).await;
    let refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let refused = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    for wrong in ["false", "True", "true,true", ""] {
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", wrong.parse().unwrap());
        let refused = client.fetch_x509svid(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}: {refused}");
    }
    // The twin.
    svids(&mut client).await.unwrap();
}

#[tokio::test]
async fn jwt_calls_are_unimplemented() {
    let east = Cluster::start("east").await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut client = connect(&socket).await;
    let codes = [
        client.fetch_jwtsvid(asked(JwtsvidRequest::default())).await.unwrap_err().code(),
        client.fetch_jwt_bundles(asked(JwtBundlesRequest {})).await.unwrap_err().code(),
        client.validate_jwtsvid(asked(ValidateJwtsvidRequest::default())).await.unwrap_err().code(),
    ];
    assert_eq!(codes, [Code::Unimplemented; 3]);
}

#[tokio::test]
async fn before_there_is_an_identity_it_is_unavailable() {
    let mut east = Cluster::start("east").await;
    east.control_plane.stop().await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    let mut client = connect(&socket).await;
    assert_eq!(svids(&mut client).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(bundles(&mut client).await.unwrap_err().code(), Code::Unavailable);
    east.control_plane.restart().await;
    ready(&pod.process).await;
    next(&mut svids(&mut client).await.unwrap()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_workload_that_the_control_plane_refuses_gets_permission_denied() {
    let east = Cluster::start("east").await;
    let mut config = east.config("frontend-1", "frontend");
    std::fs::write(&config.discovery.token_file, "forged").unwrap();
    let socket = config.state_directory.with_extension("sock");
    config.workload_api = Some(sidecar::config::WorkloadApiConfig { socket: socket.clone() });
    let pod = east.pod_with(config, "frontend").await;
    let process = pod.process.clone();
    eventually("it was refused", || process.metrics_text().unwrap().contains("svid_issues_total{result=\"failed\"}"))
        .await;
    let mut client = connect(&socket).await;
    let refused = svids(&mut client).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert_eq!(bundles(&mut client).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn streams_are_bounded_and_a_closed_one_makes_room() {
    let east = Cluster::start("east").await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut clients = Vec::new();
    let mut open = Vec::new();
    for _ in 0..STREAMS / STREAMS_PER_CONNECTION {
        let mut client = connect(&socket).await;
        for _ in 0..STREAMS_PER_CONNECTION {
            open.push(svids(&mut client).await.unwrap());
        }
        clients.push(client);
    }
    let mut another = connect(&socket).await;
    assert_eq!(svids(&mut another).await.unwrap_err().code(), Code::ResourceExhausted);
    open.truncate(STREAMS - 1);
    let process = pod.process.clone();
    eventually("the server noticed", || process.metrics_text().unwrap().contains("workload_api_streams 255")).await;
    svids(&mut another).await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded() {
    let east = Cluster::start("east").await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(tokio::net::UnixStream::connect(&socket).await.unwrap());
    }
    let mut shut = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let read = tokio::io::AsyncReadExt::read(&mut shut, &mut [0]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    drop(idle);
    let process = pod.process.clone();
    eventually("it was counted", || process.metrics_text().unwrap().contains("workload_api_shed_total 1")).await;
}

#[tokio::test]
async fn without_a_first_whole_state_there_are_no_bundles() {
    let east = Cluster::start("east").await;
    // A cluster that is never told its own root.
    let nothing = federation_api::discovery::v1::TrustBundle {
        trust_domain: east.state().trust_domain().to_string(),
        x509_authorities: Vec::new(),
        sequence: 1,
    };
    east.state().set("trust/east.mesh.example", Kind::TrustBundle(nothing));
    let state = Arc::clone(east.state());
    let (_pod, socket) = pod(&east, "frontend-1").await;
    eventually("an SVID was issued", || state.issued_by_token.load(std::sync::atomic::Ordering::SeqCst) > 0).await;
    let refused = svids(&mut connect(&socket).await).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}
