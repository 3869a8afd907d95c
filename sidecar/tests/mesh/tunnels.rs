//! CONNECT and SOCKS5.

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::applications::Application;
use crate::client::{self, Answer, Client, request, socks_name};
use crate::cluster::{Cluster, GRPC, HTTP, Pod, RAW, host};

/// A client, and a server whose applications speak HTTP/1.1, HTTP/2 and raw bytes.
struct Shop {
    _east: Cluster,
    client: Pod,
    _server: Pod,
    _applications: Vec<Application>,
}

async fn shop() -> Shop {
    let east = Cluster::start("east").await;
    let applications =
        vec![Application::http1("web").await, Application::http2("grpc").await, Application::echo("redis").await];
    let bindings: Vec<_> = [HTTP, GRPC, RAW].into_iter().zip(applications.iter().map(Application::port)).collect();
    let server = east.pod("cart-1", "cart", &bindings).await;
    let ports = [HTTP, GRPC, RAW];
    east.imports(&ports, vec![east.local(vec![east.endpoint(&server)], &ports)]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    Shop { _east: east, client, _server: server, _applications: applications }
}

/// Sends, ends its own direction, and reads to the other's end.
async fn exchange(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn raw_bytes_go_both_ways_and_each_direction_ends_alone() {
    let shop = shop().await;
    let (code, stream) = client::connect(shop.client.proxy(), &format!("{}:6379", host("cart"))).await;
    assert_eq!(code, 200);
    assert_eq!(exchange(stream, b"PING").await, "redisPING;4");
    let (reply, stream) = client::socks(shop.client.proxy(), &socks_name(&host("cart")), 6379).await;
    assert_eq!(reply, 0);
    assert_eq!(exchange(stream, b"PING2").await, "redisPING2;5");
    let by_address = [1, 241, 0, 0, 7];
    let (reply, stream) = client::socks(shop.client.proxy(), &by_address, 6379).await;
    assert_eq!(reply, 0);
    assert_eq!(exchange(stream, b"").await, "redis;0");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let shop = shop().await;
    let (_, mut stream) = client::connect(shop.client.proxy(), &format!("{}:6379", host("cart"))).await;
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"redis");
}

#[tokio::test]
async fn http_in_a_tunnel_is_served_request_by_request() {
    let shop = shop().await;
    let (code, stream) = client::connect(shop.client.proxy(), &format!("{}:80", host("cart"))).await;
    assert_eq!(code, 200);
    let mut inside = Client::over(stream).await;
    let host = host("cart");
    let answer = inside.call(Method::GET, "/a", "", &[("host", &host), ("isthmus-trace", "1")]).await;
    assert_eq!(answer.body, "web GET /a ");
    assert!(answer.header("isthmus-path").contains("endpoint=east/shop/cart-1"), "{answer:?}");
    let answer = inside.call(Method::GET, "/b", "", &[("host", "other.shop.svc.clusterset.local")]).await;
    assert_eq!((answer.status, answer.header("isthmus-error")), (StatusCode::MISDIRECTED_REQUEST, "misdirected"));
}

#[tokio::test]
async fn grpc_in_a_tunnel_keeps_its_trailers() {
    let shop = shop().await;
    let (code, connect) = client::connect(shop.client.proxy(), &format!("{}:50051", host("cart"))).await;
    assert_eq!(code, 200);
    let (reply, socks) = client::socks(shop.client.proxy(), &socks_name(&host("cart")), 50051).await;
    assert_eq!(reply, 0);
    for stream in [connect, socks] {
        let mut sender = client::http2(stream).await;
        let uri = format!("http://{}:50051/shop.Cart/Add", host("cart"));
        let call = request(Method::POST, &uri, "message", &[("te", "trailers")]);
        let answer = Answer::read(sender.send_request(call).await.unwrap()).await.unwrap();
        assert_eq!(answer.body, "message");
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    }
}

#[tokio::test]
async fn tunnels_to_elsewhere_are_refused_in_the_protocols_own_words() {
    let shop = shop().await;
    for (authority, expected) in [
        ("example.com:443", 403),
        ("8.8.8.8:443", 403),
        ("127.0.0.1:22", 403),
        ("cart.shop.svc.clusterset.local:99999", 400),
        ("nobody.shop.svc.clusterset.local:80", 502),
        ("cart.shop.svc.clusterset.local:1", 502),
    ] {
        let (code, _) = client::connect(shop.client.proxy(), authority).await;
        assert_eq!(code, expected, "{authority}");
    }
    for (host, port, expected) in
        [("example.com", 443, 2), ("nobody.shop.svc.clusterset.local", 80, 4), ("cart.shop.svc.clusterset.local", 1, 5)]
    {
        let (reply, _) = client::socks(shop.client.proxy(), &socks_name(host), port).await;
        assert_eq!(reply, expected, "{host}:{port}");
    }
    let (reply, _) = client::socks(shop.client.proxy(), &[1, 127, 0, 0, 1], 22).await;
    assert_eq!(reply, 2);
    let (reply, _) = client::socks(shop.client.proxy(), &[9, 0, 0], 1).await;
    assert_eq!(reply, 8);
}
