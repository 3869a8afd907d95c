//! What `maxTrustAge` shuts out, and when it lets in again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::applications::Application;
use crate::client::{self, Answer};
use crate::cluster::{Cluster, HTTP, PATIENCE, Pod, RAW, eventually, host, ready};
use crate::gateway::Gateway;

const HOUR: Duration = Duration::from_secs(3600);

/// `cart.shop` in west, behind a gateway, for callers in east.
struct Federation {
    east: Cluster,
    west: Cluster,
    _server: Pod,
    _gateway: Gateway,
    _applications: [Application; 2],
}

impl Federation {
    async fn start(server_limit: Option<Duration>) -> Self {
        let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
        east.trusts(&west);
        west.trusts(&east);
        let applications = [Application::http1("web").await, Application::echo("redis").await];
        west.workload("cart-w", "cart", &[(HTTP, applications[0].port()), (RAW, applications[1].port())]);
        let server = start(&west, "cart-w", "cart", server_limit).await;
        let gateway = Gateway::start(vec![("west/shop/cart-w".to_owned(), server.mesh())]).await;
        let ports = [HTTP, RAW];
        east.imports(&ports, vec![west.remote(1, &[("gw-1", gateway.address)], &ports)]);
        west.imports(&ports, vec![west.local(vec![west.endpoint(&server)], &ports)]);
        Self { east, west, _server: server, _gateway: gateway, _applications: applications }
    }
}

async fn start(cluster: &Cluster, name: &str, account: &str, limit: Option<Duration>) -> Pod {
    let mut config = cluster.config(name, account);
    config.max_trust_age = limit;
    let pod = cluster.pod_with(config, account).await;
    ready(&pod.process).await;
    pod
}

async fn client(cluster: &Cluster, name: &str, limit: Option<Duration>) -> Pod {
    cluster.workload(name, "frontend", &[]);
    start(cluster, name, "frontend", limit).await
}

/// Unix milliseconds of so long ago.
fn ago(age: Duration) -> i64 {
    let at = SystemTime::now() - age;
    i64::try_from(at.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

async fn get(pod: &Pod) -> Answer {
    client::get(pod.proxy(), &format!("http://{}/", host("cart"))).await
}

async fn succeeds_in_the_end(pod: &Pod) {
    let deadline = Instant::now() + PATIENCE;
    while get(pod).await.status != StatusCode::OK {
        assert!(Instant::now() < deadline, "never let in again: {:?}", get(pod).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn raw(pod: &Pod) -> TcpStream {
    let (code, mut stream) = client::connect(pod.proxy(), &format!("{}:6379", host("cart"))).await;
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!((code, &greeting), (200, b"redis"));
    stream
}

fn says_why(answer: &Answer) -> bool {
    answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.body.contains("maxTrustAge")
}

#[tokio::test]
async fn too_old_trust_ends_calls_to_other_clusters_until_it_is_confirmed() {
    let federation = Federation::start(None).await;
    federation.east.confirms_trust(ago(HOUR - Duration::from_secs(10)));
    let strict = client(&federation.east, "frontend-1", Some(HOUR)).await;
    let twin = client(&federation.east, "frontend-2", None).await;
    let (mut ends, mut goes_on) = (raw(&strict).await, raw(&twin).await);
    assert_eq!(get(&strict).await.status, StatusCode::OK);
    let ended = tokio::time::timeout(PATIENCE, ends.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let refused = get(&strict).await;
    assert!(says_why(&refused), "{refused:?}");
    goes_on.write_all(b"still").await.unwrap();
    let mut echoed = [0; 5];
    tokio::time::timeout(PATIENCE, goes_on.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!((&echoed, get(&twin).await.status), (b"still", StatusCode::OK), "without the option");
    federation.east.confirms_trust(ago(Duration::ZERO));
    succeeds_in_the_end(&strict).await;
}

#[tokio::test]
async fn without_a_confirmation_callers_of_other_clusters_are_refused_and_own_ones_are_not() {
    let federation = Federation::start(Some(HOUR)).await;
    let (stranger, neighbour) =
        (client(&federation.east, "frontend-1", None).await, client(&federation.west, "frontend-2", None).await);
    assert_eq!(get(&stranger).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&neighbour).await.status, StatusCode::OK);
    federation.west.confirms_trust(ago(2 * HOUR));
    // From the future, by a clock that is wrong.
    federation.west.confirms_trust(ago(Duration::ZERO) + 3_600_000);
    assert_eq!(get(&stranger).await.status, StatusCode::SERVICE_UNAVAILABLE);
    federation.west.confirms_trust(ago(Duration::ZERO));
    succeeds_in_the_end(&stranger).await;
}

#[tokio::test]
async fn after_a_restart_from_disk_the_old_age_counts() {
    let mut federation = Federation::start(None).await;
    federation.east.confirms_trust(ago(2 * HOUR));
    let before = client(&federation.east, "frontend-1", Some(3 * HOUR)).await;
    assert_eq!(get(&before).await.status, StatusCode::OK);
    let file = before.config.state_directory.join("state");
    eventually("the state is on disk", || {
        std::fs::read(&file).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&host("cart")))
    })
    .await;
    before.sidecar.stop().await;
    federation.east.control_plane.stop().await;
    for (limit, refused) in [(Some(3 * HOUR), false), (None, false), (Some(HOUR), true)] {
        let after = start(&federation.east, "frontend-1", "frontend", limit).await;
        let answer = get(&after).await;
        assert_eq!((says_why(&answer), answer.status == StatusCode::OK), (refused, !refused), "{limit:?}: {answer:?}");
        if refused {
            federation.east.control_plane.restart().await;
            federation.east.confirms_trust(ago(Duration::ZERO));
            succeeds_in_the_end(&after).await;
        }
        after.sidecar.stop().await;
    }
}
