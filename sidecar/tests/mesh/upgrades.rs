//! WebSocket and other upgrades, over two sidecars.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::applications::Application;
use crate::client;
use crate::cluster::{Cluster, HTTP, Pod, host};

async fn shop() -> (Cluster, Pod, Pod, Application) {
    let east = Cluster::start("east").await;
    let application = Application::upgrading().await;
    let server = east.pod("cart-1", "cart", &[(HTTP, application.port())]).await;
    east.imports(&[HTTP], vec![east.local(vec![east.endpoint(&server)], &[HTTP])]);
    let client = east.pod("frontend-1", "frontend", &[]).await;
    (east, client, server, application)
}

/// Asks for an upgrade and reads the head of the answer.
async fn ask(stream: &mut TcpStream, target: &str) -> String {
    let request = format!(
        "GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k1\r\n\r\n",
        host("cart")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

async fn talk(stream: &mut TcpStream) {
    let mut protocol = [0; 9];
    stream.read_exact(&mut protocol).await.unwrap();
    assert_eq!(&protocol, b"websocket");
    for message in ["one", "two"] {
        stream.write_all(message.as_bytes()).await.unwrap();
        let mut echoed = [0; 3];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, message.as_bytes());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "each side ends");
}

#[tokio::test]
async fn a_websocket_goes_through_the_proxy_and_through_a_tunnel() {
    let (_east, client, _server, _application) = shop().await;
    let mut proxied = TcpStream::connect(client.proxy()).await.unwrap();
    let (code, mut tunnelled) = client::connect(client.proxy(), &format!("{}:80", host("cart"))).await;
    assert_eq!(code, 200);
    let absolute = format!("http://{}/chat", host("cart"));
    for (stream, target) in [(&mut proxied, absolute.as_str()), (&mut tunnelled, "/chat")] {
        let head = ask(stream, target).await;
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("upgrade: websocket") && head.contains("sec-websocket-accept: k1"), "{head}");
        talk(stream).await;
    }
}

#[tokio::test]
async fn an_application_may_refuse_an_upgrade() {
    let (_east, client, _server, _application) = shop().await;
    let absolute = |path: &str| format!("http://{}{path}", host("cart"));
    let mut stream = TcpStream::connect(client.proxy()).await.unwrap();
    assert!(ask(&mut stream, &absolute("/refused")).await.starts_with("http/1.1 403 "));
    let mut stream = TcpStream::connect(client.proxy()).await.unwrap();
    let head = ask(&mut stream, &absolute("/ignored")).await;
    assert!(head.starts_with("http/1.1 501 ") && head.contains("isthmus-error: upgrade"), "{head}");
}
