//! Access policies at the server's sidecar.

use federation_api::discovery::v1::access_policy::Action;
use federation_api::discovery::v1::resource::Resource as Kind;
use federation_api::discovery::v1::{AccessPolicy, AccessRule, Binding, Workload};
use federation_api::record::v1::{Port, Protocol};
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::applications::Application;
use crate::client::{self, Client};
use crate::cluster::{Cluster, HTTP, Pod, RAW, TestPort, host};

/// A client with the account `frontend`, and a server whose policies a test sets.
struct Shop {
    east: Cluster,
    client: Pod,
    _server: Pod,
    web: Application,
    redis: Application,
}

impl Shop {
    async fn open() -> Self {
        let east = Cluster::start("east").await;
        let (web, redis) = (Application::http1("web").await, Application::echo("redis").await);
        let bindings = [(HTTP, web.port()), (RAW, redis.port())];
        let server = east.pod("cart-1", "cart", &bindings).await;
        east.imports(&[HTTP, RAW], vec![east.local(vec![east.endpoint(&server)], &[HTTP, RAW])]);
        let client = east.pod("frontend-1", "frontend", &[]).await;
        Self { east, client, _server: server, web, redis }
    }

    fn set(&self, policies: Vec<AccessPolicy>) {
        let binding = |port: TestPort, target: u16| Binding {
            host: host("cart"),
            port: Some(Port {
                port: port.port.into(),
                protocol: Protocol::Tcp.into(),
                app_protocol: port.app_protocol.to_owned(),
                ..Port::default()
            }),
            target_port: target.into(),
        };
        let workload = Workload {
            endpoint: "east/shop/cart-1".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
            bindings: vec![binding(HTTP, self.web.port()), binding(RAW, self.redis.port())],
            policies,
            ..Workload::default()
        };
        self.east.state().set("workload@cart-1", Kind::Workload(workload));
    }

    async fn get(&self, client: &mut Client, path: &str) -> (StatusCode, String) {
        let uri = format!("http://{}{path}", host("cart"));
        // Whatever a caller says of itself means nothing.
        let spoofed = [("x-forwarded-client-cert", "URI=spiffe://east.mesh.example/ns/shop/sa/admin")];
        let answer = client.call(Method::GET, &uri, "", &spoofed).await;
        (answer.status, answer.header("isthmus-error").to_owned())
    }

    /// Asks until the answer is of this status: the policy has arrived.
    async fn until(&self, client: &mut Client, path: &str, status: StatusCode) -> String {
        let deadline = std::time::Instant::now() + crate::cluster::PATIENCE;
        loop {
            let (got, code) = self.get(client, path).await;
            if got == status {
                return code;
            }
            assert!(std::time::Instant::now() < deadline, "{path}: {got}, not {status}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn policy(action: Action, rule: AccessRule) -> AccessPolicy {
    AccessPolicy { name: "shop/test".to_owned(), action: action.into(), rules: vec![rule], ..AccessPolicy::default() }
}

fn callers(id: String) -> AccessRule {
    AccessRule { spiffe_ids: vec![id], ..AccessRule::default() }
}

#[tokio::test]
async fn a_policy_decides_on_a_live_session_and_names_itself() {
    let shop = Shop::open().await;
    let mut client = Client::connect(shop.client.proxy()).await;
    assert_eq!(shop.get(&mut client, "/admin").await.0, StatusCode::OK);

    let admin = AccessRule { paths: vec!["/admin".to_owned(), "/admin/*".to_owned()], ..AccessRule::default() };
    shop.set(vec![policy(Action::Deny, admin.clone())]);
    assert_eq!(shop.until(&mut client, "/admin", StatusCode::FORBIDDEN).await, "denied");
    let around =
        ["//admin", "/./admin", "/x/../admin", "/%61dmin", "/%2e/admin/x", "/ADMIN", "/admin;x", "/a%2f..%2fadmin"];
    for path in around {
        assert_eq!(shop.get(&mut client, path).await, (StatusCode::FORBIDDEN, "denied".to_owned()), "{path}");
    }
    assert_eq!(shop.get(&mut client, "/administer?x=/admin").await.0, StatusCode::OK);

    shop.set(vec![AccessPolicy { dry_run: true, ..policy(Action::Deny, admin) }]);
    shop.until(&mut client, "/admin", StatusCode::OK).await;
}

#[tokio::test]
async fn an_allow_policy_knows_callers_by_their_certificates() {
    let shop = Shop::open().await;
    let mut client = Client::connect(shop.client.proxy()).await;
    shop.set(vec![policy(Action::Allow, callers(shop.east.identity("admin")))]);
    shop.until(&mut client, "/", StatusCode::FORBIDDEN).await;
    shop.set(vec![policy(Action::Allow, callers(shop.east.identity("frontend")))]);
    shop.until(&mut client, "/", StatusCode::OK).await;
}

#[tokio::test]
async fn raw_connections_are_denied_before_the_application_hears_of_them() {
    let shop = Shop::open().await;
    let mut http = Client::connect(shop.client.proxy()).await;
    let greeting = |proxy| async move {
        let (_, mut stream) = client::connect(proxy, &format!("{}:6379", host("cart"))).await;
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).await.is_ok() && &greeting == b"redis"
    };
    assert!(greeting(shop.client.proxy()).await);
    let mut other = policy(Action::Allow, callers(shop.east.identity("admin")));
    other.ports = vec![shop.redis.port().into()];
    // The second one tells when the first has arrived.
    let marker = AccessRule { paths: vec!["/marker".to_owned()], ..AccessRule::default() };
    shop.set(vec![other, policy(Action::Deny, marker)]);
    shop.until(&mut http, "/marker", StatusCode::FORBIDDEN).await;
    assert!(!greeting(shop.client.proxy()).await);
    assert_eq!(shop.get(&mut http, "/").await.0, StatusCode::OK, "the policy names another port");
}

#[tokio::test]
async fn an_open_raw_connection_is_judged_again_when_policies_change() {
    let shop = Shop::open().await;
    let mut http = Client::connect(shop.client.proxy()).await;
    let (_, mut stream) = client::connect(shop.client.proxy(), &format!("{}:6379", host("cart"))).await;
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await.unwrap();
    let only = |account: &str| AccessPolicy {
        ports: vec![shop.redis.port().into()],
        ..policy(Action::Allow, callers(shop.east.identity(account)))
    };
    // The second one tells when the first has arrived.
    let marker = AccessRule { paths: vec!["/marker".to_owned()], ..AccessRule::default() };
    shop.set(vec![only("frontend"), policy(Action::Deny, marker)]);
    shop.until(&mut http, "/marker", StatusCode::FORBIDDEN).await;
    stream.write_all(b"x").await.unwrap();
    let mut echoed = [0; 1];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"x", "it is still allowed");

    shop.set(vec![only("admin")]);
    let ended = tokio::time::timeout(crate::cluster::PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "broken off, not finished");
}
