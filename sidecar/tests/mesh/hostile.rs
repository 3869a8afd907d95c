//! One caller's strange request harms nobody else.

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::applications::Application;
use crate::client::{self, Client};
use crate::cluster::{Cluster, HTTP, PATIENCE, Pod, eventually, host};

/// A client and a server in one cluster.
struct Shop {
    _east: Cluster,
    client: Pod,
    _server: Pod,
    application: Application,
}

async fn shop() -> Shop {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    Shop { _east: east, client, _server: server, application }
}

impl Shop {
    /// Sends these bytes, and reads what the proxy answers until it closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.client.proxy()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        rest(stream).await
    }

    /// A POST that the application has begun to read, and whose end the caller has yet to send.
    async fn half_a_post(&self) -> TcpStream {
        let before = self.application.requests();
        let mut stream = TcpStream::connect(self.client.proxy()).await.unwrap();
        let host = host("cart");
        let head = format!(
            "POST http://{host}/half HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 4\r\n\r\nab"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        eventually("the application has the request", || self.application.requests() > before).await;
        stream
    }
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is an end, too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Ends the POST, which only the session that it began on can answer.
async fn assert_undisturbed(mut half: TcpStream) {
    half.write_all(b"cd").await.unwrap();
    let answer = rest(half).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("cart-1 POST /half abcd"), "{answer}");
}

#[tokio::test]
async fn too_large_fields_are_refused_at_home_and_the_shared_session_lives() {
    let shop = shop().await;
    let half = shop.half_a_post().await;
    let before = shop.application.requests();
    let uri = format!("http://{}/", host("cart"));
    for (field, repeated) in [("x", 49), ("x", 100), ("x", 300), ("\\", 40)] {
        let large = field.repeat(repeated * 1024);
        let mut connection = Client::connect(shop.client.proxy()).await;
        let answer = connection.call(Method::GET, &uri, "", &[("large", &large)]).await;
        let said = (answer.status, answer.header("isthmus-error"));
        let expected = (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large");
        assert_eq!(said, expected, "{repeated} KiB of {field}");
        assert!(answer.body.starts_with("isthmus: the request's header fields are too large"), "{}", answer.body);
    }
    let long = format!("{uri}{}", "x".repeat(50 * 1024));
    assert_eq!(client::get(shop.client.proxy(), &long).await.header("isthmus-error"), "headers-too-large");
    assert_eq!(shop.application.requests(), before);
    // What fits goes through, there and back.
    let mut connection = Client::connect(shop.client.proxy()).await;
    let answer = connection.call(Method::GET, &uri, "", &[("large", &"x".repeat(40 * 1024))]).await;
    assert_eq!((answer.status, answer.header("echo-large").len()), (StatusCode::OK, 40 * 1024));
    assert_undisturbed(half).await;
}

#[tokio::test]
async fn a_response_with_too_large_fields_fails_alone() {
    let shop = shop().await;
    let half = shop.half_a_post().await;
    let answer = client::get(shop.client.proxy(), &format!("http://{}/large-fields", host("cart"))).await;
    let said = (answer.status, answer.header("isthmus-error"));
    assert_eq!(said, (StatusCode::BAD_GATEWAY, "response-headers-too-large"), "{answer:?}");
    assert_undisturbed(half).await;
}

#[tokio::test]
async fn a_malformed_body_is_the_callers_fault_and_the_endpoint_stays() {
    let shop = shop().await;
    let host = host("cart");
    let head = format!("PUT http://{host}/ HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
    let extension = format!("4;{}\r\nabcd\r\n0\r\n\r\n", "x".repeat(30 * 1024));
    for body in ["ZZZ\r\n", "4\r\nabcd\r\nZZZ\r\n", &extension] {
        // More often than it takes to eject an endpoint.
        for _ in 0..8 {
            let answer = shop.raw(format!("{head}{body}").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
            assert!(answer.contains("isthmus-error: request-body\r\n"), "{answer}");
        }
    }
    let metrics = shop.client.process.metrics_text().unwrap();
    assert!(!metrics.contains("ejections_total{"), "{metrics}");
    assert_eq!(client::get(shop.client.proxy(), &format!("http://{host}/")).await.status, StatusCode::OK);
}

/// What is inside of another message's body must never become a message to the application.
#[tokio::test]
async fn ambiguous_messages_smuggle_nothing() {
    let shop = shop().await;
    let host = host("cart");
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let length = smuggled.len();
    let cases = [
        ("two lengths", format!("content-length: 0\r\ncontent-length: {length}\r\n\r\n{smuggled}")),
        ("a list of lengths", format!("content-length: 0, {length}\r\n\r\n{smuggled}")),
        ("a signed length", format!("content-length: +{length}\r\n\r\n{smuggled}")),
        (
            "a length and an unknown coding",
            format!("content-length: 4\r\ntransfer-encoding: xchunked\r\n\r\n{smuggled}"),
        ),
        ("chunked not last", format!("transfer-encoding: chunked, identity\r\n\r\n{smuggled}")),
        ("a name with a space", format!("transfer-encoding : chunked\r\ncontent-length: 0\r\n\r\n{smuggled}")),
        ("a folded field", format!("x: y\r\n transfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n{smuggled}")),
        ("a bare carriage return", format!("x: y\rtransfer-encoding: chunked\r\n\r\n{smuggled}")),
        ("a zero byte", format!("x: \0\r\ncontent-length: 0\r\n\r\n{smuggled}")),
        (
            "a chunk that is too large to be one",
            format!("transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{smuggled}"),
        ),
        ("a chunk of negative length", format!("transfer-encoding: chunked\r\n\r\n-1\r\n{smuggled}")),
    ];
    for (what, rest_of_head) in cases {
        let request = format!("POST http://{host}/first HTTP/1.1\r\nhost: {host}\r\n{rest_of_head}");
        let before = shop.application.requests();
        let answer = shop.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer:?}");
        assert!(!answer.contains("/smuggled"), "{what}: {answer}");
        assert!(shop.application.requests() <= before + 1, "{what}");
    }
    // Chunked and a length together: the length is not believed (RFC 9112, section 6.3), and the other side is told neither.
    let both = format!(
        "POST http://{host}/first HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
         content-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n{smuggled}"
    );
    let answer = shop.raw(both.as_bytes()).await;
    assert!(!answer.contains("/smuggled"), "{answer}");
    if answer.starts_with("HTTP/1.1 200 ") {
        assert!(answer.ends_with("cart-1 POST /first abc") && !answer.contains("echo-content-length: 3"), "{answer}");
    }
}

#[tokio::test]
async fn more_requests_than_a_sidecar_takes_are_shed_at_once() {
    let east = Cluster::start("east").await;
    let application = Application::http1("cart-1").await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    east.workload("frontend-1", "frontend", &[]);
    let mut config = east.config("frontend-1", "frontend");
    config.outbound.max_requests = 2;
    let client = east.pod_with(config, "frontend").await;
    crate::cluster::ready(&client.process).await;
    let uri = format!("http://{}/slow", host("cart"));
    let (proxy, uri) = (client.proxy(), uri.as_str());
    let answers = futures_util::future::join_all((0..6).map(|_| client::get(proxy, uri))).await;
    let shed: Vec<_> = answers.iter().filter(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE).collect();
    assert_eq!(shed.len(), 4, "{answers:?}");
    for answer in shed {
        assert_eq!((answer.header("isthmus-error"), answer.header("retry-after")), ("overloaded", "1"));
    }
    assert_eq!(client::get(proxy, uri).await.status, StatusCode::OK, "there is room again");
}
