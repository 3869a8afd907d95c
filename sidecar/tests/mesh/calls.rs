//! HTTP through the explicit proxy.

use http::{Method, StatusCode};
use http_body_util::Full;

use crate::applications::Application;
use crate::client::{self, Answer, Client, request};
use crate::cluster::{Cluster, GRPC, HTTP, Pod, RAW, host};
use crate::gateway::Gateway;

/// A client and a server in one cluster, with one HTTP/1.1 application.
async fn east() -> (Cluster, Pod, Pod, Application) {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    east.imports(&[HTTP, RAW], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    (east, client, server, application)
}

#[tokio::test]
async fn a_request_reaches_the_application_with_the_callers_identity() {
    let (east, client, _server, _application) = east().await;
    let mut connection = Client::connect(client.proxy()).await;
    let uri = format!("http://{}/path?query=1", host("cart"));
    let forged = [("x-forwarded-client-cert", "URI=spiffe://evil/ns/a/sa/b"), ("x-kept", "1"), ("isthmus-probe", "1")];
    let answer = connection.call(Method::POST, &uri, "body", &forged).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.body, "cart-1 POST /path?query=1 body");
    let certificate = answer.header("echo-x-forwarded-client-cert");
    let by = format!("By={};Hash=", east.identity("cart"));
    assert!(certificate.starts_with(&by), "{certificate}");
    assert!(certificate.ends_with(&format!(";URI={}", east.identity("frontend"))), "{certificate}");
    assert_eq!(certificate.matches("URI=").count(), 1, "{certificate}");
    assert_eq!(answer.header("echo-x-kept"), "1");
    assert_eq!(answer.header("echo-host"), host("cart"));
    assert_eq!(answer.header("echo-isthmus-probe"), "");
    assert_eq!(answer.header("isthmus-unprocessed"), "", "an application cannot speak for its sidecar");
    assert_eq!(answer.header("isthmus-path"), "");
    // The connection is kept for the next request.
    assert_eq!(connection.get(&uri).await.body, "cart-1 GET /path?query=1 ");
}

#[tokio::test]
async fn the_path_taken_is_told_to_who_asks() {
    let (east, client, _server, _application) = east().await;
    let mut connection = Client::connect(client.proxy()).await;
    let uri = format!("http://{}:80/", host("cart"));
    let answer = connection.call(Method::GET, &uri, "", &[("isthmus-trace", "1")]).await;
    let expected = format!(
        "client={}; server={}; cluster=east; gateway=-; endpoint=east/shop/cart-1; attempts=1",
        east.identity("frontend"),
        east.identity("cart"),
    );
    assert_eq!(answer.header("isthmus-path"), expected);
}

#[tokio::test]
async fn a_trace_context_is_handed_on() {
    let (_east, client, _server, _application) = east().await;
    let mut connection = Client::connect(client.proxy()).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let uri = format!("http://{}/", host("cart"));
    let answer = connection.call(Method::GET, &uri, "", &[("traceparent", traceparent)]).await;
    let handed_on = answer.header("echo-traceparent");
    assert!(handed_on.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{handed_on}");
}

#[tokio::test]
async fn what_is_not_in_the_clusterset_is_refused_by_name() {
    let (_east, client, _server, _application) = east().await;
    let cases = [
        ("http://example.com/", StatusCode::FORBIDDEN, "not-in-clusterset"),
        ("http://cart.shop.svc.cluster.local/", StatusCode::FORBIDDEN, "not-opted-in"),
        ("http://nobody.shop.svc.clusterset.local/", StatusCode::BAD_GATEWAY, "unknown-service"),
        ("http://cart.shop.svc.clusterset.local:81/", StatusCode::BAD_GATEWAY, "unknown-port"),
        ("http://cart.shop.svc.clusterset.local:6379/", StatusCode::BAD_REQUEST, "not-http"),
        ("http://cart.shop.svc.clusterset.local:99999/", StatusCode::BAD_REQUEST, "port"),
        ("ftp://cart.shop.svc.clusterset.local/", StatusCode::BAD_REQUEST, "scheme"),
        ("http://8.8.8.8/", StatusCode::FORBIDDEN, "not-in-clusterset"),
        ("http://127.0.0.1:22/", StatusCode::FORBIDDEN, "not-in-clusterset"),
        ("http://[2001:db8::1]/", StatusCode::FORBIDDEN, "not-in-clusterset"),
        ("https://cart.shop.svc.clusterset.local/", StatusCode::BAD_REQUEST, "https"),
        ("/path", StatusCode::BAD_REQUEST, "no-authority"),
    ];
    for (uri, status, code) in cases {
        let answer = client::get(client.proxy(), uri).await;
        assert_eq!((answer.status, answer.header("isthmus-error")), (status, code), "{uri}");
        assert!(answer.body.starts_with("isthmus: "), "{uri}: {}", answer.body);
    }
    let (code, _) = client::connect(client.proxy(), "cart.shop.svc.clusterset.local:6379").await;
    assert_eq!(code, 503, "a port that no cluster's endpoints have");
}

#[tokio::test]
async fn a_service_is_found_by_its_address() {
    let (_east, client, _server, _application) = east().await;
    let answer = client::get(client.proxy(), "http://241.0.0.7/by-address").await;
    assert_eq!(answer.body, "cart-1 GET /by-address ");
    assert_eq!(answer.header("echo-host"), format!("{}:80", host("cart")));
}

#[tokio::test]
async fn a_remote_cluster_is_reached_through_its_gateway() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    east.trusts(&west);
    west.trusts(&east);
    let application = Application::http1("cart-w").await;
    let server = west.pod("cart-w", "cart", &[(HTTP, application.port())]).await;
    let gateway = Gateway::start(vec![("west/shop/cart-w".to_owned(), server.mesh())]).await;
    east.imports(&[HTTP], vec![west.remote(1, &[("gw-1", gateway.address)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let mut connection = Client::connect(client.proxy()).await;
    let uri = format!("http://{}/", host("cart"));
    let answer = connection.call(Method::GET, &uri, "", &[("isthmus-trace", "1")]).await;
    assert_eq!(answer.body, "cart-w GET / ");
    let expected = format!(
        "client={}; server={}; cluster=west; gateway=gw-1; endpoint=west/shop/cart-w; attempts=1",
        east.identity("frontend"),
        west.identity("cart"),
    );
    assert_eq!(answer.header("isthmus-path"), expected);
    assert!(answer.header("echo-x-forwarded-client-cert").ends_with(&east.identity("frontend")));
}

#[tokio::test]
async fn grpc_keeps_its_trailers_over_http2_to_the_proxy() {
    let east = Cluster::start("east").await;
    let application = Application::http2("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(GRPC, application.port())]).await;
    east.imports(&[GRPC], vec![east.local(vec![east.endpoint(&server)], &[GRPC])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    let stream = tokio::net::TcpStream::connect(client.proxy()).await.unwrap();
    let mut sender = client::http2(stream).await;
    let uri = format!("http://{}:50051/shop.Cart/Add", host("cart"));
    let call = request(Method::POST, &uri, "message", &[("content-type", "application/grpc"), ("te", "trailers")]);
    let answer = Answer::read(sender.send_request(call).await.unwrap()).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "message"));
    assert_eq!(answer.trailers.as_ref().unwrap()["grpc-status"], "0");
    assert_eq!(answer.header("echo-te"), "trailers");
    assert_eq!(answer.header("echo-authority"), format!("{}:50051", host("cart")));
}

#[tokio::test]
async fn a_grpc_caller_is_refused_in_its_own_words() {
    let (_east, client, _server, _application) = east().await;
    let mut connection = Client::connect(client.proxy()).await;
    let uri = format!("http://{}/shop.Nobody/Call", host("nobody"));
    let answer = connection.call(Method::POST, &uri, "x", &[("content-type", "application/grpc")]).await;
    assert_eq!((answer.status, answer.header("grpc-status")), (StatusCode::OK, "14"));
    assert_eq!(answer.header("grpc-message"), format!("no cluster exports {}", host("nobody")));
}

#[tokio::test]
async fn a_large_body_goes_through_whole() {
    let (_east, client, _server, _application) = east().await;
    let mut connection = Client::connect(client.proxy()).await;
    let body = "0123456789abcdef".repeat(128 * 1024);
    let uri = format!("http://{}/", host("cart"));
    let answer = connection.send(request(Method::PUT, &uri, &body, &[]).map(|_| Full::new(body.clone().into()))).await;
    assert_eq!(answer.unwrap().body, format!("cart-1 PUT / {body}"));
}
